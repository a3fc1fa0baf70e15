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
from promptris.evaluation.protocol import Evaluation, evaluate
from promptris.interfaces.terminal import baselines_table, objects_line, verdict
from promptris.predictor import Predictor


def write_desk(folder: Path, expressions: list[dict[str, object]]) -> None:
    """A 20 x 10 image: mug A of 4 x 4, mug B of 4 x 2, plate C of 8 x 5, as COCO annotations."""
    folder.mkdir()
    Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8)).save(folder / "a.png")
    boxes = {1: (0, 0, 4, 4), 2: (6, 0, 4, 2), 3: (12, 5, 8, 5)}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 8 if k == 3 else 7, "segmentation": box(*b), "iscrowd": 0}
            for k, b in boxes.items()
        ],
        "categories": [{"id": 7, "name": "mug"}, {"id": 8, "name": "plate"}],
    }
    (folder / "annotations.json").write_text(json.dumps(coco))
    lines = "".join(json.dumps(line | {"split": "val"}) + "\n" for line in expressions)
    (folder / "expressions.jsonl").write_text(lines)


def write_masks(folder: Path, masks: list[tuple[str, tuple[slice, slice]]]) -> ReferDataset:
    """Pictures of 20 x 10, each with masks as pictures: nothing else is known of what they show."""
    folder.mkdir()
    rows = ["image,mask,expression,split"]
    for number, (image, place) in enumerate(masks):
        Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8)).save(folder / image)
        mask = np.zeros((10, 20), dtype=np.uint8)
        mask[place] = 255
        Image.fromarray(mask).save(folder / f"mask{number}.png")
        rows.append(f"{image},mask{number}.png,thing {number},val")
    (folder / "expressions.csv").write_text("\n".join(rows))
    return read_dataset(str(folder))


TOP_LEFT, TOP_RIGHT = (slice(0, 4), slice(0, 4)), (slice(0, 2), slice(6, 10))  # 16 and 8 pixels


def box(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


MUGS: list[dict[str, object]] = [
    {"ann_id": 1, "expression": "the big mug"},
    {"ann_id": 2, "expression": "the small mug"},
]


@pytest.fixture
def desk(tmp_path: Path) -> ReferDataset:
    """One sentence about each mug; the plate is not spoken of."""
    write_desk(tmp_path / "desk", MUGS)
    return read_dataset(str(tmp_path / "desk"))


def test_every_answer_by_hand_with_all_objects_of_ones_own_coco_file(desk: ReferDataset):
    found = score_baselines(desk, "val", grids=(1,))
    assert set(found.trivial) == set(BASELINES)
    assert (found.objects, found.unreadable) == ("annotations", 0)
    # 16, 8 and 40 pixels.
    assert found.trivial["all objects"]["mIoU"] == pytest.approx((16 / 64 + 8 / 64) / 2)
    assert found.trivial["largest object"]["mIoU"] == 0.0
    assert found.trivial["the category alone"]["mIoU"] == pytest.approx((16 / 24 + 8 / 24) / 2)
    assert found.trivial["the category alone"]["oIoU"] == pytest.approx(24 / 48)
    assert found.trivial["random object"]["mIoU"] in (0.0, 0.5, 1.0)
    assert found.oracle[1]["mIoU"] == 0.0  # less than half of the one cell
    assert found.best == ("the category alone", pytest.approx(0.5))
    assert found.beaten_by(0.63) and not found.beaten_by(0.62)
    assert found.to_dict()["objects"] == "annotations"


def test_above_a_high_baseline_a_model_can_still_stand():
    found = Baselines({"all objects": {"mIoU": 0.9}}, {}, "annotations")
    assert found.beaten_by(0.96) and not found.beaten_by(0.94)


def test_where_no_annotations_are_told_the_objects_are_those_that_are_meant(tmp_path: Path):
    dataset = write_masks(tmp_path / "desk", [("a.png", TOP_LEFT), ("a.png", TOP_RIGHT)])
    found = score_baselines(dataset, "val", grids=(1,))
    assert found.objects == "referents"
    # No category is known, so there is none to go by.
    assert set(found.trivial) == set(BASELINES) - {"the category alone"}
    assert found.trivial["all objects"]["mIoU"] == pytest.approx((16 / 24 + 8 / 24) / 2)
    assert found.trivial["largest object"]["mIoU"] == pytest.approx(0.5)


def test_no_answer_is_trivial_where_an_image_has_one_known_object(tmp_path: Path):
    found = score_baselines(write_masks(tmp_path / "d", [("a.png", TOP_LEFT), ("b.png", TOP_RIGHT)]), "val")
    assert found.trivial == {} and found.best is None and found.beaten_by(0.99) is None
    assert set(found.oracle) == {8, 12, 16, 32}
    model = Evaluation({"mIoU": 0.61}, {}, {}, baselines=found)
    told = verdict(model)
    assert told is not None and "61.0" in told and "only object" in told and "does not count" not in told
    assert baselines_table(found).row_count == 4 and "some expression means" in objects_line(found)


def test_one_such_image_among_many_is_no_matter(tmp_path: Path):
    several = [(f"{k}.png", place) for k in range(5) for place in (TOP_LEFT, TOP_RIGHT)]
    found = score_baselines(write_masks(tmp_path / "d", [*several, ("x.png", TOP_LEFT)]), "val", grids=())
    assert found.trivial["largest object"]["mIoU"] == pytest.approx((5 + 1) / 11)


def test_a_data_set_with_several_targets_is_refused(tmp_path: Path):
    write_desk(tmp_path / "desk", [{"ann_id": [1, 2], "expression": "both mugs"}])
    with pytest.raises(InputError, match="several objects or none"):
        score_baselines(read_dataset(str(tmp_path / "desk")), "val")


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
    told = evaluate(
        predictor, dataset, "val", folder=tmp_path / "out", baselines=score_baselines(dataset, "val")
    )
    assert plain.baselines is None and isinstance(told.baselines, Baselines)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(written["baselines"]["trivial"]) == set(BASELINES)
    assert written["baselines"]["oracle"]["8"]["mIoU"] == told.baselines.oracle[8]["mIoU"]
    assert {key: value for key, value in written.items() if key != "baselines"} == plain.to_dict()


def test_a_damaged_annotation_that_nobody_means_is_left_out_and_counted(tmp_path: Path):
    write_desk(tmp_path / "desk", MUGS)
    path = tmp_path / "desk" / "annotations.json"
    content = json.loads(path.read_text())
    plate = content["annotations"][2]
    others = [
        {**plate, "id": 4, "category_id": "plate"},
        {key: value for key, value in plate.items() if key != "segmentation"} | {"id": 5},
        {**plate, "id": 6, "image_id": None},
        {**plate, "id": 7, "iscrowd": 1},
    ]
    plate["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content | {"annotations": [*content["annotations"], *others]}))
    found = score_baselines(read_dataset(str(tmp_path / "desk")), "val", grids=())
    assert found.unreadable == found.to_dict()["unreadable"] == 3
    assert found.trivial["all objects"]["mIoU"] == pytest.approx((16 / 24 + 8 / 24) / 2)
    assert "3 that cannot be read are left out" in objects_line(found)


def test_progress_is_told_image_by_image(tmp_path: Path):
    write_refshapes(tmp_path, {"val": 3}, seed=3)
    told: list[tuple[int, int]] = []
    score_baselines(
        read_refer(tmp_path, "refshapes"), "val", grids=(), progress=lambda *done: told.append(done)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
