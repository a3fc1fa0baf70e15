"""gRefCOCO's files: several targets, one, or none, in its own spelling of the REFER layout."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from promptris.data import read_refer
from promptris.data.records import NO_TARGET
from promptris.errors import InputError
from promptris.metrics import GRESMetrics


def square(ann_id, image_id, x, y, category_id):
    """A 4 x 4 square."""
    ring = [x, y, x + 4, y, x + 4, y + 4, x, y + 4]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "segmentation": [ring],
    }


INSTANCES = {
    "images": [
        {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 20, "width": 30},
        {"id": 8, "file_name": "COCO_train2014_000000000008.jpg", "height": 10, "width": 12},
    ],
    "annotations": [
        square(10, 7, 0, 0, 3),
        square(11, 7, 2, 0, 4),  # shares 2 x 4 pixels with 10
        square(12, 7, 20, 10, 3),
        square(13, 8, 0, 0, 3),
    ],
    "categories": [{"id": 3, "name": "boat"}, {"id": 4, "name": "bird"}],
}


def ref(ref_id, ann_id, category_id, image_id, split, *texts, no_target=False):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": category_id,
        "image_id": image_id,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}.jpg",
        "no_target": no_target,
        "sent_ids": [100 * ref_id + k for k in range(len(texts))],
        "sentences": [
            {
                "sent_id": 100 * ref_id + k,
                "sent": text,
                "raw": text,
                "tokens": text.split(),
                "exist": not no_target,
            }
            for k, text in enumerate(texts)
        ],
    }


REFS = [
    ref(1, [10], [3], 7, "train", "left boat"),
    ref(2, [11, 10], [4, 3], 7, "train", "the boat and the bird", "both on the left"),
    ref(3, [-1], [-1], 7, "train", "the horse", no_target=True),
    ref(4, [10, 11], [3, 4], 7, "train", "left ones"),
    ref(5, [-1], [-1], 8, "val", "two dogs", no_target=True),
    ref(6, None, [], 8, "val", "no cat", no_target=True),
    ref(7, [10, 11, 12], [3, 4, 3], 7, "val", "all"),
]


def build(root, refs=REFS, kind="p"):
    folder = root / "grefcoco"
    folder.mkdir(parents=True)
    file = folder / f"grefs(unc).{kind}"
    if kind == "p":
        file.write_bytes(pickle.dumps(refs, protocol=2))
    else:
        file.write_text(json.dumps(refs))
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    (root / "images").mkdir()
    for entry in INSTANCES["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(root / "images" / entry["file_name"])
    return root


@pytest.fixture(params=["p", "json"])
def dataset(request, tmp_path):
    return read_refer(build(tmp_path, kind=request.param), "grefcoco")


def test_targets_of_each_referent(dataset):
    assert dataset.split_by == "unc"
    found = {r.ref_id: (r.ann_ids, r.category_id) for split in dataset.rows for r in dataset.referents(split)}
    assert found == {
        1: ((10,), 3),
        2: ((10, 11), 4),  # the category of the first that the file names
        3: ((), -1),
        4: ((10, 11), 3),
        5: ((), -1),
        6: ((), -1),
        7: ((10, 11, 12), 3),
    }
    assert {split: dataset.count(split) for split in dataset.rows} == {"train": (4, 1, 5), "val": (3, 2, 3)}


def test_identity_is_the_set_of_annotations(dataset):
    one, pair, nothing, same_pair = dataset.referents("train")
    two_dogs, _, everything = dataset.referents("val")
    assert one.ann_id == 10
    assert nothing.ann_id == two_dogs.ann_id == NO_TARGET
    assert pair.ann_id == same_pair.ann_id != everything.ann_id
    assert max(pair.ann_id, everything.ann_id) < NO_TARGET


def test_masks_are_unions_and_empty_where_nothing_is_meant(dataset):
    one, pair, nothing, _ = dataset.referents("train")
    two_dogs, _, everything = dataset.referents("val")
    expected = np.zeros((20, 30), dtype=bool)
    expected[0:4, 0:4] = True
    assert np.array_equal(dataset.mask(one), expected)
    expected[0:4, 2:6] = True
    assert np.array_equal(dataset.mask(pair), expected)
    expected[10:14, 20:24] = True
    assert np.array_equal(dataset.mask(everything), expected)
    # Empty masks have the size of their own image.
    assert dataset.mask(nothing).shape == (20, 30) and not dataset.mask(nothing).any()
    assert dataset.mask(two_dogs).shape == (10, 12) and not dataset.mask(two_dogs).any()


def test_a_model_that_always_answers_with_the_left_boat(dataset):
    """Scores of the benchmark by hand: 16 pixels in the corner, whatever was asked."""
    metrics = GRESMetrics()
    for split in dataset.rows:
        for referent, expression in dataset.samples(split):
            truth = dataset.mask(referent)
            answer = np.zeros_like(truth)
            answer[0:4, 0:4] = True
            metrics.update(answer, truth, expression.sent_id)
    scores = metrics.compute()
    # Sentences: 1 exact; 3 with 16 of 24; 3 with nothing to find; 1 with 16 of 40.
    assert scores["gIoU"] == pytest.approx((1 + 3 * 16 / 24 + 16 / 40) / 8)
    assert scores["cIoU"] == pytest.approx((16 + 3 * 16 + 16) / (16 + 3 * 24 + 3 * 16 + 40))
    assert (scores["N-acc"], scores["T-acc"]) == (0.0, 1.0)
    assert (scores["count"], scores["count_no_target"]) == (8, 3)


@pytest.mark.parametrize(
    ("ann_id", "message"),
    [([10, 99], "referent 1 .* annotation 99"), ([10, 13], "referent 1 .* annotation 13 on image 8")],
)
def test_wrong_targets_are_named(tmp_path, ann_id, message):
    with pytest.raises(InputError, match=message):
        read_refer(build(tmp_path, [ref(1, ann_id, [3, 3], 7, "train", "x")]), "grefcoco")


def test_broken_targets_can_be_skipped(tmp_path):
    refs = [ref(1, [10, 99], [3, 3], 7, "train", "x"), *REFS[1:3]]
    dataset = read_refer(build(tmp_path, refs), "grefcoco", skip_broken=True)
    assert [r.ref_id for r in dataset.referents("train")] == [2, 3]
    assert len(dataset.broken) == 1 and "annotation 99" in dataset.broken[0]
