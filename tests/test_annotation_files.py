"""A run's predictions in one file, read as the tools that take them do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools.coco import COCO

from promptris.annotation_files import write_run
from promptris.errors import InputError
from promptris.finished_items import Item
from promptris.ops.masks import mask_bbox
from promptris.ops.run_lengths import mask_to_rle

FACTS = {"model": "tiny", "threshold": 0.5}


def masks() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        (image, text): rng.random(size) < 0.4
        for image, size in (("a/x.png", (7, 9)), ("b/ü x.png", (12, 5)))
        for text in ("ring", "the red star")
    }
    found["b/ü x.png", "ring"][:] = False
    return found


def items() -> list[Item]:
    made: dict[str, Item] = {}
    for (image, text), mask in masks().items():
        item = made.setdefault(image, Item(image, image, "x", list(mask.shape), [], [], []))
        item.records.append(
            {"expression": text, "score": 0.25, "area": int(mask.sum()), "bbox": mask_bbox(mask)}
        )
        item.segmentations.append(mask_to_rle(mask))
    return list(made.values())


def test_coco(tmp_path: Path) -> None:
    path = write_run("coco", tmp_path, items, ("ring", "the red star"), FACTS)
    assert path == tmp_path / "coco.json"
    content = json.loads(path.read_text())
    assert content["info"]["model"] == "tiny"
    assert content["images"][1] == {"id": 2, "file_name": "b/ü x.png", "height": 12, "width": 5}
    coco = COCO(path)
    expected = masks()
    assert len(coco.anns) == len(expected) == 4
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]["file_name"]
        mask = expected[image, annotation["expression"]]
        assert (coco.annToMask(annotation) == mask).all()
        assert (annotation["area"], annotation["bbox"]) == (mask.sum(), mask_bbox(mask))
        assert coco.cats[annotation["category_id"]]["name"] == annotation["expression"]
        assert (annotation["score"], annotation["iscrowd"]) == (0.25, 0)


def test_coco_of_images_with_expressions_of_their_own(tmp_path: Path) -> None:
    path = write_run("coco", tmp_path, lambda: [*items(), items()[0]], (), FACTS)
    content = json.loads(path.read_text())
    assert content["categories"] == [{"id": 1, "name": "referent"}]
    assert [image["file_name"] for image in content["images"]] == ["a/x.png", "b/ü x.png"]
    assert [a["image_id"] for a in content["annotations"]] == [1, 1, 2, 2, 1, 1]
    assert len({a["id"] for a in content["annotations"]}) == 6


def test_label_studio(tmp_path: Path, decode_brush: Callable[[list[int]], list[int]]) -> None:
    path = write_run("labelstudio", tmp_path, items, ("ring", "the red star"), FACTS)
    tasks = json.loads(path.read_text())
    assert [task["data"] for task in tasks] == [
        {"image": "/data/local-files/?d=a/x.png", "path": "a/x.png"},
        {"image": "/data/local-files/?d=b/%C3%BC%20x.png", "path": "b/ü x.png"},
    ]
    config = ElementTree.parse(tmp_path / "labelstudio.xml").getroot()
    brush = config.find("BrushLabels")
    assert [label.get("value") for label in brush] == ["ring", "the red star"]
    for task in tasks:
        (prediction,) = task["predictions"]
        assert (prediction["model_version"], prediction["score"]) == ("tiny", 0.25)
        assert len({region["id"] for region in prediction["result"]}) == 2
        for region in prediction["result"]:
            (expression,) = region["meta"]["text"]
            mask = masks()[task["data"]["path"], expression]
            assert (region["original_height"], region["original_width"]) == mask.shape
            assert region["type"] == "brushlabels" and region["value"]["format"] == "rle"
            assert region["value"]["brushlabels"] == [expression]
            assert (region["from_name"], region["to_name"]) == (brush.get("name"), brush.get("toName"))
            assert decode_brush(region["value"]["rle"]) == np.repeat(mask.reshape(-1) * 255, 4).tolist()


def test_label_studio_with_any_expression(tmp_path: Path) -> None:
    odd = 'a "<b>" & \x01 \n dog'
    item = items()[0]
    item.records[0]["expression"] = odd
    path = write_run("labelstudio", tmp_path, lambda: [item], (odd, "the red star"), FACTS)
    (task,) = json.loads(path.read_text())
    labels = [region["value"]["brushlabels"] for region in task["predictions"][0]["result"]]
    config = ElementTree.parse(tmp_path / "labelstudio.xml").getroot()
    assert (
        labels
        == [[label.get("value")] for label in config.iter("Label")]
        == [['a "<b>" & dog'], ["the red star"]]
    )
    write_run("labelstudio", tmp_path, lambda: [item], (), FACTS)
    (label,) = ElementTree.parse(tmp_path / "labelstudio.xml").getroot().iter("Label")
    assert label.get("value") == "referent"


@pytest.mark.parametrize("name", ["coco", "labelstudio"])
def test_a_run_that_fails_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = write_run(name, tmp_path, items, (), FACTS)
    before = path.read_bytes()

    def breaks():
        yield items()[0]
        raise OSError(5, "Input/output error")

    with pytest.raises(InputError, match="Input/output error"):
        write_run(name, tmp_path, breaks, (), FACTS)
    assert path.read_bytes() == before
    assert not [entry for entry in tmp_path.iterdir() if "partial" in entry.name]


def test_an_absolute_path_is_seen_from_the_root(tmp_path: Path) -> None:
    item = Item("k", "/photos/a b.jpg", "a", [7, 9], items()[0].records, [], items()[0].segmentations)
    (task,) = json.loads(write_run("labelstudio", tmp_path, lambda: [item], (), FACTS).read_text())
    assert task["data"]["image"] == "/data/local-files/?d=photos/a%20b.jpg"
