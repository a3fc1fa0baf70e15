"""The evaluation protocol: every pair once, at the image's own size, one definition of every number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from promptris.data import ReferDataset, read_refer
from promptris.data.readers.restricted_pickle import load_plain_pickle
from promptris.data.refshapes import WorldOptions
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.evaluation.protocol import evaluate, score
from promptris.metrics import RISMetrics
from promptris.ops.run_lengths import rle_to_mask
from promptris.predictor import Predictor


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    """Three scenes of another size than the model's."""
    folder = tmp_path_factory.mktemp("world") / "data"
    write_refshapes(folder, {"val": 3}, 5, WorldOptions(size=100))
    return read_refer(folder, "refshapes")


@pytest.fixture(scope="module")
def predictor(small_model) -> Predictor:
    return Predictor(small_model)


def test_every_pair_is_scored_once_at_the_images_own_size(predictor: Predictor, dataset: ReferDataset):
    scored = list(score(predictor, dataset, "val"))
    expected = {(r.ref_id, e.sent_id) for r, e in dataset.samples("val")}
    assert len(scored) == len(expected)
    assert {(s.referent.ref_id, s.expression.sent_id) for s in scored} == expected
    assert all(s.prediction.mask.shape == s.truth.shape == (100, 100) for s in scored)
    assert all(np.array_equal(s.truth, dataset.mask(s.referent)) for s in scored)


def test_metrics_agree_with_the_predictions_file(predictor: Predictor, dataset: ReferDataset, tmp_path: Path):
    result = evaluate(predictor, dataset, "val", folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    truth = {r.ann_id: dataset.mask(r) for r in dataset.referents("val")}
    intersections, unions = [], []
    for line in lines:
        mask = rle_to_mask(line["segmentation"])
        intersections.append(np.sum(mask & truth[line["ann_id"]]))
        unions.append(np.sum(mask | truth[line["ann_id"]]))
    ious = np.array(intersections) / np.array(unions)
    # The file is rounded to six digits.
    assert np.allclose(ious, [line["iou"] for line in lines], atol=1e-6)
    assert result.final["mIoU"] == pytest.approx(ious.mean())
    assert result.final["oIoU"] == pytest.approx(sum(intersections) / sum(unions))
    assert result.final["P@0.5"] == pytest.approx((ious > 0.5).mean())
    assert result.final["count"] == len(lines)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.to_dict()


def test_kinds_together_are_the_whole(predictor: Predictor, dataset: ReferDataset):
    result = evaluate(predictor, dataset, "val")
    assert sum(m["count"] for m in result.by_kind.values()) == result.final["count"]
    mean = sum(m["count"] * m["mIoU"] for m in result.by_kind.values()) / result.final["count"]
    assert mean == pytest.approx(result.final["mIoU"])


def test_the_number_of_images_per_pass_changes_nothing(predictor: Predictor, dataset: ReferDataset):
    one, all_at_once = (evaluate(predictor, dataset, "val", images_per_pass=n) for n in (1, 3))
    assert one.final == pytest.approx(all_at_once.final)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_split_without_repeating_a_sample(
    predictor: Predictor, dataset: ReferDataset, world_size: int
):
    whole, joined = RISMetrics(), RISMetrics()
    for s in score(predictor, dataset, "val"):
        whole.update(s.prediction.mask, s.truth, s.referent.image_id, s.referent.ann_id)
    for rank in range(world_size):
        mine = RISMetrics()
        for s in score(predictor, dataset, "val", rank=rank, world_size=world_size):
            mine.update(s.prediction.mask, s.truth, s.referent.image_id, s.referent.ann_id)
        joined.merge(mine)
    assert joined.compute() == whole.compute()


def test_generalised_scores_where_nothing_or_several_objects_are_meant(
    predictor: Predictor, dataset: ReferDataset, tmp_path: Path
):
    assert evaluate(predictor, dataset, "val").generalised == {}
    refs_file = dataset.root / "refshapes" / "refs(unc).p"
    refs = load_plain_pickle(refs_file)
    first = refs[0]["image_id"]
    same_image = [ref for ref in refs if ref["image_id"] == first]
    both = [same_image[0]["ann_id"], same_image[1]["ann_id"]]
    same_image[0]["ann_id"], same_image[1]["ann_id"] = both, [-1]
    folder = tmp_path / "grefcoco"
    folder.mkdir()
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    (folder / "instances.json").write_bytes((dataset.root / "refshapes" / "instances.json").read_bytes())
    (tmp_path / "images").symlink_to(dataset.root / "images")
    generalised = read_refer(tmp_path, "grefcoco")
    result = evaluate(predictor, generalised, "val", folder=tmp_path / "out")
    without = len(same_image[1]["sentences"])
    assert result.generalised["count_no_target"] == without
    assert result.generalised["count"] == len(generalised.samples("val"))
    assert result.generalised["N-acc"] in [k / without for k in range(without + 1)]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["gIoU"] == result.generalised["gIoU"]
    ann_ids = {
        str(line["ann_id"]): line["ref_id"]
        for line in map(json.loads, (tmp_path / "out" / "predictions.jsonl").read_text().splitlines())
    }
    assert ann_ids[str(sorted(both))] == same_image[0]["ref_id"]
    assert ann_ids["[]"] == same_image[1]["ref_id"]


def test_a_split_without_expressions_is_named(predictor: Predictor, dataset: ReferDataset):
    with pytest.raises(InputError, match="refshapes has no expression to evaluate in 'val'"):
        evaluate(predictor, dataset.only_categories(set()), "val")


def test_prompts_are_passed_on(predictor: Predictor, dataset: ReferDataset):
    none = [s.prediction.mask for s in score(predictor, dataset, "val", prompts=())]
    everything = [s.prediction.mask for s in score(predictor, dataset, "val")]
    assert any(not np.array_equal(a, b) for a, b in zip(none, everything, strict=True))


def test_a_wrong_split_is_named(predictor: Predictor, dataset: ReferDataset):
    with pytest.raises(InputError, match="'testA'"):
        evaluate(predictor, dataset, "testA")


def test_progress_is_told(predictor: Predictor, dataset: ReferDataset):
    seen: list[tuple[int, int]] = []
    evaluate(predictor, dataset, "val", progress=lambda done, total: seen.append((done, total)))
    total = len(dataset.samples("val"))
    assert seen == [(i + 1, total) for i in range(total)]


def test_a_failure_in_the_middle_leaves_no_half_result(
    predictor: Predictor, dataset: ReferDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: ReferDataset, referent: object) -> None:
        raise InputError("annotation 7 is damaged")

    monkeypatch.setattr(ReferDataset, "mask", fail)
    with pytest.raises(InputError, match="annotation 7"):
        evaluate(predictor, dataset, "val", folder=tmp_path)
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "predictions.jsonl").exists()


def test_an_image_of_another_size_than_its_annotations_is_named(predictor: Predictor, tmp_path: Path):
    from PIL import Image

    write_refshapes(tmp_path / "data", {"val": 1}, 5, WorldOptions(size=100))
    path = next((tmp_path / "data" / "images").iterdir())
    Image.new("RGB", (90, 80)).save(path)
    with pytest.raises(InputError, match=f"{path.name} has 90 x 80 pixels.*100 x 100"):
        evaluate(predictor, read_refer(tmp_path / "data", "refshapes"), "val")
