"""Trivial answers and ceilings on a scene small enough to count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptris.data.catalog import read_dataset
from promptris.data.dataset import ReferDataset
from promptris.data.readers.refer import read_refer
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.evaluation.baselines import BASELINES, Baselines, score_baselines, through_grid
from promptris.evaluation.protocol import evaluate
from promptris.predictor import Predictor


def box(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture
def desk(tmp_path: Path) -> ReferDataset:
    """A 20 x 10 image: mug A of 4 x 4, mug B of 4 x 2, plate C of 8 x 5; one sentence about each mug."""
    folder = tmp_path / "desk"
    folder.mkdir()
    Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8)).save(folder / "a.png")
    boxes = {1: (0, 0, 4, 4), 2: (6, 0, 4, 2), 3: (12, 5, 8, 5)}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}],
        "annotations": [
            {
                "id": k,
                "image_id": 1,
                "category_id": 8 if k == 3 else 7,
                "segmentation": box(*b),
                "iscrowd": 0,
                "area": b[2] * b[3],
                "bbox": list(b),
            }
            for k, b in boxes.items()
        ],
        "categories": [{"id": 7, "name": "mug"}, {"id": 8, "name": "plate"}],
    }
    (folder / "annotations.json").write_text(json.dumps(coco))
    lines = [{"ann_id": 1, "expression": "the big mug"}, {"ann_id": 2, "expression": "the small mug"}]
    (folder / "expressions.jsonl").write_text(
        "".join(json.dumps(line | {"split": "val"}) + "\n" for line in lines)
    )
    (folder / "instances.json").write_text(json.dumps(coco))
    return read_dataset(str(folder))


def test_every_answer_by_hand(desk: ReferDataset, monkeypatch: pytest.MonkeyPatch):
    found = score_baselines(desk, "val", grids=(1,))
    assert set(found.trivial) == set(BASELINES)
    # Where the data set has no file of all annotations, the objects are those that are meant: 16 and 8 pixels.
    assert found.objects == "referents"
    assert found.trivial["all objects"]["mIoU"] == pytest.approx((16 / 24 + 8 / 24) / 2)
    assert found.trivial["largest object"]["mIoU"] == pytest.approx(0.5)
    assert found.trivial["the category alone"]["oIoU"] == pytest.approx(24 / 48)
    assert found.trivial["random object"]["mIoU"] in (0.0, 0.5, 1.0)
    assert found.oracle[1]["mIoU"] == 0.0  # less than half of the one cell


def test_all_annotations_count_where_there_are_any(desk: ReferDataset):
    from dataclasses import replace

    found = score_baselines(replace(desk, root=desk.root.parent, name=desk.root.name), "val", grids=(1,))
    assert found.objects == "annotations"
    assert found.trivial["all objects"]["mIoU"] == pytest.approx((16 / 64 + 8 / 64) / 2)
    assert found.trivial["largest object"]["mIoU"] == 0.0
    assert found.trivial["the category alone"]["mIoU"] == pytest.approx((16 / 24 + 8 / 24) / 2)
    assert found.best == ("the category alone", pytest.approx(0.5))
    assert found.beaten_by(0.63) and not found.beaten_by(0.6)


def test_the_random_object_is_the_same_every_time_and_another_with_another_seed(tmp_path: Path):
    write_refshapes(tmp_path, {"val": 12}, seed=3)
    dataset = read_refer(tmp_path, "refshapes")
    draws = [
        score_baselines(dataset, "val", seed, grids=()).trivial["random object"]["mIoU"] for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert 0.1 < draws[0] < 0.5


def test_a_finer_grid_is_a_higher_ceiling(tmp_path: Path):
    write_refshapes(tmp_path, {"val": 6}, seed=3)
    found = score_baselines(read_refer(tmp_path, "refshapes"), "val")
    ceilings = [found.oracle[grid]["mIoU"] for grid in (8, 12, 16, 32)]
    assert ceilings == sorted(ceilings) and ceilings[0] > 0.4 and ceilings[-1] > 0.9


def test_a_mask_that_fits_the_grid_passes_through_it():
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:8, 8:16] = True
    assert np.array_equal(through_grid(mask, 16), mask)
    assert not through_grid(mask, 1).any()


def test_evaluation_tells_them_when_asked(tmp_path: Path, small_model):
    write_refshapes(tmp_path / "d", {"val": 2}, seed=3)
    dataset = read_refer(tmp_path / "d", "refshapes")
    predictor = Predictor(small_model)
    plain = evaluate(predictor, dataset, "val")
    told = evaluate(predictor, dataset, "val", folder=tmp_path / "out", with_baselines=True)
    assert plain.baselines is None and isinstance(told.baselines, Baselines)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(written["baselines"]["trivial"]) == set(BASELINES)
    assert written["baselines"]["oracle"]["8"]["mIoU"] == told.baselines.oracle[8]["mIoU"]
    assert {key: value for key, value in written.items() if key != "baselines"} == plain.to_dict()


def test_a_damaged_annotation_is_named(tmp_path: Path):
    write_refshapes(tmp_path, {"val": 2}, seed=3)
    dataset = read_refer(tmp_path, "refshapes")
    path = tmp_path / "refshapes" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"instances\.json, annotation 1"):
        score_baselines(dataset, "val")
