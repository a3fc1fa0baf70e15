"""`promptris data describe` and `promptris data sheet`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.interfaces.describe import describe_command, sheet_command

Command = Callable[..., str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_refshapes(folder, {"train": 12, "val": 3}, seed=2)
    return folder


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs one of the two commands in an empty folder; what it prints. Errors come as they are."""
    app = typer.Typer(rich_markup_mode=None)
    app.command("describe")(describe_command)
    app.command("sheet")(sheet_command)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> str:
        assert app([str(argument) for argument in arguments], standalone_mode=False) == 0
        return capsys.readouterr().out

    return run


def rows(out: str) -> dict[str, list[str]]:
    """Cells by the first one, of the last line that begins with it."""
    return {cells[0]: cells[1:] for line in out.splitlines() if (cells := line.split())}


def counted(world: Path, split: str) -> tuple[int, int, list[str]]:
    """Referents, expressions and texts of a split, from the file."""
    refs = pickle.loads((world / "refshapes" / "refs(unc).p").read_bytes())
    chosen = [ref for ref in refs if ref["split"] == split]
    texts = [sentence["sent"] for ref in chosen for sentence in ref["sentences"]]
    return len(chosen), len(texts), texts


# ---------------------------------------------------------------------------------------------------- describe


def test_describe_tells_what_is_in_the_files(data: Command, world: Path) -> None:
    out = data("describe", "refshapes", "--data-root", world)
    assert out.startswith("refshapes unc")
    for split, images in (("train", 12), ("val", 3)):
        referents, expressions, texts = counted(world, split)
        line = next(line for line in out.splitlines() if line.startswith(split))
        assert line.split()[1:4] == [str(images), str(referents), str(expressions)]
        the = sum(text.split().count("the") for text in texts)
        assert f"the {the}" in out
    table = rows(out)
    _, expressions, texts = counted(world, "train")
    five = sum(len(text.split()) == 5 for text in texts)
    assert table["5"][0] == f"{100 * five / expressions:.1f}"
    for name in ("kind", "size", "distractors", "same_category", "category_group", "visible"):
        assert name in table


def test_describe_one_split_and_json(data: Command, world: Path, tmp_path: Path) -> None:
    out = data("describe", "refshapes", "--data-root", world, "--split", "val", "--json", "deep/numbers.json")
    assert "train" not in out
    content = json.loads((tmp_path / "deep" / "numbers.json").read_text())
    assert (content["name"], content["split_by"], content["left_out"]) == ("refshapes", "unc", 0)
    (val,) = content["splits"].values()
    referents, expressions, texts = counted(world, "val")
    assert (val["images"], val["referents"], val["expressions"]) == (3, referents, expressions)
    assert val["frequent_words"]["the"] == sum(text.split().count("the") for text in texts)
    assert sum(val["kinds"].values()) == expressions
    assert sum(val["tags"]["size"].values()) == expressions


def test_describe_needs_no_images(data: Command, world: Path, tmp_path: Path) -> None:
    (tmp_path / "refcoco").symlink_to(world / "refshapes")
    assert "expressions" in data("describe", "refcoco", "--data-root", tmp_path)


def test_describe_says_what_is_left_out(
    data: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_refshapes(tmp_path / "w", {"train": 2}, seed=2)
    path = tmp_path / "w" / "refshapes" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    refs[0]["ann_id"] = 10**6
    path.write_bytes(pickle.dumps(refs, protocol=2))
    describe_command("refshapes", tmp_path / "w")
    captured = capsys.readouterr()
    assert "left out because it cannot be used: 1 item;" in captured.err
    assert rows(captured.out)["train"] and str(len(refs) - 1) in captured.out


def test_describe_own_data_of_many_categories_and_long_sentences(data: Command, tmp_path: Path) -> None:
    """Thirty categories, of which twenty are shown; a sentence of 25 words; nothing but a name as a tag."""
    folder = tmp_path / "own" / "mine"
    folder.mkdir(parents=True)
    ring = [[0, 0, 5, 0, 5, 5]]
    instances = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 10, "width": 10}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "segmentation": ring, "iscrowd": 0}
            for k in range(1, 31)
        ],
        "categories": [{"id": k, "name": f"sort{k}"} for k in range(1, 31)],
    }
    refs = [
        {
            "ref_id": k,
            "ann_id": k,
            "image_id": 1,
            "category_id": k,
            "split": "train",
            "sentences": [{"sent_id": k, "sent": "word " * (25 if k == 1 else 1) + f"w{k}\x1b[2J"}],
        }
        for k in range(1, 31)
    ]
    (folder / "refs(me).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances))
    out = data("describe", "mine", "--data-root", tmp_path / "own")
    table = rows(out)
    assert table["10"] == ["others", "10"]
    assert table["21"] == ["and", "more", "3.3"]
    assert "\x1b" not in out
    assert "tags" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["describe", "refshapes", "--split", "nix"], "no split 'nix'; it has train, val"),
        (["describe", "refshapes", "--split-by", "umd"], "umd"),
        (["describe", "elsewhere"], "elsewhere"),
        (["describe", "refshapes", "--json", "/dev/null/x.json"], "/dev/null"),
        (["sheet", "refshapes", "--split", "nix"], "no split 'nix'"),
        (["sheet", "refshapes", "--split", "val", "--out", "sheet.gif"], "sheet.gif"),
        (["sheet", "refshapes", "--split", "val", "--columns", "0"], "--columns 0"),
        (["sheet", "refshapes", "--split", "val", "--count", "0"], "0 images"),
    ],
)
def test_wrong_use_is_named(data: Command, world: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        data(*arguments, "--data-root", world)
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------- sheet


def test_sheet_draws_a_page(data: Command, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data("sheet", "refshapes", "--data-root", world, "--split", "train", "--count", "6", "--columns", "3")
    with Image.open("sheet.png") as page:
        assert page.mode == "RGB"
        assert page.width == 2 * 24 + 3 * 224 + 2 * 18
        assert page.height > 2 * 224


def test_sheet_is_the_same_for_the_same_seed(data: Command, world: Path) -> None:
    where = ("sheet", "refshapes", "--data-root", world, "--split", "train", "--count", "2")
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        data(*where, "--out", name, "--seed", seed)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_sheet_in_few_colours_or_as_jpeg(data: Command, world: Path) -> None:
    where = ("sheet", "refshapes", "--data-root", world, "--split", "val")
    data(*where, "--out", "full.png")
    data(*where, "--out", "deep/few.png", "--palette")
    data(*where, "--out", "photo.JPG")
    with Image.open("deep/few.png") as few, Image.open("photo.JPG") as photo:
        assert few.mode == "P" and photo.format == "JPEG" and few.size == photo.size
    assert Path("deep/few.png").stat().st_size < 0.5 * Path("full.png").stat().st_size


def test_sheet_names_a_missing_image(data: Command, tmp_path: Path) -> None:
    write_refshapes(tmp_path / "w", {"val": 1}, seed=2)
    next((tmp_path / "w" / "images").iterdir()).unlink()
    with pytest.raises(InputError, match=r"refshapes_000000000001\.jpg"):
        data("sheet", "refshapes", "--data-root", tmp_path / "w", "--split", "val")
