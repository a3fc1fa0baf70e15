"""The gallery: which cases are kept, what the page says, and that nothing half-made is left behind."""

from __future__ import annotations

import gc
import random
import re
import weakref
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from promptris.data import ReferDataset, read_refer
from promptris.data.records import Expression, ImageRecord, Referent
from promptris.data.refshapes import WorldOptions
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.evaluation.protocol import Scored, evaluate
from promptris.experiments import gallery, gallery_survey
from promptris.experiments.gallery import check_gallery_folder, write_gallery
from promptris.experiments.gallery_survey import Group, Survey, prompts_used, survey_split
from promptris.interfaces.pictures import gallery_command
from promptris.prediction import Prediction
from promptris.predictor import Predictor

WIDTH, HEIGHT = 20, 10


def columns(count: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[:, :count] = True
    return mask


def scored(
    final: int,
    coarse: int = 0,
    text: str = "the left part",
    number: int = 0,
    kind: str | None = None,
    truth: int = 10,
    point: tuple[int, int] = (3, 4),
) -> Scored:
    """A truth of the first 10 columns; masks of the first `final` and `coarse` columns, so IoU is final / 10."""
    expression = Expression(100 + number, text, kind)
    referent = Referent(5, 6, 1, 1, "val", (expression,), (6,))
    answer = Prediction(text, columns(final), 0.25, columns(coarse), point)
    return Scored(referent, expression, answer, columns(truth))


def filled(finals: Sequence[int], per_group: int, seed: object = 0) -> Group:
    group = Group(per_group, random.Random(str(seed)))
    for number, final in enumerate(finals):
        group.add(number, scored(final, number=number))
    return group


def numbers(cases: Sequence[gallery_survey.Case]) -> list[int]:
    return [case.number for case in cases]


# --------------------------------------------------------------------------------------------- what is chosen


def test_best_and_worst_by_hand() -> None:
    group = filled([3, 9, 5, 0, 10, 7, 1], per_group=2)
    assert numbers(group.best()) == [4, 1]
    assert numbers(group.worst()) == [3, 6]
    assert [case.final_iou for case in group.best()] == [1.0, 0.9]
    assert [case.final_iou for case in group.worst()] == [0.0, 0.1]
    assert [name for name, _, _ in group.sections()] == ["best", "worst", "random"]


def test_of_equal_cases_the_earlier_one_counts_as_better() -> None:
    group = filled([2, 8, 8, 8, 2, 2], per_group=2)
    assert numbers(group.best()) == [1, 2]
    assert numbers(group.worst()) == [5, 4]


def test_small_groups_show_nothing_twice() -> None:
    all_of_them = filled([1, 9, 4], per_group=3)
    assert [(name, numbers(cases)) for name, _, cases in all_of_them.sections()] == [("all", [1, 2, 0])]
    most = filled([1, 9, 4, 6], per_group=3)
    assert [(name, numbers(cases)) for name, _, cases in most.sections()] == [
        ("best", [1, 3, 2]),
        ("worst", [0]),
    ]
    both = filled([5] * 6, per_group=3)
    assert len({n for _, _, cases in both.sections() for n in numbers(cases)}) == 6


def test_random_cases_are_drawn_evenly_whatever_their_score() -> None:
    finals = [10, 10, 9, 2, 1, 0]
    seen = Counter(n for seed in range(600) for n in numbers(filled(finals, 2, seed).random()))
    # Each of 6 cases is among the 2 with a chance of 1/3: 200 of 600, standard deviation 11.5.
    assert sum(seen.values()) == 1200
    assert all(150 < seen[number] < 250 for number in range(6))


def test_random_cases_repeat_with_their_seed_and_are_sorted() -> None:
    finals = [number % 11 for number in range(40)]
    one, again, other = (filled(finals, 5, seed).random() for seed in (1, 1, 2))
    assert numbers(one) == numbers(again) != numbers(other)
    assert [case.final_iou for case in one] == sorted((case.final_iou for case in one), reverse=True)


def test_only_what_may_be_shown_is_kept() -> None:
    group = Group(4, random.Random(0))
    alive: list[weakref.ref[Any]] = []
    chance = random.Random(1)
    for number in range(300):
        one = scored(chance.randrange(11), number=number)
        alive += [weakref.ref(one), weakref.ref(one.prediction.mask), weakref.ref(one.truth)]
        group.add(number, one)
    del one
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 0
    kept = {id(case) for kept in (group._best, group._worst, group._random) for _, case in kept._heap}
    assert len(kept) <= 12
    assert len(group) == 300


def test_run_lengths_are_made_for_kept_cases_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    encode = gallery_survey.mask_to_rle
    monkeypatch.setattr(gallery_survey, "mask_to_rle", lambda mask: made.append(1) or encode(mask))
    group = Group(1, random.Random(0))
    group._random.size = 1
    group.add(0, scored(10))
    group.add(1, scored(0))
    first = len(made)
    assert first == 6  # three masks each
    group._random._heap[0] = ((2.0, 0), group._random._heap[0][1])  # no draw beats this one
    for number in range(2, 50):
        group.add(number, scored(5, number=number))
    assert len(made) == first


def test_the_histogram_counts_tenths() -> None:
    group = Group(1, random.Random(0))
    for number, (final, coarse) in enumerate([(10, 0), (9, 0), (1, 5), (0, 10)]):
        group.add(number, scored(final, coarse, number=number))
    assert group.histogram["final"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert group.histogram["coarse"] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]


# ----------------------------------------------------------------------------------------------- a real split


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    folder = tmp_path_factory.mktemp("world") / "data"
    write_refshapes(folder, {"val": 3}, 5, WorldOptions(size=64))
    return read_refer(folder, "refshapes")


@pytest.fixture(scope="module")
def survey(small_model: Any, dataset: ReferDataset) -> Survey:
    return survey_split(Predictor(small_model), dataset, "val", "random", per_group=2, seed=4)


def test_metrics_are_those_of_the_protocol(small_model: Any, dataset: ReferDataset, survey: Survey) -> None:
    expected = evaluate(Predictor(small_model), dataset, "val")
    found = survey.evaluation()
    assert (found.final, found.coarse, found.by_kind) == (expected.final, expected.coarse, expected.by_kind)


def test_every_kind_is_a_group(dataset: ReferDataset, survey: Survey) -> None:
    counts = Counter(expression.kind for _, expression in dataset.samples("val"))
    assert {kind: len(group) for kind, group in survey.groups.items()} == counts
    assert list(survey.groups) == sorted(counts, key=str)
    assert survey.prompts == ("mask", "point", "text")


def test_a_groups_draw_does_not_depend_on_the_other_groups() -> None:
    finals = list(range(11)) * 3
    alone, beside = (Group(3, random.Random("7 location")) for _ in range(2))
    other = Group(3, random.Random("7 relation"))
    for number, final in enumerate(finals):
        alone.add(number, scored(final, number=number))
        beside.add(number, scored(final, number=number))
        other.add(number, scored(final, number=number))
    assert numbers(alone.random()) == numbers(beside.random())
    assert numbers(alone.random()) != numbers(other.random())


def test_wrong_use_of_a_survey_is_named(small_model: Any, dataset: ReferDataset) -> None:
    predictor = Predictor(small_model)
    with pytest.raises(InputError, match="0 cases per group"):
        survey_split(predictor, dataset, "val", "m", per_group=0)
    with pytest.raises(InputError, match="'testA'"):
        survey_split(predictor, dataset, "testA", "m")
    with pytest.raises(InputError, match="no expression to show in 'val'"):
        survey_split(predictor, dataset.only_categories(set()), "val", "m")


def test_progress_is_told(small_model: Any, dataset: ReferDataset, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = survey_split(
        Predictor(small_model), dataset, "val", "m", per_group=1, progress=lambda *at: seen.append(at)
    )
    total = len(dataset.samples("val"))
    assert seen == [(i + 1, total) for i in range(total)]
    seen.clear()
    write_gallery(made, tmp_path, 64, lambda *at: seen.append(at))
    assert seen == [(i + 1, 9) for i in range(9)]  # best, worst and random of three kinds


def test_the_prompts_of_other_methods_are_none(small_model: Any) -> None:
    assert prompts_used(Predictor(small_model), ("mask",)) == ("mask",)
    other: Any = SimpleNamespace(answer_images=None)
    assert prompts_used(other, None) == ()


# --------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """The parts of a page, and whether its tags are balanced."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)
            if tag not in ("b", "span", "a", "code"):
                self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in reversed(self._open):
            if tag not in ("b", "span", "a", "code"):
                self.texts[tag][-1] += data
                break

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def small_survey(folder: Path, cases: Sequence[Scored], name: str = "shapes", **options: Any) -> Survey:
    """A survey of hand-made cases on one 20 x 10 image."""
    path = folder / options.pop("file_name", "scene.png")
    Image.new("RGB", (WIDTH, HEIGHT), (120, 60, 60)).save(path)
    dataset: Any = SimpleNamespace(
        name=name,
        images={1: ImageRecord(1, path, HEIGHT, WIDTH)},
        count=lambda split: (1, 1, len(cases)),
    )
    per_group = options.pop("per_group", 2)
    prompts = options.pop("prompts", ("mask", "point", "text"))
    survey = Survey(dataset, "val", options.pop("model", "m"), prompts, 0, **options)
    for number, case in enumerate(cases):
        kind = case.expression.kind
        survey.groups.setdefault(kind, Group(per_group, random.Random(0))).add(number, case)
    return survey


def read_page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_page_holds_together(survey: Survey, dataset: ReferDataset, tmp_path: Path) -> None:
    assert write_gallery(survey, tmp_path / "out", tile_size=96) == tmp_path / "out" / "index.html"
    page = read_page(tmp_path / "out")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.tags:
        if "href" in attributes:
            assert attributes["href"].startswith("#") and attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert "script" not in {tag for tag, _ in page.tags} and not page.all("link")
    assert "http" not in re.sub(r"http-equiv", "", (tmp_path / "out" / "index.html").read_text())
    shown = [c for group in survey.groups.values() for _, _, cases in group.sections() for c in cases]
    assert page.texts["h4"] == [case.expression.text for case in shown]
    assert len(page.all("article")) == len(shown) and len(page.all("img")) == 4 * len(shown)
    assert page.texts["h2"] == ["Summary", *survey.groups]
    assert page.texts["h3"][0].startswith("best")


def test_pictures_are_small_files_of_the_stated_size(survey: Survey, tmp_path: Path) -> None:
    write_gallery(survey, tmp_path, tile_size=96)
    sources = set()
    for image in read_page(tmp_path).all("img"):
        sources.add(image["src"])
        assert image["alt"] and image["loading"] == "lazy"
        with Image.open(tmp_path / image["src"]) as picture:
            assert picture.format == "WEBP"
            assert picture.size == (int(image["width"]), int(image["height"])) == (96, 96)
    assert {f"pictures/{p.name}" for p in (tmp_path / "pictures").iterdir()} == sources
    assert sum(path.stat().st_size for path in (tmp_path / "pictures").iterdir()) < 20_000 * len(sources)


def test_wide_images_keep_their_shape(tmp_path: Path) -> None:
    write_gallery(small_survey(tmp_path, [scored(8, 4)]), tmp_path / "out", tile_size=100)
    images = read_page(tmp_path / "out").all("img")
    assert {(image["width"], image["height"]) for image in images} == {("100", "50")}


def test_a_case_tells_its_figures(tmp_path: Path) -> None:
    cases = [scored(8, 4, point=(3, 4)), scored(0, 2, point=(15, 0), number=1)]
    write_gallery(small_survey(tmp_path, cases, prompts=("mask", "text")), tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert [text.split() for text in page.texts["figcaption"][1:5]] == [
        ["image"],
        ["coarse", "mask,", "point", "IoU", "0.40"],
        ["final", "mask", "IoU", "0.80"],
        ["ground", "truth"],
    ]
    facts = " ".join(page.texts["dd"])
    assert "0.25" in facts and "mask, text" in facts and "scene.png" in facts and "100" in facts
    assert "(3, 4), on the referent, not given to SAM" in facts
    assert "(15, 0), beside the referent, not given to SAM" in facts
    alternatives = [image["alt"] for image in page.all("img")]
    # 8 of 20 columns, and 4 of them.
    assert "Final mask in blue, 40.0 % of the image, from 0, 0 to 8, 10." in alternatives
    assert (
        "Coarse mask in orange, 20.0 % of the image, from 0, 0 to 4, 10, with the point marked at 3, 4."
        in alternatives
    )
    assert "Final mask in blue, empty." in alternatives


def test_the_summary_is_in_percent(tmp_path: Path) -> None:
    cases = [scored(8, 4, kind="location"), scored(4, 2, number=1, kind="relation")]
    write_gallery(small_survey(tmp_path, cases), tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert page.texts["th"][-4:] == ["final", "coarse", "final, location", "final, relation"]
    # mIoU of 0.8 and 0.4; oIoU 12 / 20; one of two above 0.5 and above 0.7.
    assert page.texts["td"][:5] == ["60.0", "60.0", "50.0", "50.0", "0.0"]
    assert page.texts["dd"][0].split() == ["60.0", "coarse", "30.0"]
    (label,) = [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    assert "final masks 0, 0, 0, 0, 1, 0, 0, 0, 1, 0" in label


def test_data_without_kinds_are_one_group(tmp_path: Path) -> None:
    write_gallery(small_survey(tmp_path, [scored(8)]), tmp_path / "out")
    assert read_page(tmp_path / "out").texts["h2"] == ["Summary", "all expressions"]
    mixed = small_survey(tmp_path, [scored(8, kind="location"), scored(8, number=1)])
    assert [mixed.title(kind) for kind in mixed.groups] == ["location", "of no kind"]


def test_generalised_scores_stand_below_the_others(tmp_path: Path) -> None:
    scores = {"gIoU": 0.5, "cIoU": 0.25, "N-acc": 1.0, "T-acc": None, "count": 7, "count_no_target": 3}
    survey = small_survey(tmp_path, [scored(0, truth=0), scored(3, truth=0, number=1)], generalised=scores)
    write_gallery(survey, tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert page.texts["td"][-6:] == ["50.0", "25.0", "100.0", "–", "7", "3"]
    assert "nothing is meant" in " ".join(page.texts["dd"])
    assert "Ground truth in green, empty." in [image["alt"] for image in page.all("img")]


EVIL = """<script>alert("1")</script> & 'x' \"><img src=x onerror=alert(1)>"""


def test_every_text_is_escaped(tmp_path: Path) -> None:
    cases = [
        scored(8, text=EVIL, kind='"><script>kind</script>'),
        scored(5, text=EVIL, number=1, kind="<i>x"),
    ]
    survey = small_survey(
        tmp_path, cases, name="<b>data", model='</title><script>"m"', file_name="a&b'\"<c>.png"
    )
    write_gallery(survey, tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert "script" not in {tag for tag, _ in page.tags} and "i" not in {tag for tag, _ in page.tags}
    assert {image["src"].partition("/")[0] for image in page.all("img")} == {"pictures"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.texts["h4"] == [EVIL, EVIL]
    assert page.texts["title"] == ['</title><script>"m" on <b>data val']
    assert page.texts["h2"][1:] == ['"><script>kind</script>', "<i>x"]
    assert "a&b'\"<c>.png" in page.texts["dd"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\nc\td", "a b c d"),
        ("broken \ud800 one", "broken ? one"),
        ("القارب على اليمين", "القارب على اليمين"),
        ("кот 🐈", "кот 🐈"),
    ],
)
def test_any_expression_can_be_shown(tmp_path: Path, text: str, shown: str) -> None:
    write_gallery(small_survey(tmp_path, [scored(8, text=text)]), tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert page.texts["h4"] == [shown]
    assert all(a["dir"] == "auto" for a in page.all("a") if a["href"].startswith("#g1-all-"))


# --------------------------------------------------------------------------------------------------- the folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_survey_gives_the_same_bytes(survey: Survey, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gallery(survey, tmp_path / name, 64)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_interrupted_rewrite_leaves_the_old_page_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_gallery(small_survey(tmp_path, [scored(8, 4)]), out)
    before = contents(out)
    write = gallery.write_whole
    written: list[Path] = []

    def stop_at_the_third(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(gallery, "write_whole", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_gallery(small_survey(tmp_path, [scored(2, 9)]), out)
    after = contents(out)
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    write_gallery(small_survey(tmp_path, [scored(2, 9)]), out)
    sources = {image["src"] for image in read_page(out).all("img")}
    assert set(contents(out)) == {"index.html", *sources}


def test_an_interrupted_first_run_leaves_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "render_page", fail)
    with pytest.raises(KeyboardInterrupt):
        write_gallery(small_survey(tmp_path, [scored(8)]), tmp_path / "out")
    assert not (tmp_path / "out" / "index.html").exists()


def test_files_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_gallery(small_survey(tmp_path, [scored(8)]), out)
    for name in ("mine.webp", "image-1-holiday.webp", "notes.txt"):
        (out / "pictures" / name).write_text("mine")
    write_gallery(small_survey(tmp_path, [scored(3)]), out)
    assert {"mine.webp", "image-1-holiday.webp", "notes.txt"} <= {
        p.name for p in (out / "pictures").iterdir()
    }


def test_a_page_of_another_origin_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>my homepage</title>")
    with pytest.raises(InputError, match=r"index\.html is not a gallery of promptris"):
        write_gallery(small_survey(tmp_path, [scored(8)]), tmp_path)
    assert (tmp_path / "index.html").read_text() == "<title>my homepage</title>"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be a folder"):
        check_gallery_folder(tmp_path / "file")
    (tmp_path / "odd" / "index.html").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot read"):
        check_gallery_folder(tmp_path / "odd")


# ------------------------------------------------------------------------------------------------- the command


def test_the_command(small_model: Any, dataset: ReferDataset, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path / "model", full=True)
    app = typer.Typer()
    app.command("gallery")(gallery_command)
    where = ["--dataset", "refshapes", "--split", "val", "--data-root", str(dataset.root)]
    arguments = [*where, "--model", str(tmp_path / "model"), "--prompts", "point,mask", "--per-group", "1"]
    result = CliRunner().invoke(app, [*arguments, "--tile", "64", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    page = read_page(tmp_path / "out")
    assert "prompts for SAM: mask, point" in " ".join(page.texts["p"])
    rows = [line.split() for line in result.stdout.splitlines()]
    final = next(row for row in rows if row[:1] == ["final"])
    assert page.texts["td"][:2] == [final[2], final[1]]  # the page begins with mIoU, the terminal with oIoU
    (tmp_path / "taken").write_text("")
    refused = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "taken")])
    assert isinstance(refused.exception, InputError)
    assert CliRunner().invoke(app, [*where, "--out", str(tmp_path), "--per-group", "0"]).exit_code == 2
