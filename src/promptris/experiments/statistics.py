"""Means over seeds, and paired bootstrap over images for differences between rows of a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from promptris.errors import InputError
from promptris.experiments.measurements import Measurements

RESAMPLES = 2000
LEVEL = 0.95
Verdict = Literal["seen", "not seen", "undecided"]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: each seed's value, their mean and standard deviation (0 for a single seed)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Cell:
    """Measurements of one row, one per seed, and which of their masks count."""

    seeds: tuple[Measurements, ...]
    masks: str = "final"


@dataclass(frozen=True)
class Difference:
    """How much better the second of two rows is.

    Attributes:
        metric: which figure; "A - B" is the difference of two.
        mean: over seeds.
        per_seed: of each seed.
        low, high: interval of the mean over seeds when images are drawn again, at `LEVEL`.
    """

    metric: str
    mean: float
    per_seed: tuple[float, ...]
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Whether the second row is better: "seen" or "not seen" only where the interval leaves out 0 and all seeds
        agree."""
        if self.low > 0 and min(self.per_seed) > 0:
            return "seen"
        if self.high < 0 and max(self.per_seed) < 0:
            return "not seen"
        return "undecided"


def spread(cell: Cell, metric: str) -> Spread:
    """A metric over the seeds of a row."""
    return Spread(tuple(one.value(metric, cell.masks) for one in cell.seeds))


def compare(first: Cell, second: Cell, metric: str, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """The second row minus the first, seed by seed, with an interval from drawing images again.

    The same images are drawn for both rows and all seeds, so what makes an image easy or hard for everyone cancels
    out. Training seeds are not drawn again: their spread is told by `per_seed`. A row without seeds of its own (a
    method that is not trained) is paired with every seed of the other.

    Args:
        first, second: rows measured on the same expressions.
        metric: "mIoU" and the like, or "P@0.9 - P@0.5": how much more one of them gains than the other.
        seed: of the draws.
        resamples: number of draws.

    Raises:
        InputError: when the rows have different expressions or numbers of seeds.
    """
    pairs = _pairs(first, second)
    names = re.split(r"\s+-\s+", metric)
    signs = (1.0, -1.0)[: len(names)]
    generator = np.random.default_rng(seed)
    images = len(np.unique(pairs[0][0].image_id))
    draws = generator.multinomial(images, np.full(images, 1 / images), size=resamples)
    whole = np.ones((1, images), dtype=draws.dtype)

    def gain(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """[draws, seeds]"""
        columns = []
        for before, after in pairs:
            column = np.zeros(len(weights))
            for name, sign in zip(names, signs, strict=True):
                column += sign * (
                    _ratio(weights, *after.parts(name, second.masks))
                    - _ratio(weights, *before.parts(name, first.masks))
                )
            columns.append(column)
        return np.stack(columns, axis=1)

    per_seed = gain(whole)[0]
    means = gain(draws).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(metric, float(per_seed.mean()), tuple(per_seed.tolist()), float(low), float(high))


def _ratio(
    weights: NDArray[np.int64], above: NDArray[np.float64], below: NDArray[np.float64]
) -> NDArray[np.float64]:
    return (weights @ above) / (weights @ below)


def _pairs(first: Cell, second: Cell) -> Sequence[tuple[Measurements, Measurements]]:
    ours, theirs = list(first.seeds), list(second.seeds)
    count = max(len(ours), len(theirs))
    if len(ours) == 1:
        ours *= count
    if len(theirs) == 1:
        theirs *= count
    if not ours or len(ours) != len(theirs):
        raise InputError(f"rows of {len(first.seeds)} and {len(second.seeds)} seeds cannot be compared")
    for a, b in zip(ours, theirs, strict=True):
        if not np.array_equal(a.sent_id, b.sent_id) or not np.array_equal(a.image_id, b.image_id):
            raise InputError("rows that were measured on different expressions cannot be compared")
    return list(zip(ours, theirs, strict=True))
