"""Fig. 4: which sentences it shows, what stands under the masks, and the file it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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
from promptris.evaluation.protocol import Scored
from promptris.experiments import figures
from promptris.experiments.figures import (
    check_figure_path,
    coarse_iou,
    draw_figure,
    named_sentences,
    random_sentences,
    score_sentences,
    write_figure,
)
from promptris.interfaces.pictures import figure_command, parse_ids
from promptris.prediction import Prediction


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    """Four scenes."""
    folder = tmp_path_factory.mktemp("world") / "data"
    write_refshapes(folder, {"val": 4}, 5, WorldOptions(size=64))
    return read_refer(folder, "refshapes")


class Painter:
    """Answers every expression with the image's upper rows: 4 of them as coarse mask, 8 as final one."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...] | None]] = []

    def answer_images(
        self,
        images: Sequence[np.ndarray],
        expressions: Sequence[str],
        image_index: Sequence[int],
        prompts: tuple[Any, ...] | None = None,
    ) -> list[Prediction]:
        self.asked += [(text, prompts) for text in expressions]
        return [
            Prediction(text, rows(images[i].shape[:2], 8), 0.5, rows(images[i].shape[:2], 4), (1, 2))
            for text, i in zip(expressions, image_index, strict=True)
        ]


def rows(size: tuple[int, ...], count: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[:count] = True
    return mask


def one(text: str, image_id: int = 1) -> Scored:
    """Coarse IoU 4/10, final IoU 8/10 on a 16 x 16 image."""
    referent = Referent(1, 1, image_id, 1, "val", (Expression(1, text),), (1,))
    answer = Prediction(text, rows((16, 16), 8), 0.9, rows((16, 16), 4), (3, 2))
    return Scored(referent, referent.expressions[0], answer, rows((16, 16), 10))


@pytest.fixture
def images(tmp_path: Path) -> dict[int, ImageRecord]:
    Image.new("RGB", (16, 16), (90, 90, 90)).save(tmp_path / "1.png")
    Image.new("RGB", (10, 20), (90, 90, 90)).save(tmp_path / "2.png")
    return {
        1: ImageRecord(1, tmp_path / "1.png", 16, 16),
        2: ImageRecord(2, tmp_path / "2.png", 20, 10),
    }


# ------------------------------------------------------------------------------------------------- the choice


def test_random_sentences_are_of_different_images_while_there_are_any(dataset: ReferDataset) -> None:
    for seed in range(10):
        chosen = random_sentences(dataset, "val", 4, seed)
        assert len({referent.image_id for referent, _ in chosen}) == 4
    more = random_sentences(dataset, "val", 7, 0)
    assert len({expression.sent_id for _, expression in more}) == 7
    assert len({referent.image_id for referent, _ in more}) == 4


def test_the_seed_makes_the_choice(dataset: ReferDataset) -> None:
    draws = [[e.sent_id for _, e in random_sentences(dataset, "val", 3, seed)] for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1


def test_a_split_that_is_too_small_is_shown_whole(dataset: ReferDataset) -> None:
    everything = {e.sent_id for _, e in dataset.samples("val")}
    chosen = [e.sent_id for _, e in random_sentences(dataset, "val", 10_000)]
    assert len(chosen) == len(everything) and set(chosen) == everything


def test_named_sentences_come_in_the_order_of_their_names(dataset: ReferDataset) -> None:
    ids = [e.sent_id for _, e in dataset.samples("val")]
    wanted = [ids[5], ids[0], ids[5], ids[2]]
    assert [e.sent_id for _, e in named_sentences(dataset, "val", wanted)] == [ids[5], ids[0], ids[2]]


def test_what_cannot_be_chosen_is_named(dataset: ReferDataset) -> None:
    first = dataset.samples("val")[0][1].sent_id
    with pytest.raises(InputError, match="no sentence 99999, -3 in 'val'"):
        named_sentences(dataset, "val", [first, 99999, -3])
    with pytest.raises(InputError, match="'testB'"):
        random_sentences(dataset, "testB", 2)
    with pytest.raises(InputError, match="0 expressions"):
        random_sentences(dataset, "val", 0)
    with pytest.raises(InputError, match="no expression to show in 'val'"):
        random_sentences(dataset.only_categories(set()), "val", 2)


def test_only_the_chosen_sentences_are_asked(dataset: ReferDataset) -> None:
    painter, seen = Painter(), []
    sentences = random_sentences(dataset, "val", 3)
    scored = list(
        score_sentences(
            painter, dataset, sentences, ("mask",), lambda done, total: seen.append((done, total))
        )
    )
    assert painter.asked == [(expression.text, ("mask",)) for _, expression in sentences]
    assert [(s.referent, s.expression) for s in scored] == sentences
    assert all(np.array_equal(s.truth, dataset.mask(s.referent)) for s in scored)
    assert seen == [(1, 3), (2, 3), (3, 3)]


# ------------------------------------------------------------------------------------------------- the figure


def test_the_figure_has_four_captioned_pictures_a_row(
    images: dict[int, ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    panel = figures.panel
    monkeypatch.setattr(figures, "panel", lambda *a: given.append(a) or panel(*a))
    picture = draw_figure([one("left"), one("right")], images, tile_size=128)
    rows_, titles = given[0][:2]
    captions = ["image", "coarse mask and point, IoU 0.40", "final mask, IoU 0.80", "ground truth"]
    assert [[caption for caption, _ in row] for row in rows_] == [captions, captions]
    assert titles == ["(a) left", "(b) right"]
    # Four tiles, three gaps of 128 // 20, two margins of 128 // 12.
    assert picture.width == 4 * 128 + 3 * 6 + 2 * 10
    single = draw_figure([one("left")], images, tile_size=128)
    assert 128 < single.height < picture.height
    assert coarse_iou(one("x")) == pytest.approx(0.4)


def test_many_rows_get_letters_as_in_a_spreadsheet() -> None:
    assert [figures._letter(n) for n in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        *("a", "z", "aa", "ab", "az", "ba", "zz", "aaa")
    ]


def test_an_image_that_does_not_fit_its_annotations_is_named(images: dict[int, ImageRecord]) -> None:
    Image.new("RGB", (5, 5)).save(images[1].path)
    with pytest.raises(InputError, match=r"1\.png has 5 x 5"):
        draw_figure([one("left")], images)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_every_format_keeps_the_size(tmp_path: Path, ending: str) -> None:
    picture = Image.new("RGB", (120, 70), (200, 30, 90))
    path = tmp_path / "new" / f"figure{ending}"
    write_figure(picture, path)
    with Image.open(path) as read:
        assert read.size == (120, 70)
        assert np.abs(np.subtract(read.convert("RGB").getpixel((60, 35)), (200, 30, 90))).max() < 8  # type: ignore[arg-type]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_pdf_is_one_and_repeats_its_bytes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (120, 70), (200, 30, 90))
    for name in ("a.pdf", "b.pdf"):
        write_figure(picture, tmp_path / name)
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and b"Date" not in content
    assert content == (tmp_path / "b.pdf").read_bytes()


def test_figures_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 17000))
    for name in ("figure.gif", "figure", "figure.svg"):
        with pytest.raises(InputError, match=rf"{name} has no ending.*\.png"):
            check_figure_path(tmp_path / name)
    with pytest.raises(InputError, match=r"tall\.webp: WebP holds 16383"):
        write_figure(picture, tmp_path / "tall.webp")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_figure(picture, tmp_path / "file" / "figure.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def model_folder(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "random"
    small_model.save_pretrained(folder, full=True)
    return folder


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command("figure")(figure_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_draws_named_sentences(dataset: ReferDataset, model_folder: Path, tmp_path: Path) -> None:
    samples = dataset.samples("val")
    ids = [samples[7][1].sent_id, samples[2][1].sent_id]
    result = run(
        *("--dataset", "refshapes", "--split", "val", "--data-root", dataset.root, "--model", model_folder),
        *("--sent-id", f"{ids[0]},{ids[1]}", "--tile", 64, "--out", tmp_path / "fig4.png"),
    )
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "fig4.png") as picture:
        assert picture.width == 4 * 64 + 3 * 3 + 2 * 5
    lines = [line for line in result.stdout.splitlines() if line.split() and line.split()[0].isdigit()]
    assert [int(line.split()[0]) for line in lines] == ids
    assert samples[7][1].text in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--count", "2", "--sent-id", "3"), "exclude each other"),
        (("--sent-id", "3,x"), "'3,x' is not a comma list"),
        (("--prompts", "box"), "'box'"),
        (("--threshold", "2"), "threshold"),
        (("--out", "figure.gif"), r"figure\.gif has no ending"),
    ],
)
def test_the_command_refuses(dataset: ReferDataset, arguments: tuple[str, ...], words: str) -> None:
    where = ("--dataset", "refshapes", "--split", "val", "--data-root", dataset.root, "--out", "x.png")
    result = run(*where, *arguments)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=words):
        raise result.exception


def test_ids_are_numbers() -> None:
    assert parse_ids("12, 15,-1") == [12, 15, -1]
    with pytest.raises(InputError, match="''"):
        parse_ids("")
