"""`promptris segment`: what it writes and prints, and how it refuses."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptris.ops.masks import mask_bbox
from promptris.ops.polygons import polygons_to_mask
from promptris.ops.run_lengths import rle_to_mask
from promptris.predictor import Predictor, load

Command = Callable[..., Any]
SaveNoise = Callable[..., Path]


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return load(model_folder)


def read_mask(path: str) -> Any:
    with Image.open(path) as image:
        assert image.mode == "1"
        return np.array(image)


# ----------------------------------------------------------------------------------------------- what it does


def test_record_agrees_with_the_written_mask(promptris: Command, photo: Path, model_folder: Path) -> None:
    run = promptris("segment", photo, "the red circle", "left star", "--model", model_folder, "--out", "res")
    assert run.code == 0
    assert [record["expression"] for record in run.records] == ["the red circle", "left star"]
    for record in run.records:
        assert set(record) == {"image", "expression", "score", "area", "bbox", "point", "files"}
        mask = read_mask(record["files"][0])
        assert mask.shape == (32, 48)
        assert (record["area"], record["bbox"]) == (int(mask.sum()), mask_bbox(mask))
        assert 0 <= record["score"] <= 1
        assert record["image"] == str(photo)
        assert 0 <= record["point"][0] < 48 and 0 <= record["point"][1] < 32
        with Image.open(record["files"][1]) as overlay:
            assert (overlay.size, overlay.mode) == ((48, 32), "RGB")
    written = sorted(str(path) for path in Path("res").iterdir())
    assert written == sorted(file for record in run.records for file in record["files"])
    assert run.records[0]["files"][0] == "res/photo_01_the-red-circle_mask.png"
    assert run.err == f"promptris: {model_folder} on cpu, float32, by torch\n"


def test_every_format_holds_the_same_mask(promptris: Command, photo: Path, model_folder: Path) -> None:
    formats = "rle,polygon,json,mask,rle"
    run = promptris("segment", photo, "ring", "--model", model_folder, "--format", formats)
    rle, polygon, full, mask = run.records[0]["files"]
    truth = read_mask(mask)
    assert 0 < truth.sum() < truth.size
    assert (rle_to_mask(json.loads(Path(rle).read_text())) == truth).all()
    polygons = json.loads(Path(polygon).read_text())
    assert polygons["size"] == [32, 48]
    assert (polygons_to_mask(polygons["regions"], 32, 48) == truth).all()
    assert polygons["segmentation"] == [region[0] for region in polygons["regions"]]
    content = json.loads(Path(full).read_text())
    assert (rle_to_mask(content["segmentation"]) == truth).all()
    assert (content["expression"], content["area"]) == ("ring", run.records[0]["area"])
    assert (content["model"], content["threshold"]) == (str(model_folder), 0.5)


def test_options_reach_the_model(
    promptris: Command, photo: Path, model_folder: Path, predictor: Predictor
) -> None:
    arguments = ("segment", photo, "ring", "--model", model_folder, "--format", "mask")
    image = predictor.set_image(photo)
    plain = promptris(*arguments).records[0]
    assert plain["area"] == image.predict("ring").area

    point = promptris(*arguments, "--prompts", "point").records[0]
    assert point["area"] == image.predict("ring", prompts=("point",)).area != plain["area"]

    clicked = promptris(*arguments, "--point", "3,4,1", "--point", "40,20,0").records[0]
    assert clicked["area"] == image.predict("ring", points=[(3, 4, 1), (40, 20, 0)]).area != plain["area"]

    strict = promptris(*arguments, "--threshold", "0.99").records[0]
    assert strict["area"] == Predictor(predictor.model, 0.99).set_image(photo).predict("ring").area
    assert strict["area"] < plain["area"]


def test_towers_that_have_moved_are_looked_for_there(
    promptris: Command, photo: Path, small_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def from_pretrained(*arguments: Any) -> Any:
        asked.append(arguments)
        return small_model

    monkeypatch.setattr("promptris.modeling.prompt_ris.PromptRIS.from_pretrained", from_pretrained)
    assert promptris("segment", photo, "ring", "--model", "m", "--clip", "c", "--sam", "s").code == 0
    assert asked == [("m", "c", "s", None)]


def test_half_precision_runs(promptris: Command, photo: Path, model_folder: Path) -> None:
    run = promptris("segment", photo, "ring", "--model", model_folder, "--dtype", "bfloat16")
    assert (run.code, len(run.records)) == (0, 1)
    assert "cpu, bfloat16" in run.err


def test_folder_takes_its_images_in_order(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: SaveNoise
) -> None:
    folder = tmp_path / "images"
    for name in ("b.png", "a.JPG", ".hidden.png", "c.webp"):
        save_noise(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "sub.png").mkdir()
    run = promptris("segment", folder, "ring", "--model", model_folder)
    assert run.code == 0
    assert [Path(record["image"]).name for record in run.records] == ["a.JPG", "b.png", "c.webp"]


def test_equal_names_from_different_folders_stay_apart(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: SaveNoise
) -> None:
    for folder in ("one", "two", "three"):
        save_noise(tmp_path / "many" / folder / ("x.png" if folder != "two" else "X.png"))
    pattern = tmp_path / "many" / "*" / "[xX].png"
    run = promptris("segment", pattern, "ring", "--model", model_folder, "--format", "mask")
    files = [file for record in run.records for file in record["files"]]
    assert len({file.casefold() for file in files}) == len(files) == 3
    assert all(Path(file).is_file() for file in files)


def test_one_bad_image_does_not_stop_the_others(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: SaveNoise
) -> None:
    for name in ("a.png", "z.png"):
        save_noise(tmp_path / "images" / name)
    (tmp_path / "images" / "m.png").write_bytes(b"not a picture")
    run = promptris("segment", tmp_path / "images", "ring", "--model", model_folder)
    assert run.code == 1
    assert [Path(record["image"]).name for record in run.records] == ["a.png", "z.png"]
    (sentence,) = run.complaints
    assert "m.png is not an image" in sentence
    assert not [path for path in Path("out").iterdir() if "m_" in path.name or "partial" in path.name]


def test_a_click_outside_one_of_the_images_names_it(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: SaveNoise
) -> None:
    save_noise(tmp_path / "images" / "large.png", size=(64, 64))
    save_noise(tmp_path / "images" / "small.png", size=(20, 20))
    run = promptris("segment", tmp_path / "images", "ring", "--model", model_folder, "--point", "50,50,1")
    assert run.code == 1
    (sentence,) = run.complaints
    assert "small.png: the click 50,50,1 is not" in sentence


def test_an_unexpected_error_stays_with_its_image(
    promptris: Command,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_noise: SaveNoise,
) -> None:
    for name in ("a.png", "b.png"):
        save_noise(tmp_path / "images" / name, size=(10 if name == "a.png" else 12, 10))
    encode = Predictor.encode

    def fails_on_a(self: Predictor, images: Any) -> Any:
        if images[0].shape[1] == 10:
            raise RuntimeError("boom\nmore")
        return encode(self, images)

    monkeypatch.setattr(Predictor, "encode", fails_on_a)
    run = promptris("segment", tmp_path / "images", "ring", "--model", model_folder)
    assert run.code == 1 and len(run.records) == 1
    (sentence,) = run.complaints
    assert sentence.endswith("a.png: unexpected RuntimeError: boom; run again with --debug for the traceback")
    for arguments in (["--debug", "segment"], ["segment", "--debug"]):
        run = promptris(*arguments, tmp_path / "images", "ring", "--model", model_folder)
        assert "Traceback" in run.err and "fails_on_a" in run.err


# ---------------------------------------------------------------------------------------------- standard input


def test_lines_of_standard_input(promptris: Command, photo: Path, model_folder: Path) -> None:
    lines = [
        json.dumps({"image": str(photo), "expressions": ["ring", "der rote Würfel"]}),
        "",
        '{"image": ',
        json.dumps({"image": str(photo), "expressions": ["ring"]}),
    ]
    run = promptris("segment", "-", "--model", model_folder, stdin="\n".join(lines))
    assert run.code == 1
    assert [record["expression"] for record in run.records] == ["ring", "der rote Würfel", "ring"]
    assert "der rote Würfel" in run.out
    (sentence,) = run.complaints
    assert "line 3 of standard input is not JSON" in sentence
    files = [file for record in run.records for file in record["files"]]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "x.png"}', 'no "expressions"'),
        ('{"image": "x.png", "expressions": []}', 'no "expressions"'),
        ('{"image": "x.png", "expressions": "ring"}', 'no "expressions"'),
        ('{"image": "x.png", "expressions": [5]}', "not text"),
        ('{"image": "x.png", "expressions": ["ring", " "]}', "is empty"),
        ('{"image": "x.png", "expressions": ["\\ud800"]}', "not valid Unicode"),
        ('{"expressions": ["ring"]}', 'no "image"'),
        ("[1, 2]", 'no "image"'),
        (b"\xff\xfe{}", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_broken_lines(promptris: Command, model_folder: Path, line: str | bytes, words: str) -> None:
    promptris("segment", "-", "--model", model_folder, stdin=line).refused("line 1 of standard input", words)


def test_standard_input_without_lines(promptris: Command, model_folder: Path) -> None:
    promptris("segment", "-", "--model", model_folder, stdin="\n\n").refused("standard input is empty")
    promptris("segment", "-", "ring", "--model", model_folder).refused("expressions come from standard input")


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png", "ring"], "nowhere.png"),
        (["no*where.png", "ring"], "no*where.png"),
        (["x" * 5000, "ring"], "File name too long"),
        (["PHOTO"], "no expression is given"),
        (["PHOTO", ""], "expression 1 of 1 is empty"),
        (["PHOTO", "ring", " \t"], "expression 2 of 2 is empty"),
        (["PHOTO", "bad \udcff"], "not valid Unicode"),
        (["PHOTO", "PHOTO"], "put a glob in quotes"),
        (["PHOTO", "ring", "--format", "mask,gif"], "unknown format 'gif'"),
        (["PHOTO", "ring", "--format", " ,"], "no format"),
        (["PHOTO", "ring", "--point", "1,2"], "--point '1,2'"),
        (["PHOTO", "ring", "--point", "a,b,1"], "--point 'a,b,1'"),
        (["PHOTO", "ring", "--point", "1,2,3"], "--point '1,2,3'"),
        (["PHOTO", "ring", "--point", "1,2,1,5"], "--point '1,2,1,5'"),
        (["PHOTO", "ring", "--point", "48,3,1"], "click 48,3,1"),
        (["PHOTO", "ring", "--point", "nan,3,1"], "click nan,3,1"),
        (["PHOTO", "ring", "--prompts", "mask,box"], "unknown prompt 'box'"),
        (["PHOTO", "ring", "--prompts", ""], "--prompts is empty"),
        (["PHOTO", "ring", "--threshold", "0"], "--threshold 0"),
        (["PHOTO", "ring", "--threshold", "1"], "--threshold 1"),
        (["PHOTO", "ring", "--threshold", "nan"], "--threshold nan"),
        (["PHOTO", "ring", "--threshold", "half"], "--threshold"),
        (["PHOTO", "ring", "--device", "gpu9"], "gpu9"),
        (["PHOTO", "ring", "--dtype", "float8"], "float8"),
        (["PHOTO", "ring", "--model", "nosuchmodel"], "nosuchmodel"),
        (["PHOTO", "ring", "--model", "PHOTO"], "is a file"),
        (["PHOTO", "ring", "--model", "no/such"], "no/such"),
        (["PHOTO", "ring", "--model", "vit-b"], "vit-b is a size"),
        (["PHOTO", "ring", "--model", "huge", "--random-weights"], "'huge'"),
        (["PHOTO", "ring", "--model", "vit-b", "--random-weights", "--clip", "x"], "takes no --clip"),
        (["PHOTO", "ring", "--out", "PHOTO"], "is a file"),
        (["PHOTO", "ring", "--out", "PHOTO/deep"], "a file is in its place"),
        (["PHOTO", "ring", "--no-such-option"], "--no-such-option"),
        ([], "image"),
    ],
)
def test_wrong_use_is_one_sentence(
    promptris: Command, photo: Path, model_folder: Path, arguments: list[str], words: str
) -> None:
    given = [argument.replace("PHOTO", str(photo)) for argument in arguments]
    model = [] if "--model" in given else ["--model", str(model_folder)]
    promptris("segment", *given, *model).refused(words)
    assert not list(Path.cwd().iterdir())


def test_random_weights_need_a_size(promptris: Command, photo: Path) -> None:
    promptris("segment", photo, "ring", "--random-weights").refused("add --model vit-b")


def test_folders_that_cannot_be_used(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: SaveNoise
) -> None:
    (tmp_path / "empty").mkdir()
    promptris("segment", tmp_path / "empty", "ring").refused("empty holds no images")
    save_noise(tmp_path / "full" / "a.png")
    full = tmp_path / "full"
    promptris("segment", full, "ring", "--out", full, "--model", model_folder).refused("another --out")
    assert [path.name for path in full.iterdir()] == ["a.png"]


def _huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "huge"])
def test_images_that_cannot_be_read(
    promptris: Command, tmp_path: Path, model_folder: Path, kind: str, save_noise: SaveNoise
) -> None:
    path = tmp_path / f"{kind}.jpg"
    save_noise(path, size=(200, 200))
    content = {
        "text": b"hello",
        "empty": b"",
        "cut": path.read_bytes()[:4000],
        "huge": _huge_png(),
    }[kind]
    path.write_bytes(content)
    promptris("segment", path, "ring", "--model", model_folder).refused(f"{kind}.jpg")
    assert not Path("out").exists()


# --------------------------------------------------------------------------------- unusual images, expressions


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("dot.png", "RGB", (1, 1)),
        ("line.png", "RGB", (300, 1)),
        ("alpha.png", "RGBA", (48, 32)),
        ("deep.png", "I;16", (48, 32)),
        ("ink.jpg", "CMYK", (48, 32)),
        ("palette.gif", "P", (48, 32)),
        ("grey.png", "LA", (48, 32)),
        ("bit.png", "1", (48, 32)),
    ],
)
def test_unusual_images(
    promptris: Command,
    tmp_path: Path,
    model_folder: Path,
    name: str,
    mode: str,
    size: tuple[int, int],
    save_noise: SaveNoise,
) -> None:
    path = save_noise(tmp_path / name, mode, size)
    run = promptris("segment", path, "ring", "--model", model_folder)
    assert run.code == 0
    assert read_mask(run.records[0]["files"][0]).shape == size[::-1]


def test_unusual_expressions(promptris: Command, photo: Path, model_folder: Path) -> None:
    expressions = [
        "🐶🔴",
        "красный круг",
        "红色的圆",
        "دائرة حمراء",
        "../../etc/passwd",
        "a\nb\0c"[:3],
        "?!",
        "ring " * 10_000,
    ]
    run = promptris("segment", photo, *expressions, "--model", model_folder, "--format", "mask")
    assert run.code == 0
    assert [record["expression"] for record in run.records] == expressions
    files = [Path(record["files"][0]) for record in run.records]
    assert len(set(files)) == len(expressions)
    for file in files:
        assert file.is_file() and file.parent == Path("out")
        assert file.name.isascii() and len(file.name) < 100
    assert "has 40000 tokens; the model reads the first 22" in run.err


# ---------------------------------------------------------------------------------------------- random weights


def test_random_weights_are_said_everywhere(promptris: Command, photo: Path) -> None:
    arguments = ["--model", "refshapes", "--random-weights", "--format", "mask,overlay,rle,polygon,json"]
    run = promptris("segment", photo, "ring", *arguments)
    assert run.code == 0
    note = "random weights: the mask is meaningless"
    assert note in run.err
    (record,) = run.records
    assert record["note"] == note
    mask, overlay, *others = record["files"]
    for path in (mask, overlay):
        with Image.open(path) as image:
            assert image.info["Comment"] == note
    with Image.open(overlay) as image:
        assert image.height > 32  # the note stands below the picture
    for path in others:
        assert json.loads(Path(path).read_text())["note"] == note
