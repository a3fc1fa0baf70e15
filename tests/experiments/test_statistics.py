"""Spread over seeds and bootstrap over images, against cases that can be worked out."""

from __future__ import annotations

import numpy as np
import pytest

from promptris.errors import InputError
from promptris.experiments.measurements import Measurements
from promptris.experiments.statistics import Cell, Spread, compare, spread


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
    first = Cell((rows([10, 50, 90, 30]),))
    second = Cell((rows([15, 55, 95, 35]),))
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
    first = Cell((rows([50] * 30), rows([50] * 30)))
    second = Cell((rows([90] * 30), rows([49] * 30)))
    found = compare(first, second, "mIoU")
    assert found.low > 0 and found.per_seed == pytest.approx((0.40, -0.01))
    assert found.verdict == "undecided"


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
