"""A gallery as one HTML page: no scripts, nothing from elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import Any

from promptris.experiments.gallery_survey import BINS, Case, Group, Survey
from promptris.ops.masks import mask_bbox
from promptris.ops.run_lengths import rle_to_mask
from promptris.visualize import COARSE_COLOR, MASK_COLOR, POINT_COLOR, TRUTH_COLOR

GENERATOR = "promptris gallery"
"""By this a page is known to be one of ours."""
_COLUMNS = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file below the page's folder, and its size in pixels."""

    source: str
    width: int
    height: int


CasePictures = tuple[Picture, Picture, Picture, Picture]
"""Image, coarse mask with point, final mask and truth of a case."""


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
        f'<meta name="generator" content="{GENERATOR} {_text(__version__)}">',
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
