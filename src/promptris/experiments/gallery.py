"""A page of best, worst and random answers per kind of expression: one HTML file with its pictures beside it.

The split is scored once. Of its masks only those are kept, as run lengths, that may end up on the page, so
memory does not grow with the split.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from promptris.config import PromptName
from promptris.data.dataset import ReferDataset
from promptris.data.paths import file_names, is_folder
from promptris.data.pictures import load_record
from promptris.data.records import Expression, Referent
from promptris.errors import InputError
from promptris.evaluation.protocol import Evaluation, Scored, Segmenter, score
from promptris.metrics import GRESMetrics, RISMetrics
from promptris.ops.masks import mask_bbox
from promptris.ops.run_lengths import mask_to_rle, rle_to_mask
from promptris.outputs import make_folder, write_whole
from promptris.predictor import Predictor
from promptris.visualize import COARSE_COLOR, MASK_COLOR, POINT_COLOR, TRUTH_COLOR, comparison_row

PAGE, PICTURES = "index.html", "pictures"
BINS = 10
"""Bars of the distribution of IoU, each a tenth wide."""

Progress = Callable[[int, int], None]

_GENERATOR = "promptris gallery"
_OWN_PICTURE = re.compile(r"(image|coarse|final|truth)-[0-9-]+-[0-9a-f]{12}\.webp")
_COLUMNS = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")


# ------------------------------------------------------------------------------------------------ what to show


@dataclass(frozen=True)
class Case:
    """One scored sentence in little memory.

    Attributes:
        number: its place in the order of scoring, from 0.
        referent, expression: what was asked.
        score: the model's own estimate of the IoU, in [0, 1].
        point: (x, y) in the image's pixels.
        coarse_iou, final_iou: in [0, 1].
        coarse, final, truth: masks as COCO's run lengths.
    """

    number: int
    referent: Referent
    expression: Expression
    score: float
    point: tuple[int, int]
    coarse_iou: float
    final_iou: float
    coarse: dict[str, Any]
    final: dict[str, Any]
    truth: dict[str, Any]

    @classmethod
    def of(cls, number: int, scored: Scored, coarse_iou: float, final_iou: float) -> Case:
        """The case of a prediction."""
        answer = scored.prediction
        return cls(
            number,
            scored.referent,
            scored.expression,
            answer.score,
            answer.point,
            coarse_iou,
            final_iou,
            mask_to_rle(answer.coarse_mask),
            mask_to_rle(answer.mask),
            mask_to_rle(scored.truth),
        )


Key = tuple[float, int]


class _Highest:
    """The `size` cases with the highest keys; keys must differ."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[Key, Case]] = []

    def takes(self, key: Key) -> bool:
        """Whether a case with this key would be kept."""
        return len(self._heap) < self.size or key > self._heap[0][0]

    def add(self, key: Key, case: Case) -> None:
        """Keep a case, and drop the one with the lowest key where there is no room."""
        push = heapq.heappush if len(self._heap) < self.size else heapq.heappushpop
        push(self._heap, (key, case))

    def cases(self) -> list[Case]:
        """Highest key first."""
        return [case for _, case in sorted(self._heap, key=lambda entry: entry[0], reverse=True)]


class Group:
    """What becomes of one kind of expression: metrics of all its sentences, and at most 3 x `per_group` cases.

    Args:
        per_group: how many of the best, of the worst and of the random cases to keep.
        draw: source of chance for the random ones.

    Attributes:
        final, coarse: metrics of the final and of the coarse masks.
        histogram: sentences per tenth of IoU, of the "final" and of the "coarse" masks.
    """

    def __init__(self, per_group: int, draw: random.Random) -> None:
        self.per_group, self._draw = per_group, draw
        self.final, self.coarse = RISMetrics(), RISMetrics()
        self.histogram = {"final": [0] * BINS, "coarse": [0] * BINS}
        self._best, self._worst, self._random = (_Highest(per_group) for _ in range(3))

    def __len__(self) -> int:
        return len(self.final)

    def add(self, number: int, scored: Scored) -> None:
        """Take a prediction into account, and keep it if it may be shown; `number` is its place in the split."""
        answer, truth = scored.prediction, scored.truth
        ids = scored.referent.image_id, scored.referent.ann_id
        final = self.final.update(answer.mask, truth, *ids)
        coarse = self.coarse.update(answer.coarse_mask, truth, *ids)
        for name, iou in (("final", final), ("coarse", coarse)):
            self.histogram[name][min(int(iou * BINS), BINS - 1)] += 1
        # Of equal cases the earlier one counts as better: one order, so that none is both best and worst.
        offers = (
            (self._best, (final, -number)),
            (self._worst, (-final, number)),
            (self._random, (self._draw.random(), -number)),
        )
        if takers := [(kept, key) for kept, key in offers if kept.takes(key)]:
            case = Case.of(number, scored, coarse, final)
            for kept, key in takers:
                kept.add(key, case)

    def best(self) -> list[Case]:
        """Highest IoU first."""
        return self._best.cases()

    def worst(self) -> list[Case]:
        """Lowest IoU first; none of them is among the best."""
        room = max(0, len(self) - self.per_group)
        return self._worst.cases()[:room]

    def random(self) -> list[Case]:
        """Drawn from all cases, each with the same chance; highest IoU first."""
        return sorted(self._random.cases(), key=lambda case: (-case.final_iou, case.number))

    def sections(self) -> list[tuple[str, str, list[Case]]]:
        """Name, explanation and cases of what is shown: nothing that the sections before show in full."""
        if len(self) <= self.per_group:
            return [("all", "highest IoU of the final mask first", self.best())]
        sections = [
            ("best", "highest IoU of the final mask", self.best()),
            ("worst", "lowest IoU of the final mask", self.worst()),
        ]
        if len(self) > 2 * self.per_group:
            sections.append(("random", "drawn from all, highest IoU first", self.random()))
        return sections


@dataclass
class Survey:
    """A scored split: what the page is made from.

    Attributes:
        dataset, split: what was scored.
        model: the model's name for people.
        prompts: SAM prompts that were used.
        seed: of the random cases.
        groups: by kind of expression, sorted; a data set that tells no kinds has one group, None.
        generalised: gIoU, cIoU, N-acc and T-acc where some expressions mean several objects or none, else empty.
    """

    dataset: ReferDataset
    split: str
    model: str
    prompts: tuple[PromptName, ...]
    seed: int
    groups: dict[str | None, Group] = field(default_factory=dict)
    generalised: dict[str, float | None] = field(default_factory=dict)

    def total(self) -> tuple[RISMetrics, RISMetrics]:
        """Metrics of the final and of the coarse masks of the whole split."""
        final, coarse = RISMetrics(), RISMetrics()
        for group in self.groups.values():
            final.merge(group.final)
            coarse.merge(group.coarse)
        return final, coarse

    def evaluation(self) -> Evaluation:
        """The metrics in the protocol's own form."""
        final, coarse = self.total()
        kinds = {kind: group.final.compute() for kind, group in self.groups.items() if kind is not None}
        return Evaluation(final.compute(), coarse.compute(), kinds, self.generalised)

    def title(self, kind: str | None) -> str:
        """What a group is called."""
        if kind is not None:
            return kind
        return "all expressions" if len(self.groups) == 1 else "of no kind"


def survey_split(
    segmenter: Segmenter,
    dataset: ReferDataset,
    split: str,
    model: str,
    prompts: tuple[PromptName, ...] | None = None,
    per_group: int = 8,
    seed: int = 0,
    images_per_pass: int = 4,
    progress: Progress | None = None,
) -> Survey:
    """Score a split and choose what to show of it.

    Args:
        segmenter: the model with its threshold, or another method.
        dataset: the data.
        split: which split.
        model: the model's name for people.
        prompts: SAM prompts to use; None means the model's own.
        per_group: best, worst and random cases of every kind of expression, this many each.
        seed: of the random cases.
        images_per_pass: images that are encoded together.
        progress: called with (expressions done, expressions in all).

    Raises:
        InputError: for an unknown or empty split, `per_group` below 1, or an image or annotation that cannot be
            read.
    """
    if per_group < 1:
        raise InputError(f"{per_group} cases per group cannot be shown: ask for at least 1")
    total = len(dataset.samples(split))
    if total == 0:
        raise InputError(f"{dataset.name} has no expression to show in {split!r}")
    survey = Survey(dataset, split, model, prompts_used(segmenter, prompts), seed)
    generalised = GRESMetrics() if dataset.is_generalised(split) else None
    groups: dict[str | None, Group] = {}
    for number, scored in enumerate(score(segmenter, dataset, split, prompts, images_per_pass)):
        kind = scored.expression.kind
        if kind not in groups:
            # A source of chance of its own makes a group's draw independent of the other groups.
            groups[kind] = Group(per_group, random.Random(f"{seed} {kind}"))
        groups[kind].add(number, scored)
        if generalised is not None:
            generalised.update(scored.prediction.mask, scored.truth)
        if progress is not None:
            progress(number + 1, total)
    survey.groups = dict(sorted(groups.items(), key=lambda item: (item[0] is None, item[0] or "")))
    survey.generalised = {} if generalised is None else generalised.compute()
    return survey


def prompts_used(segmenter: Segmenter, prompts: tuple[PromptName, ...] | None) -> tuple[PromptName, ...]:
    """The SAM prompts behind an answer: the wanted ones, else the model's own; none for other methods."""
    if not isinstance(segmenter, Predictor):
        return ()
    return segmenter.model.config.sam_prompts.enabled if prompts is None else prompts


# ----------------------------------------------------------------------------------------------- the pictures


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file below the page's folder, and its size in pixels."""

    source: str
    width: int
    height: int


CasePictures = tuple[Picture, Picture, Picture, Picture]
"""Image, coarse mask with point, final mask and truth of a case."""


class _PictureFiles:
    """Draws the pictures of cases and writes them, each once.

    Names end in a digest of the content. So a page that is there already keeps its pictures while a new one is
    made, and the same picture is never stored twice.
    """

    def __init__(self, folder: Path, dataset: ReferDataset, tile_size: int) -> None:
        self.folder, self.dataset, self.tile_size = folder / PICTURES, dataset, tile_size
        self._written: dict[str, Picture] = {}
        self._known: dict[int, CasePictures] = {}

    def of(self, case: Case) -> CasePictures:
        """The pictures of a case."""
        if case.number not in self._known:
            self._known[case.number] = self._draw(case)
        return self._known[case.number]

    def remove_others(self) -> None:
        """Delete the pictures of former galleries in the same folder; other files stay."""
        for name in file_names(self.folder) - set(self._written):
            if _OWN_PICTURE.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)

    def _draw(self, case: Case) -> CasePictures:
        image_id, sent_id = case.referent.image_id, case.expression.sent_id
        tiles = comparison_row(
            load_record(self.dataset.images[image_id]),
            rle_to_mask(case.coarse),
            case.point,
            rle_to_mask(case.final),
            rle_to_mask(case.truth),
            tile_size=self.tile_size,
        )
        names = (f"image-{image_id}", f"coarse-{sent_id}", f"final-{sent_id}", f"truth-{sent_id}")
        image, coarse, final, truth = (
            self._write(name, tile) for name, (_, tile) in zip(names, tiles, strict=True)
        )
        return image, coarse, final, truth

    def _write(self, stem: str, tile: Image.Image) -> Picture:
        buffer = io.BytesIO()
        tile.save(buffer, format="WEBP", quality=85, method=4)
        content = buffer.getvalue()
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.webp"
        if name not in self._written:
            write_whole(self.folder / name, content)
            self._written[name] = Picture(f"{PICTURES}/{name}", tile.width, tile.height)
        return self._written[name]


# --------------------------------------------------------------------------------------------------- the page


def check_gallery_folder(folder: Path) -> None:
    """Make the folder if needed; InputError when it cannot be one, or holds a page that is no gallery of ours."""
    make_folder(folder)
    page = folder / PAGE
    try:
        start = page.read_bytes()[:4096]
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {page}: {error.strerror or error}") from error
    if f'content="{_GENERATOR}'.encode() not in start:
        raise InputError(f"{page} is not a gallery of promptris: choose another folder for the new one")


def write_gallery(
    survey: Survey, folder: Path, tile_size: int = 384, progress: Progress | None = None
) -> Path:
    """Write the page and its pictures; a gallery that is there already is replaced, once the new one is whole.

    Args:
        survey: what to show.
        folder: gets `index.html` and the folder `pictures`.
        tile_size: longer side of the pictures in pixels.
        progress: called with (cases drawn, cases in all).

    Returns the path of the page. Raises InputError when an image cannot be read or a file cannot be written, or
    when the folder has an `index.html` of another origin.
    """
    check_gallery_folder(folder)
    files = _PictureFiles(folder, survey.dataset, tile_size)
    cases = [case for group in survey.groups.values() for _, _, shown in group.sections() for case in shown]
    pictures: dict[int, CasePictures] = {}
    for done, case in enumerate(cases, start=1):
        pictures[case.number] = files.of(case)
        if progress is not None:
            progress(done, len(cases))
    write_whole(folder / PAGE, render_page(survey, pictures).encode())
    if is_folder(files.folder):
        files.remove_others()
    return folder / PAGE


def render_page(survey: Survey, pictures: dict[int, CasePictures]) -> str:
    """The whole page as HTML; `pictures` are those of every case shown, by the case's number."""
    from promptris import __version__

    name = f"{survey.model} on {survey.dataset.name} {survey.split}"
    body = [
        '<a class="skip" href="#main">Skip to the summary</a>',
        _header(survey, name),
        _navigation(survey),
        '<main id="main">',
        _summary(survey),
        *(
            _group(survey, number, kind, group, pictures)
            for number, (kind, group) in enumerate(survey.groups.items(), start=1)
        ),
        "</main>",
        f"<footer>Made by <code>promptris gallery</code> {_text(__version__)}.</footer>",
    ]
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="{_GENERATOR} {_text(__version__)}">',
        '<meta name="color-scheme" content="light dark">',
        # Texts are escaped; should one ever slip through, it still cannot run.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'none'; object-src 'none'\">",
        f"<title>{_text(name)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    parts = ["<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", *body]
    return "\n".join([*parts, "</body>", "</html>", ""])


def _text(value: object) -> str:
    """Any text as one line of HTML: escaped, without control characters and broken surrogates."""
    plain = str(value).encode("utf-8", "replace").decode("utf-8")
    kept = "".join(" " if unicodedata.category(c) == "Cc" else c for c in plain)
    return escape(" ".join(kept.split()))


def _header(survey: Survey, name: str) -> str:
    referents, images, sentences = survey.dataset.count(survey.split)
    facts = [
        f"{sentences:,} expressions of {referents:,} referents in {images:,} images",
        f"prompts for SAM: {_prompts(survey)}",
        f"random cases drawn with seed {survey.seed}",
    ]
    legend = "".join(
        f'<li><span class="key {kind}"></span>{label}</li>'
        for kind, label in (
            ("coarse", "coarse mask"),
            ("point", "point"),
            ("final", "final mask"),
            ("truth", "ground truth"),
        )
    )
    return (
        f'<header>\n<h1>{_text(name)}</h1>\n<p class="soft">{_text(" · ".join(facts))}</p>\n'
        f'<ul class="legend" aria-label="Colours">{legend}</ul>\n</header>'
    )


def _prompts(survey: Survey) -> str:
    return ", ".join(survey.prompts) or "none"


def _navigation(survey: Survey) -> str:
    items = ['<li><a href="#summary">summary</a></li>']
    for number, (kind, group) in enumerate(survey.groups.items(), start=1):
        sections = "".join(
            f'<a class="part" href="#g{number}-{section}">{section}</a>' for section, _, _ in group.sections()
        )
        items.append(f'<li><a href="#g{number}">{_text(survey.title(kind))}</a>{sections}</li>')
    return f'<nav aria-label="On this page"><ul>{"".join(items)}</ul></nav>'


def _summary(survey: Survey) -> str:
    evaluation = survey.evaluation()
    headline = "".join(
        f"<div><dt>{name}, %</dt><dd>{_percent(evaluation.final[name])}"
        f' <span class="soft">coarse {_percent(evaluation.coarse[name])}</span></dd></div>'
        for name in ("mIoU", "oIoU", "P@0.5", "P@0.9")
    )
    rows = {"final": evaluation.final, "coarse": evaluation.coarse}
    rows |= {f"final, {kind}": scores for kind, scores in evaluation.by_kind.items()}
    parts = [
        '<section id="summary" aria-labelledby="summary-title">',
        '<h2 id="summary-title">Summary</h2>',
        f'<dl class="headline">{headline}</dl>',
        _histogram(survey),
        _table(
            "All metrics in percent",
            ("masks", *_COLUMNS, "expressions"),
            [
                (name, *(_percent(scores[column]) for column in _COLUMNS), f"{scores['count']:,}")
                for name, scores in rows.items()
            ],
        ),
    ]
    if scores := evaluation.generalised:
        columns = ("gIoU", "cIoU", "N-acc", "T-acc")
        cells = ("–" if (value := scores[column]) is None else _percent(value) for column in columns)
        parts.append(
            _table(
                "Several targets or none, in percent",
                ("masks", *columns, "expressions", "without target"),
                [("final", *cells, f"{scores['count']:,}", f"{scores['count_no_target']:,}")],
            )
        )
    return "\n".join([*parts, "</section>"])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the rows; it scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _histogram(survey: Survey) -> str:
    """Bars of how many sentences have which IoU."""
    counts = {
        name: [
            sum(column) for column in zip(*(g.histogram[name] for g in survey.groups.values()), strict=True)
        ]
        for name in ("coarse", "final")
    }
    tallest = max(chain(*counts.values()))
    bins = []
    for place in range(BINS):
        bars = "".join(
            f'<span class="{name}" style="height:{100 * count / tallest:.1f}%" data-count="{count or ""}" '
            f'title="{name} masks, IoU {place / BINS:.1f} to {(place + 1) / BINS:.1f}: {count:,}"></span>'
            for name in ("coarse", "final")
            for count in [counts[name][place]]
        )
        bins.append(f"<span>{bars}</span>")
    ticks = "".join(f"<span>{place / BINS:.1f}</span>" for place in range(BINS + 1))
    spoken = "; ".join(f"{name} masks {', '.join(map(str, counts[name]))}" for name in ("coarse", "final"))
    return (
        '<figure class="histogram"><figcaption>How many expressions reach which IoU: <span>'
        '<span class="key coarse"></span>coarse <span class="key final"></span>final</span></figcaption>'
        f'<div role="img" aria-label="Expressions per tenth of IoU from 0 to 1: {spoken}.">'
        f'<div class="bins">{"".join(bins)}</div><div class="ticks">{ticks}</div></div></figure>'
    )


def _group(
    survey: Survey, number: int, kind: str | None, group: Group, pictures: dict[int, CasePictures]
) -> str:
    identity, final = f"g{number}", group.final.compute()
    parts = [
        f'<section id="{identity}" aria-labelledby="{identity}-title">',
        f'<h2 id="{identity}-title">{_text(survey.title(kind))}</h2>',
        f'<p class="soft">{len(group):,} expressions · mIoU {_percent(final["mIoU"])} %, of the coarse masks '
        f"{_percent(group.coarse.compute()['mIoU'])} %</p>",
    ]
    for section, explanation, cases in group.sections():
        name = f"{identity}-{section}"
        parts += [
            f'<section id="{name}" aria-labelledby="{name}-title">',
            f'<h3 id="{name}-title">{section} <span class="soft">{explanation}</span></h3>',
            *(
                _case(survey, f"{name}-{place}", case, pictures[case.number])
                for place, case in enumerate(cases, start=1)
            ),
            "</section>",
        ]
    return "\n".join([*parts, "</section>"])


def _case(survey: Survey, identity: str, case: Case, pictures: CasePictures) -> str:
    truth = rle_to_mask(case.truth)
    x, y = case.point
    file_name = survey.dataset.images[case.referent.image_id].path.name
    where = (
        "nothing is meant" if not truth.any() else "on the referent" if truth[y, x] else "beside the referent"
    )
    # Alternatives say what a picture adds to the texts around it, without repeating the expression four times.
    tiles = (
        ("", "image", None, f"The image {file_name}."),
        (
            "coarse",
            "coarse mask, point",
            case.coarse_iou,
            f"Coarse mask in orange, {_extent(case.coarse)}, with the point marked at {x}, {y}.",
        ),
        ("final", "final mask", case.final_iou, f"Final mask in blue, {_extent(case.final)}."),
        ("truth", "ground truth", None, f"Ground truth in green, {_extent(case.truth)}."),
    )
    figures = "\n".join(
        f'<figure><img src="{_text(picture.source)}" width="{picture.width}" height="{picture.height}" '
        f'loading="lazy" alt="{_text(alternative)}">'
        f"<figcaption>{_key(key)}{label}{_bar(key, iou)}</figcaption></figure>"
        for picture, (key, label, iou, alternative) in zip(pictures, tiles, strict=True)
    )
    used = "" if not survey.prompts or "point" in survey.prompts else ", not given to SAM"
    facts = {
        "predicted score": f"{case.score:.2f}",
        "point": f"({x}, {y}), {where}{used}",
        "prompts": _prompts(survey),
        "sentence": str(case.expression.sent_id),
        "referent": str(case.referent.ref_id),
        "image": file_name,
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    return (
        f'<article id="{identity}" aria-labelledby="{identity}-title">\n'
        f'<h4 id="{identity}-title"><a href="#{identity}" dir="auto">{_text(case.expression.text)}</a></h4>\n'
        f'<div class="tiles">\n{figures}\n</div>\n<dl class="facts">{items}</dl>\n</article>'
    )


def _key(kind: str) -> str:
    return f'<span class="key {kind}"></span>' if kind else ""


def _bar(kind: str, iou: float | None) -> str:
    """An IoU as a number with a bar of that length below it."""
    if iou is None:
        return ""
    return (
        f' <span class="iou">IoU <b>{iou:.2f}</b></span>'
        f'<span class="bar"><span class="{kind}" style="width:{100 * iou:.1f}%"></span></span>'
    )


def _extent(rle: dict[str, Any]) -> str:
    """A mask in words: how much of the image it covers, and where."""
    mask = rle_to_mask(rle)
    if not mask.any():
        return "empty"
    x, y, width, height = mask_bbox(mask)
    return f"{_percent(mask.mean())} % of the image, from {x}, {y} to {x + width}, {y + height}"


def _rgb(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _style() -> Iterator[str]:
    names = {"coarse": COARSE_COLOR, "final": MASK_COLOR, "truth": TRUTH_COLOR, "point": POINT_COLOR}
    yield ":root{" + "".join(f"--{name}:{_rgb(color)};" for name, color in names.items()) + "}"
    for name in names:
        yield f".{name}{{background:var(--{name});fill:var(--{name})}}"


_STYLE = (
    "\n".join(_style())
    + """
:root{--paper:#f5f6f8;--card:#fff;--ink:#1c1f25;--soft:#59606d;--line:#e0e3e9;--link:#0060a0;color-scheme:light dark}
@media (prefers-color-scheme:dark){
:root{--paper:#121418;--card:#1b1e24;--ink:#e7e9ed;--soft:#a3aab6;--line:#30353e;--link:#7cc4f5}}
*{box-sizing:border-box}
html{scroll-padding-top:4rem;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:74rem;padding:0 1.25rem 3rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:3px;border-radius:3px}
.skip{position:absolute;left:-100rem}
.skip:focus{position:static;display:inline-block;margin-top:.75rem}
.soft{color:var(--soft)}
header{padding-top:2rem}
h1{font-size:1.8rem;line-height:1.2;margin:0 0 .35rem;overflow-wrap:anywhere}
header p{margin:0 0 .8rem}
h2{font-size:1.4rem;margin:2.75rem 0 0}
h2::first-letter{text-transform:uppercase}
h2+p{margin:.15rem 0 0}
h3{font-size:1.1rem;margin:1.75rem 0 .75rem}
h3::first-letter{text-transform:uppercase}
h3 .soft{font-weight:400;font-size:.95rem;margin-left:.4rem}
ul{list-style:none;margin:0;padding:0}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;font-size:.9rem}
.key{display:inline-block;width:.7rem;height:.7rem;border-radius:2px;margin-right:.4rem}
.key.point{border-radius:50%;border:2px solid #fff;outline:1px solid #202226;width:.75rem;height:.75rem}
nav{position:sticky;top:0;z-index:1;margin:1.25rem -1.25rem 0;padding:.55rem 1.25rem;background:var(--paper);
border-bottom:1px solid var(--line);overflow-x:auto}
nav ul{display:flex;gap:.4rem 1.75rem;white-space:nowrap}
nav a{text-decoration:none;padding:.2rem 0;display:inline-block}
nav li>a:first-child{font-weight:600}
nav .part{margin-left:.75rem;font-size:.92rem}
nav a:hover{text-decoration:underline}
.headline{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin:1rem 0}
.headline div,.histogram,.scroll,article{background:var(--card);border:1px solid var(--line);border-radius:10px}
.headline div{padding:.75rem 1rem}
.headline dt{color:var(--soft);font-size:.9rem}
.headline dd{margin:0;font-size:1.8rem;font-weight:600;line-height:1.25;display:flex;flex-wrap:wrap;
align-items:baseline;gap:0 .6rem;font-variant-numeric:tabular-nums}
.headline dd span{font-size:.9rem;font-weight:400}
.histogram{margin:.75rem 0;padding:.75rem 1rem}
.histogram figcaption{color:var(--soft);font-size:.9rem;margin-bottom:.75rem}
.histogram figcaption>span{white-space:nowrap}
.histogram .key{margin-left:.3rem}
.bins{display:grid;grid-template-columns:repeat(10,1fr);gap:.9rem;height:9.5rem;padding-top:1.2rem;
border-bottom:1px solid var(--soft)}
.bins>span{display:flex;align-items:flex-end;justify-content:center;gap:2px;min-width:0}
.bins>span>span{flex:1;max-width:2rem;position:relative;border-radius:2px 2px 0 0}
.bins>span>span::before{content:attr(data-count);position:absolute;bottom:100%;left:-1rem;right:-1rem;
text-align:center;font-size:.78rem;line-height:1.4;color:var(--soft)}
.ticks{display:flex;justify-content:space-between;font-size:.82rem;color:var(--soft);margin-top:.25rem}
.ticks span{width:0;display:flex;justify-content:center}
.scroll{overflow-x:auto;margin:.75rem 0;padding:.75rem 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.95rem}
caption{text-align:left;color:var(--soft);font-size:.9rem;padding-bottom:.4rem}
th,td{padding:.35rem .6rem;text-align:right;white-space:nowrap;border-top:1px solid var(--line);font-weight:400}
thead th{border-top:0;color:var(--soft)}
th:first-child{text-align:left;padding-left:0}
th:last-child,td:last-child{padding-right:0}
article{padding:1rem 1.1rem;margin:0 0 1rem;break-inside:avoid}
article:target{border-color:var(--link)}
h4{font-size:1.05rem;line-height:1.35;margin:0 0 .7rem;overflow-wrap:anywhere}
h4 a{display:block;color:inherit;text-decoration:none}
h4 a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.9rem;align-items:start}
.tiles figure{margin:0;min-width:0}
.tiles img{display:block;width:100%;height:auto;max-height:24rem;object-fit:contain;border-radius:6px}
.tiles figcaption{display:flex;flex-wrap:wrap;align-items:center;font-size:.9rem;margin-top:.4rem;line-height:1.3}
.iou{margin-left:auto;font-variant-numeric:tabular-nums;color:var(--soft)}
.iou b{color:var(--ink)}
.bar{flex-basis:100%;height:4px;margin-top:.3rem;border-radius:2px;background:var(--line);overflow:hidden}
.bar span{display:block;height:100%}
.facts{display:flex;flex-wrap:wrap;gap:.15rem 1.4rem;margin:.8rem 0 0;font-size:.88rem}
.facts div{display:flex;gap:.4rem;min-width:0}
.facts dt{color:var(--soft)}
.facts dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
footer{margin-top:3rem;color:var(--soft);font-size:.9rem}
@media (max-width:44rem){
body{padding:0 .9rem 2rem}
nav{margin:1rem -.9rem 0;padding:.55rem .9rem}
.headline{grid-template-columns:1fr 1fr}
.tiles{grid-template-columns:1fr 1fr;gap:.8rem}
article{padding:.8rem .85rem}
.iou{flex-basis:100%;margin:0}
.bins{gap:.3rem;height:8rem}
.bins>span>span::before{font-size:.62rem}
.ticks{font-size:.75rem}}
@media print{nav,.skip{display:none}}
"""
)
