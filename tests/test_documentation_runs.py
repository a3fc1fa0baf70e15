"""Python blocks and quick commands of README and docs/ are executed, in a folder that has what they name."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from documented import PAGES, ROOT, blocks, commands
from PIL import Image

from promptris.data.published import PUBLISHED
from promptris.data.refshapes import WorldOptions, make_example
from promptris.data.refshapes.writer import write_refshapes
from promptris.interfaces.cli import main

TESTED_BY_ITSELF = "own-photos.md"
"""Executed from top to bottom by tests/interfaces/test_own_photos_page.py."""
PYTHON = [
    block
    for page in PAGES
    if page.name != TESTED_BY_ITSELF
    for block in blocks(page)
    if block.kind == "python"
]

QUICK = {
    "README.md": ["promptris doctor", 'promptris segment photo.jpg "the red circle" "the star on the left"'],
    "quickstart.md": [
        "promptris refshapes scenes --splits test:3 --seed 5",
        'promptris segment scenes/images/refshapes_000000000001.jpg "the big purple circle" "the square" --out masks',
    ],
    "own-data.md": ["promptris data check desk"],
}
"""Commands that are executed; each must stand on its page as it is here."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images and data sets that the pages speak of, small."""
    folder = tmp_path_factory.mktemp("documentation")
    scene = Image.fromarray(make_example(5, 0, WorldOptions()).image)
    for name in ("scene.png", "photo.jpg"):
        scene.save(folder / name)
    write_refshapes(folder / "DIR", {"train": 1, "val": 1}, seed=0, options=WorldOptions())
    write_refshapes(folder / "scenes", {"test": 3}, seed=5, options=WorldOptions())
    write_refcoco(folder / "DATA")
    write_desk(folder / "desk")
    return folder


def write_refcoco(root: Path) -> None:
    """All four data sets in REFER's layout: a dog on each of a few images, for every split that there should be."""
    (root / "images" / "train2014").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, 20):
        name = f"COCO_train2014_{number:012d}.jpg"
        Image.new("RGB", (50, 40), (number, 0, 0)).save(root / "images" / "train2014" / name)
        images.append({"id": number, "file_name": name, "width": 50, "height": 40})
        polygon = [[5, 5, 30, 5, 30, 20]]
        annotations.append({"id": number, "image_id": number, "category_id": 18, "segmentation": polygon})
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}
    fresh = iter(range(2, 20))
    for name, split_by in (
        ("refcoco", "unc"),
        ("refcoco+", "unc"),
        ("refcocog", "umd"),
        ("refcocog", "google"),
    ):
        refs = []
        for split in PUBLISHED[name, split_by]:
            number = 1 if split == "train" else next(fresh)
            sentence = {"sent_id": len(refs), "sent": "the dog", "raw": "The dog.", "tokens": ["the", "dog"]}
            ref = {"ref_id": len(refs), "ann_id": number, "image_id": number, "category_id": 18}
            refs.append({**ref, "split": split, "file_name": "", "sentences": [sentence]})
        (root / name).mkdir(exist_ok=True)
        (root / name / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
        (root / name / "instances.json").write_text(json.dumps(instances))


def write_desk(folder: Path) -> None:
    """The example of docs/own-data.md, its table as it stands there."""
    page = ROOT / "docs" / "own-data.md"
    layout, table, *_ = [block.text for block in blocks(page) if block.kind == "text"]
    for name in ("photos", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "expressions.csv").write_text(table)
    for path in re.findall(r"^  (\S+\.(?:jpg|png))$", layout, re.M):
        mask = np.zeros((40, 60), np.uint8)
        mask[5:15, 5:20], mask[20:30, 30:50] = 1, 2
        image = Image.fromarray(mask)
        (image if path.startswith("masks") else image.convert("RGB")).save(folder / path)


def test_most_python_blocks_are_executed():
    run = [block for block in PYTHON if block.is_run]
    assert len(run) >= 6 and {block.page.name for block in run} >= {
        "README.md",
        "quickstart.md",
        "own-data.md",
    }


@pytest.mark.parametrize("block", [b for b in PYTHON if b.is_run], ids=lambda block: block.where)
def test_python(block, place, monkeypatch):
    monkeypatch.chdir(place)
    known: dict[str, object] = {}
    for earlier in PYTHON:  # blocks of a page build on each other
        if (
            earlier.page == block.page
            and earlier.line < block.line
            and earlier.is_run
            and "import" in earlier.text
        ):
            exec(compile("\n".join(imports(earlier.text)), earlier.where, "exec"), known)
    exec(compile(block.text, block.where, "exec"), known)


def imports(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("import ", "from "))]


@pytest.mark.parametrize(
    ("page", "line"),
    [(page, line) for page, lines in QUICK.items() for line in lines],
    ids=lambda value: value[:40],
)
def test_quick_commands(page, line, place, monkeypatch, capsys):
    path = next(candidate for candidate in PAGES if candidate.name == page)
    words = shlex.split(line)
    assert words in [found for block in blocks(path) if block.is_shell for found in commands(block.text)]
    monkeypatch.chdir(place)
    assert main(words[1:]) == 0, capsys.readouterr().err
    if words[1] == "segment":
        records = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
        assert len(records) == 2 and all(
            (place / file).is_file() for record in records for file in record["files"]
        )
        # The quick start's objects are in its scene; README's photo shows whatever it shows.
        assert page == "README.md" or all(
            record["area"] > 500 and record["score"] > 0.7 for record in records
        )


@pytest.mark.slow
def test_the_quick_start_trains(place, monkeypatch, capsys):
    page = ROOT / "docs" / "quickstart.md"
    lines = [words for block in blocks(page) if block.is_shell for words in commands(block.text)]
    monkeypatch.chdir(place)
    for words in lines:
        if "runs/smoke" in words or "runs/smoke/model" in words:
            assert main(words[1:]) == 0, capsys.readouterr().err
    assert (place / "runs" / "smoke" / "model" / "README.md").is_file()
