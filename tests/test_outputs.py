"""Names and files of written predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from promptris.errors import InputError
from promptris.outputs import PredictionWriter, parse_formats, safe_stem, slug, write_whole
from promptris.prediction import Prediction


def prediction(mask: np.ndarray, expression: str = "ring") -> Prediction:
    return Prediction(expression, mask, score=0.25, coarse_mask=mask, point=(2, 1))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("the red circle", "the-red-circle"),
        ("  The RED  circle!", "the-red-circle"),
        ("café à gauche", "cafe-a-gauche"),
        ("a/b\\c..d", "a-b-c-d"),
        ("№2 ②", "no2-2"),
    ],
)
def test_slug_of_latin_text(expression: str, expected: str) -> None:
    assert slug(expression) == expected


def test_slug_tells_apart_what_it_cannot_spell() -> None:
    expressions = ["красный", "синий", "red красный", "red синий", "?", "!", "red " * 50, "red " * 51]
    slugs = [slug(expression) for expression in expressions]
    assert len(set(slugs)) == len(slugs)
    assert all(name.isascii() and len(name) <= 49 and "/" not in name for name in slugs)
    assert slugs[2].startswith("red-")


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("photo 1", "photo_1"), ("..", "image"), ("-rf", "rf"), ("a\nb", "a_b"), ("x" * 300, "x" * 100)],
)
def test_safe_stem(stem: str, expected: str) -> None:
    assert safe_stem(stem) == expected


def test_safe_stem_is_cut_between_characters() -> None:
    assert safe_stem("狗" * 99) == "狗" * 33  # three bytes each


def test_formats_in_their_order_and_once() -> None:
    assert parse_formats(" rle, mask,rle,") == ("rle", "mask")


def test_formats_of_a_run_are_left_to_the_run(tmp_path: Path) -> None:
    formats = parse_formats("coco,rle,labelstudio")
    writer = PredictionWriter(tmp_path, formats)
    mask = np.ones((2, 2), dtype=bool)
    (files,) = writer.write("x.png", np.zeros((2, 2, 3), np.uint8), [prediction(mask)])
    assert [path.name for path in files] == ["x_01_ring_rle.json"]
    with pytest.raises(InputError, match=r"'gif': choose from mask, overlay, explain.*coco, labelstudio"):
        parse_formats("gif")


def test_stems_of_other_images_that_are_there_already_are_avoided(tmp_path: Path) -> None:
    known = {"x": "b/x.png", "x-3": "a/x.png"}
    writer = PredictionWriter(tmp_path, ["rle"])
    assert [writer.claim(image, known) for image in ("a/x.png", "b/x.png", "a/x.png")] == ["x-2", "x", "x-3"]
    writer.keep("Y")
    assert writer.claim("y.png") == "y-2"


@pytest.mark.parametrize(
    "image", ["../x.png", "../../etc/x", "/etc/x.png", "a/../x.png", "x\\..\\y", "..", "."]
)
@pytest.mark.parametrize("expression", ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "C:\\x", "CON"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, image: str, expression: str) -> None:
    out = tmp_path / "deep" / "out"
    writer = PredictionWriter(out, ["mask", "rle"])
    writer.write(image, np.zeros((2, 2, 3), np.uint8), [prediction(np.ones((2, 2), bool), expression)])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2 and all(path.parent == out for path in written)


def test_polygons_with_a_hole(tmp_path: Path) -> None:
    mask = np.zeros((7, 9), dtype=bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    ((path,),) = PredictionWriter(tmp_path, ["polygon"]).write(
        "x.png", np.zeros((7, 9, 3), np.uint8), [prediction(mask)]
    )
    content = json.loads(path.read_text())
    (region,) = content["regions"]
    assert len(region) == 2
    assert content["segmentation"] == [region[0]]
    assert content["size"] == [7, 9]


def test_an_empty_mask_can_be_written(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "new" / "folder", ["mask", "overlay", "rle", "polygon", "json"])
    empty = np.zeros((4, 6), dtype=bool)
    (paths,) = writer.write("x.png", np.zeros((4, 6, 3), np.uint8), [prediction(empty)])
    content = json.loads(paths[4].read_text())
    assert (content["area"], content["bbox"], content["score"]) == (0, [0, 0, 0, 0], 0.25)
    assert json.loads(paths[3].read_text())["segmentation"] == []


def test_a_taken_name_is_avoided_even_when_it_looks_like_a_numbered_one(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, ["rle"])
    pixels, mask = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), dtype=bool)
    names = ["a/x.png", "x-2.png", "b/x.png", "c/X.jpg"]
    files = [writer.write(name, pixels, [prediction(mask)])[0][0].name for name in names]
    assert files == [f"{stem}_01_ring_rle.json" for stem in ("x", "x-2", "x-3", "X-4")]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*mask\.png: No space left"):
        write_whole(path, b"new content")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.png"]


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"out is a file"):
        PredictionWriter(tmp_path / "out", ["mask"])
    with pytest.raises(InputError, match=r"a file is in its place"):
        write_whole(tmp_path / "out" / "deep" / "x.png", b"")
    assert (tmp_path / "out").read_text() == "mine"
