"""Spread over seeds, and differences with their intervals, against cases that can be worked out."""

from __future__ import annotations

import numpy as np
import pytest

from promptris.errors import InputError
from promptris.experiments.measurements import Measurements
from promptris.experiments.statistics import Cell, Difference, Spread, compare, spread, t_quantile


def rows(ious: list[int], images: list[int] | None = None) -> Measurements:
    """One expression per entry, with an IoU of so many hundredths."""
    inter, count = np.array(ious), len(ious)
    ids = np.arange(count) if images is None else np.array(images)
    union = np.full(count, 100)
    both = {"final": inter, "coarse": inter}
    return Measurements(ids, np.arange(count), np.arange(count), both, {"final": union, "coarse": union})


def test_spread_is_mean_and_sample_deviation():
    cell = Cell((rows([50, 70]), rows([60, 80]), rows([70, 90])))
    found = spread(cell, "mIoU")
    assert found.values == (0.6, 0.7, 0.8)
    assert found.mean == pytest.approx(0.7) and found.std == pytest.approx(0.1)
    assert Spread((0.3,)).std == 0.0


def test_a_constant_gain_has_no_spread_however_different_the_images_are():
    first = Cell((rows([10, 50, 90, 30]), rows([20, 40, 80, 30])))
    second = Cell((rows([15, 55, 95, 35]), rows([25, 45, 85, 35])))
    found = compare(first, second, "mIoU")
    assert found.mean == pytest.approx(0.05)
    assert found.low == pytest.approx(0.05) and found.high == pytest.approx(0.05)
    assert found.verdict == "seen"
    assert compare(second, first, "mIoU").verdict == "not seen"


def test_the_interval_is_that_of_the_mean_over_images():
    rng = np.random.default_rng(0)
    gains = rng.integers(-20, 40, size=400)
    found = compare(Cell((rows([40] * 400),)), Cell((rows((40 + gains).tolist()),)), "mIoU")
    error = gains.std() / 100 / 400**0.5
    assert found.mean == pytest.approx(gains.mean() / 100)
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.2 * error)


def test_images_are_drawn_and_not_expressions():
    """Ten expressions of one image are one observation: the interval is as wide as for one each."""
    gains = np.random.default_rng(1).integers(-20, 40, size=60)
    single = compare(Cell((rows([40] * 60),)), Cell((rows((40 + gains).tolist()),)), "mIoU")
    images = np.repeat(np.arange(60), 10).tolist()
    tenfold = compare(
        Cell((rows([40] * 600, images),)), Cell((rows(np.repeat(40 + gains, 10).tolist(), images),)), "mIoU"
    )
    assert tenfold.high - tenfold.low == pytest.approx(single.high - single.low)


def test_seeds_that_disagree_leave_it_undecided():
    assert Difference("mIoU", 0.2, (0.40, -0.01), 0.1, 0.3, 30).verdict == "undecided"
    assert Difference("mIoU", 0.2, (0.40, 0.01), 0.1, 0.3, 30).verdict == "seen"
    assert Difference("mIoU", -0.2, (-0.40, -0.01), -0.3, -0.1, 30).verdict == "not seen"
    assert Difference("mIoU", 0.2, (0.40, 0.01), -0.1, 0.3, 30).verdict == "undecided"


def test_one_seed_or_one_image_decides_nothing():
    """However large the gain and however many the images: another seed may say the opposite."""
    one = compare(Cell((rows([10] * 50),)), Cell((rows([90] * 50),)), "mIoU")
    assert one.low > 0.7 and one.verdict == "undecided"
    two = Cell((rows([10] * 50),) * 2), Cell((rows([90] * 50),) * 2)
    assert compare(*two, "mIoU").verdict == "seen"
    one = compare(Cell((rows([10]),) * 2), Cell((rows([90]),) * 2), "mIoU")
    assert one.low > 0.7 and one.verdict == "undecided"


def test_students_t():
    """Printed tables, two-sided 95 %."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 10: 2.228, 30: 2.042, 1e9: 1.960}
    for freedom, value in printed.items():
        assert t_quantile(freedom) == pytest.approx(value, rel=1e-3), freedom


def test_the_interval_of_seeds_alone_is_students():
    """All images alike, three seeds with gains of 2, 4 and 9 points: 5 +- 4.303 s / sqrt(3), s^2 = 13."""
    first, second = Cell((rows([40] * 20),)), Cell(tuple(rows([40 + k] * 20) for k in (2, 4, 9)))
    found = compare(first, second, "mIoU")
    half = 0.04303 * (13 / 3) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half), rel=1e-3)


@pytest.mark.parametrize("images_differ", [0.0, 0.1])
def test_training_noise_is_no_gain_and_a_real_gain_is_found(images_differ: float):
    """Rows of three seeds whose mIoU moves by a point from seed to seed, 200 times over."""
    rng = np.random.default_rng(0)

    def row(level: np.ndarray) -> Cell:
        noise = (rng.normal(0, 0.01) + rng.normal(0, 0.03, len(level)) for _ in range(3))
        return Cell(tuple(rows(np.rint(100 * (level + one)).astype(int).tolist()) for one in noise))

    def verdicts(gain: float) -> list[str]:
        found = []
        for _ in range(200):
            level = rng.uniform(0.3, 0.7, 100)
            better = level + gain + rng.normal(0, images_differ, 100)
            found.append(compare(row(level), row(better), "mIoU", resamples=200).verdict)
        return found

    assert sum(one != "undecided" for one in verdicts(0.0)) <= 20
    gained = verdicts(0.05)
    assert gained.count("seen") >= 150 and "not seen" not in gained


def test_a_row_without_seeds_is_paired_with_every_seed():
    found = compare(Cell((rows([20, 40]),)), Cell((rows([30, 50]), rows([50, 70]))), "mIoU")
    assert found.per_seed == pytest.approx((0.1, 0.3))


def test_the_difference_of_two_metrics():
    """From 0.4 and 0.6 to 0.95 and 0.6: P@0.9 gains a half, P@0.5 a half; then only P@0.9 gains."""
    first = Cell((rows([40, 60]),))
    assert compare(first, Cell((rows([95, 60]),)), "P@0.9 - P@0.5").mean == pytest.approx(0.0)
    assert compare(first, Cell((rows([40, 95]),)), "P@0.9 - P@0.5").mean == pytest.approx(0.5)


def test_only_the_same_expressions_can_be_compared():
    with pytest.raises(InputError, match="different expressions"):
        compare(Cell((rows([1, 2]),)), Cell((rows([1, 2, 3]),)), "mIoU")
    with pytest.raises(InputError, match="2 and 3 seeds"):
        compare(Cell((rows([1]),) * 2), Cell((rows([1]),) * 3), "mIoU")
