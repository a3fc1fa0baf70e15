"""The metrics over four samples worked out by hand, and what must not change them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from promptris.errors import InputError
from promptris.metrics import RISMetrics, iou_from_counts
from promptris.ops.masks import BoolMask


def strip(length: int) -> BoolMask:
    """A 2 x 5 mask whose first `length` pixels are set."""
    return (np.arange(10) < length).reshape(2, 5)


# (predicted pixels, true pixels, image, instance): the shorter strip is shared, the longer the union.
SAMPLES = [
    (3, 4, "a", 10),  # IoU 0.75
    (4, 1, "a", 10),  # IoU 0.25
    (3, 5, "a", 11),  # IoU 0.6
    (0, 5, "b", 20),  # nothing found: IoU 0
]
EXPECTED = {
    "oIoU": 7 / 18,  # (3 + 1 + 3 + 0) / (4 + 4 + 5 + 5)
    "mIoU": 0.4,  # (0.75 + 0.25 + 0.6 + 0) / 4
    "P@0.5": 0.5,
    "P@0.6": 0.25,  # 0.6 itself is not above 0.6
    "P@0.7": 0.25,
    "P@0.8": 0.0,
    "P@0.9": 0.0,
    "ImgAcc": 4 / 15,  # (1.6 / 3 + 0) / 2
    "InstAcc": 11 / 30,  # ((0.75 + 0.25) / 2 + 0.6 + 0) / 3
    "count": 4,
}


def filled(samples: list[tuple[int, int, str, int]] = SAMPLES, **kwargs: Any) -> RISMetrics:
    metrics = RISMetrics(**kwargs)
    for predicted, true, image_id, ann_id in samples:
        metrics.update(strip(predicted), strip(true), image_id, ann_id)
    return metrics


def test_scores_by_hand() -> None:
    scores = filled().compute()
    assert list(scores) == list(EXPECTED)
    assert scores == pytest.approx(EXPECTED, abs=1e-12)
    assert isinstance(scores["count"], int)


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda m: m.astype(np.uint8)])
def test_tensors_and_integers_score_alike(convert: Callable[[BoolMask], Any]) -> None:
    metrics = RISMetrics()
    for predicted, true, image_id, ann_id in SAMPLES:
        metrics.update(convert(strip(predicted)), convert(strip(true)), image_id, ann_id)
    assert metrics.compute() == filled().compute()


def test_update_returns_the_iou() -> None:
    metrics = RISMetrics()
    assert metrics.update(strip(3), strip(4), 1, 1) == 0.75
    assert metrics.update(strip(0), strip(4), 1, 1) == 0.0
    assert metrics.update(strip(0), strip(0), 1, 1) == 1.0
    assert metrics.compute()["oIoU"] == 3 / 8  # the two empty masks add no pixel


def test_thresholds_are_strict_everywhere() -> None:
    # IoU 1/2, 3/5, 7/10, 4/5 and 9/10 exactly: each lies above the lower thresholds and not above its own.
    metrics = filled([(5, 10, "a", 1), (6, 10, "a", 2), (7, 10, "a", 3), (8, 10, "a", 4), (9, 10, "a", 5)])
    scores = metrics.compute()
    assert [scores[f"P@{x}"] for x in (0.5, 0.6, 0.7, 0.8, 0.9)] == [0.8, 0.6, 0.4, 0.2, 0.0]


def test_own_thresholds() -> None:
    scores = filled(thresholds=(0.25, 0.75)).compute()
    assert (scores["P@0.25"], scores["P@0.75"]) == (0.5, 0.0)
    assert "P@0.5" not in scores
    with pytest.raises(InputError, match="threshold"):
        RISMetrics(thresholds=(50,))


def test_order_and_split_over_processes_change_nothing() -> None:
    whole = filled().compute()
    assert filled(SAMPLES[::-1]).compute() == whole
    first, second = filled(SAMPLES[:1]), filled(SAMPLES[1:])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == whole
    assert len(second) == 3  # the other side is left as it was

    # To the last bit, although sums of thirds, sevenths and ninths round differently in another order.
    many = [(p, t, "a", t) for t in (3, 7, 9) for p in range(1, t)] * 5
    shuffled = [many[k] for k in np.random.default_rng(0).permutation(len(many))]
    assert filled(shuffled).compute() == filled(many).compute()


def test_repeated_samples_count_once() -> None:
    """Two processes share four samples; padding gave the first sample to both."""
    ranks = [RISMetrics(), RISMetrics()]
    for rank, numbers in zip(ranks, ([0, 2, 0], [1, 3, 0]), strict=True):
        for k in numbers:
            predicted, true, image_id, ann_id = SAMPLES[k]
            rank.update(strip(predicted), strip(true), image_id, ann_id, sample_id=k)
    assert len(ranks[0]) == 2
    ranks[0].merge(ranks[1])
    assert ranks[0].compute() == filled().compute()


def test_ids_out_of_a_batch_group_like_numbers() -> None:
    metrics = RISMetrics()
    for predicted, true, image_id, ann_id in SAMPLES:
        metrics.update(strip(predicted), strip(true), torch.tensor(ord(image_id)), torch.tensor(ann_id))
    assert metrics.compute() == pytest.approx(EXPECTED, abs=1e-12)


def test_annotation_ids_may_repeat_between_images() -> None:
    # Two instances called 1, with IoU (1 + 1) / 2 and 0.2: mean 0.6. As one they would give 2.2 / 3 = 0.73.
    metrics = filled([(5, 5, "a", 1), (5, 5, "a", 1), (1, 5, "b", 1)])
    assert metrics.compute()["InstAcc"] == pytest.approx(0.6)


def test_reset() -> None:
    metrics = filled()
    metrics.reset()
    assert len(metrics) == 0
    with pytest.raises(InputError, match="nothing to score"):
        metrics.compute()


def test_wrong_use_is_refused() -> None:
    metrics = filled()
    with pytest.raises(InputError, match="different sizes"):
        metrics.update(strip(3), strip(3).T, 1, 1)
    with pytest.raises(InputError, match="threshold"):
        metrics.update(strip(3) * 0.9, strip(3), 1, 1)
    with pytest.raises(InputError, match="themselves"):
        metrics.merge(metrics)
    with pytest.raises(InputError, match="thresholds differ"):
        metrics.merge(RISMetrics(thresholds=(0.5,)))
    assert metrics.compute() == filled().compute()  # nothing half-added


def test_sums_do_not_overflow() -> None:
    big = np.ones((3000, 4000), dtype=np.uint8)
    metrics = RISMetrics()
    for k in range(3):
        metrics.update(big, big, k, k)
    assert metrics.compute()["oIoU"] == 1.0
    assert iou_from_counts(2**40, 2**41) == 0.5
