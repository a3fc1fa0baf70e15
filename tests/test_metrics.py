"""The metrics over a few samples worked out by hand, and what must not change them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptris.errors import InputError
from promptris.metrics import GRESMetrics, RISMetrics, iou_from_counts
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


# ------------------------------------------------------------------------------------------ generalised RIS

# (predicted pixels, true pixels): what counts for I and U with min_pixels 0, then with 3.
GRES_SAMPLES = [
    (0, 0),  # nothing is meant, and that is said: IoU 1, adds nothing
    (4, 0),  # nothing is meant, but something is found: IoU 0, U 4
    (2, 0),  # the same, U 2; with min_pixels 3 it says "nothing": IoU 1, adds nothing
    (3, 5),  # IoU 0.6, I 3, U 5
    (0, 5),  # a target is missed: IoU 0, U 5
    (2, 4),  # IoU 0.5, I 2, U 4; with min_pixels 3 it says "nothing": IoU 0, I 0, U 4
]


def gres(samples: list[tuple[int, int]] = GRES_SAMPLES, min_pixels: int = 0) -> GRESMetrics:
    metrics = GRESMetrics(min_pixels)
    for predicted, true in samples:
        metrics.update(strip(predicted), strip(true))
    return metrics


def test_gres_scores_by_hand() -> None:
    scores = gres().compute()
    assert list(scores) == ["gIoU", "cIoU", "N-acc", "T-acc", "count", "count_no_target"]
    assert scores == pytest.approx(
        {
            "gIoU": 2.1 / 6,  # (1 + 0 + 0 + 0.6 + 0 + 0.5) / 6
            "cIoU": 5 / 20,  # (3 + 2) / (4 + 2 + 5 + 5 + 4)
            "N-acc": 1 / 3,
            "T-acc": 2 / 3,
            "count": 6,
            "count_no_target": 3,
        },
        abs=1e-12,
    )


def test_gres_takes_specks_for_nothing_when_asked() -> None:
    scores = gres(min_pixels=3).compute()
    assert scores == pytest.approx(
        {
            "gIoU": 2.6 / 6,  # (1 + 0 + 1 + 0.6 + 0 + 0) / 6
            "cIoU": 3 / 18,  # 3 / (4 + 5 + 5 + 4)
            "N-acc": 2 / 3,
            "T-acc": 1 / 3,
            "count": 6,
            "count_no_target": 3,
        },
        abs=1e-12,
    )
    # Three pixels are not fewer than three.
    assert gres([(3, 0)], min_pixels=3).compute()["N-acc"] == 0.0


def test_gres_union_of_a_target_declared_absent_is_counted_as_it_is() -> None:
    metrics = GRESMetrics(min_pixels=3)
    truth = strip(4)
    assert metrics.update(~strip(8), truth) == 0.0  # 2 pixels beside the 4 of the truth
    metrics.update(truth, truth)
    assert metrics.compute()["cIoU"] == 4 / (6 + 4)


def test_gres_update_returns_the_iou() -> None:
    metrics = GRESMetrics()
    assert metrics.update(strip(3), strip(4)) == 0.75
    assert metrics.update(strip(0), strip(4)) == 0.0
    assert metrics.update(strip(1), strip(0)) == 0.0
    assert metrics.update(strip(0), strip(0)) == 1.0


def test_gres_accuracies_are_none_where_there_is_no_such_sample() -> None:
    assert gres([(3, 5)]).compute()["N-acc"] is None
    only_nothing = gres([(0, 0)]).compute()
    assert only_nothing["T-acc"] is None
    assert (only_nothing["gIoU"], only_nothing["cIoU"], only_nothing["N-acc"]) == (1.0, 1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=12),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_gres_order_and_split_over_processes_change_nothing(samples, min_pixels, random) -> None:
    whole = gres(samples, min_pixels).compute()
    shuffled = random.sample(samples, len(samples))
    cut = random.randint(0, len(samples))
    first, second = gres(shuffled[:cut], min_pixels), gres(shuffled[cut:], min_pixels)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert len(first) == len(samples)
    assert first.compute() == whole


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=12))
def test_gres_equals_ris_where_everything_has_a_target(samples) -> None:
    ris = RISMetrics()
    for k, (predicted, true) in enumerate(samples):
        ris.update(strip(predicted), strip(true), k, k)
    classic, generalised = ris.compute(), gres(samples).compute()
    assert (generalised["gIoU"], generalised["cIoU"]) == (classic["mIoU"], classic["oIoU"])
    assert generalised["T-acc"] == 1.0


def test_gres_repeated_samples_count_once_and_reset_forgets() -> None:
    metrics, other = GRESMetrics(), GRESMetrics()
    metrics.update(strip(3), strip(4), sample_id=torch.tensor(7))
    metrics.update(strip(0), strip(0), sample_id=7)
    other.update(strip(0), strip(0), sample_id=7)
    metrics.merge(other)
    assert metrics.compute()["gIoU"] == 0.75
    metrics.reset()
    assert len(metrics) == 0
    with pytest.raises(InputError, match="nothing to score"):
        metrics.compute()


def test_gres_wrong_use_is_refused() -> None:
    metrics = gres()
    with pytest.raises(InputError, match="different sizes"):
        metrics.update(strip(3), strip(3).T)
    with pytest.raises(InputError, match="threshold"):
        metrics.update(strip(3) * 0.9, strip(3))
    with pytest.raises(InputError, match="themselves"):
        metrics.merge(metrics)
    with pytest.raises(InputError, match="min_pixels differs: 0 here, 3 there"):
        metrics.merge(GRESMetrics(3))
    with pytest.raises(InputError, match="fewer than 0"):
        GRESMetrics(-1)
    assert metrics.compute() == gres().compute()
