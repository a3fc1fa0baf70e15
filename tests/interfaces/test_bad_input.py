"""What nobody should give, given to the command line and to Python: a clear sentence, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import promptris as package
from promptris.errors import InputError
from promptris.predictor import Predictor

Command = Callable[..., Any]
LONG = "the red circle " * 3334  # 10,002 words


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds nothing more."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return start + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def encoded(format: str, size: tuple[int, int] = (200, 150)) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


BAD_IMAGES = {
    "empty.png": (b"", "is not an image"),
    "text.jpg": (b"hello, I am no picture", "is not an image"),
    "page.png": (b"<html><body>404</body></html>", "is not an image"),
    "cut.png": (encoded("PNG")[:3000], "damaged or cut off"),
    "cut.jpg": (encoded("JPEG")[:3000], "damaged or cut off"),
    "cut.webp": (encoded("WEBP")[:3000], "damaged or cut off"),
    "large.png": (png_header(20_000, 20_000), "more than the 100,000,000 pixels that are accepted"),
    "thin.png": (png_header(2_000_000_000, 1), "that are accepted"),
    "lies.png": (png_header(100, 100), "damaged or cut off"),
}


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return package.load(model_folder)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(
    promptris: Command, predictor: Predictor, tmp_path: Path, name: str, model_folder: Path
) -> None:
    content, words = BAD_IMAGES[name]
    path = tmp_path / name
    path.write_bytes(content)
    start = time.perf_counter()
    for given in (path, str(path), content):
        with pytest.raises(InputError, match=words) as caught:
            predictor.set_image(given)
        assert "\n" not in str(caught.value) and (given is content or name in str(caught.value))
    assert time.perf_counter() - start < 5  # nothing of 20,000 x 20,000 pixels is decoded
    promptris("segment", path, "ring", "--model", model_folder).refused(name, words)
    assert not list(Path.cwd().iterdir())


def test_a_folder_of_bad_images_and_a_good_one(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: Callable[..., Path]
) -> None:
    for name, (content, _) in BAD_IMAGES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "broken.png").symlink_to("gone.png")
    run = promptris("segment", tmp_path, "ring", "--model", model_folder)
    assert (run.code, run.out) == (2, "")
    assert len(run.complaints) == len(BAD_IMAGES) + 1
    assert all(any(name in line for line in run.complaints) for name in (*BAD_IMAGES, "broken.png"))
    assert not list(Path.cwd().iterdir())
    save_noise(tmp_path / "good.png")
    run = promptris("segment", tmp_path, "ring", "--model", model_folder, "--format", "mask,coco")
    assert (run.code, len(run.records)) == (1, 1)
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 1


@pytest.mark.parametrize("expression", ["", " ", "\t\n", "\u3000"])
def test_empty_expressions(promptris: Command, predictor: Predictor, photo: Path, expression: str) -> None:
    with pytest.raises(InputError, match="empty"):
        predictor.set_image(photo).predict(expression)
    promptris("segment", photo, expression).refused("expression 1 of 1 is empty")
    promptris("segment", photo, "ring", expression).refused("expression 2 of 2 is empty")
    line = json.dumps({"image": str(photo), "expressions": ["ring", expression]})
    promptris("segment", "-", stdin=line).refused("line 1 of standard input has an expression that is empty")


@pytest.mark.parametrize("expression", [None, 5, b"ring", ["ring"]])
def test_expressions_that_are_no_text(predictor: Predictor, photo: Path, expression: Any) -> None:
    with pytest.raises(InputError, match="must be text"):
        predictor.set_image(photo).predict([expression])


def test_ten_thousand_words_are_answered_with_a_warning(
    promptris: Command, predictor: Predictor, photo: Path, model_folder: Path
) -> None:
    with_image = predictor.set_image(photo)
    with_image.predict("ring")
    start = time.perf_counter()
    with pytest.warns(UserWarning, match=r"has \d+ tokens; the model reads the first 22"):
        answer = with_image.predict(LONG)
    assert time.perf_counter() - start < 5
    assert answer.mask.shape == (32, 48) and answer.expression == LONG
    formats = "mask,overlay,explain,rle,polygon,json,coco,labelstudio"
    run = promptris("segment", photo, LONG, "x" * 30_000, "--model", model_folder, "--format", formats)
    assert (run.code, len(run.records)) == (0, 2)
    assert run.err.count("the model reads the first 22") >= 1
    assert all(len(Path(file).name) < 120 for record in run.records for file in record["files"])


def test_names_that_lead_elsewhere(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: Any
) -> None:
    save_noise(tmp_path / "x.png")
    save_noise(tmp_path / "work" / "..hidden..png")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    expressions = ["../../etc/passwd", "/etc/passwd", "..", "..\\..\\x", "~/x", "a/../../b"]
    formats = "mask,overlay,rle,polygon,json,coco,labelstudio"
    for image in ("../x.png", str(tmp_path / "work" / ".." / "x.png"), "..hidden..png"):
        run = promptris(
            "segment", image, *expressions, "--model", model_folder, "--out", "res", "--format", formats
        )
        assert run.code == 0 and len(run.records) == len(expressions)
    lines = [json.dumps({"image": "../x.png", "expressions": expressions})]
    lines.append(json.dumps({"image": "../../../../../../../../etc/passwd", "expressions": ["ring"]}))
    lines.append(json.dumps({"image": "/dev/zero", "expressions": ["ring"]}))
    lines.append(json.dumps({"image": "a\0b", "expressions": ["ring"]}))
    run = promptris("segment", "-", "--model", model_folder, "--out", "res", stdin="\n".join(lines))
    assert run.code == 1 and len(run.complaints) == 3
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written and all(path.parent == tmp_path / "work" / "res" for path in written)


def test_names_that_are_no_text(
    promptris: Command, tmp_path: Path, model_folder: Path, save_noise: Any
) -> None:
    """File names are bytes; those that are not UTF-8 come as lone surrogates."""
    name = b"caf\xe9.png"
    try:
        save_noise(tmp_path / "x" / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    formats = "mask,json,coco,labelstudio"
    run = promptris("segment", tmp_path / "x", "ring", "--model", model_folder, "--format", formats)
    assert run.code == 0 and run.records[0]["image"] == str(tmp_path / "x" / os.fsdecode(name))
    (task,) = json.loads(Path("out/labelstudio.json").read_text())
    assert task["data"]["image"].endswith("/x/caf%E9.png")
    again = promptris(
        "segment", tmp_path / "x", "ring", "--model", model_folder, "--format", formats, "--resume"
    )
    assert again.out == run.out and "1 of 1" in again.err
    line = json.dumps({"image": "\ud800.png", "expressions": ["ring"]})
    promptris("segment", "-", "--model", model_folder, stdin=line).refused("cannot read")


@pytest.mark.parametrize("name", ["nosuchmodel", "no/such/model", "../tiny", "", " ", "a\0b", "x" * 5000])
def test_unknown_models(promptris: Command, photo: Path, name: str) -> None:
    with pytest.raises(package.PromptRISError) as caught:
        package.load(name)
    assert "\n" not in str(caught.value).strip()
    promptris("segment", photo, "ring", "--model", name).refused()
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("box", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1;2;3;4"])
def test_boxes_that_are_none(promptris: Command, photo: Path, box: str) -> None:
    promptris("segment", photo, "ring", "--box", box).refused("--box", "X,Y,WIDTH,HEIGHT")


@pytest.mark.parametrize("box", ["40,0,9,9", "-1,0,9,9", "0,0,0,5", "nan,0,5,5", "0,0,inf,5", "1e300,0,5,5"])
def test_boxes_outside_the_image(promptris: Command, photo: Path, model_folder: Path, box: str) -> None:
    run = promptris("segment", photo, "ring", "--model", model_folder, f"--box={box}")
    run.refused("48 x 32 image", "photo.png")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        None,
        5,
        ["x.png"],
    ],
)
def test_images_that_are_none_in_python(predictor: Predictor, image: Any) -> None:
    with pytest.raises(InputError, match="an image"):
        predictor.set_image(image)


@pytest.mark.parametrize(
    ("mode", "color", "shown"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_unusual_pictures_are_what_they_look_like(
    promptris: Command, tmp_path: Path, model_folder: Path, mode: str, color: Any, shown: tuple[int, ...]
) -> None:
    from promptris.images import load_image

    Image.new(mode, (1, 1), color).save(tmp_path / "dot.png")
    assert tuple(load_image(tmp_path / "dot.png")[0, 0]) == shown
    run = promptris("segment", tmp_path / "dot.png", "🐶 красный 红色的圆 دائرة", "--model", model_folder)
    assert (run.code, run.records[0]["expression"]) == (0, "🐶 красный 红色的圆 دائرة")
