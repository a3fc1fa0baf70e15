"""Means over seeds, and differences between rows of a table with intervals for both kinds of chance."""

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
        low, high: interval of the mean over seeds at `LEVEL`, for other images and other training seeds; see
            `compare`.
        images: that it was measured on.
    """

    metric: str
    mean: float
    per_seed: tuple[float, ...]
    low: float
    high: float
    images: int

    @property
    def verdict(self) -> Verdict:
        """Whether the second row is better: "seen" or "not seen" only where the interval leaves out 0 and all seeds
        agree; always "undecided" for a single seed or image, which cannot tell how much chance there is."""
        if min(self.images, len(self.per_seed)) < 2:
            return "undecided"
        if self.low > 0 and min(self.per_seed) > 0:
            return "seen"
        if self.high < 0 and max(self.per_seed) < 0:
            return "not seen"
        return "undecided"


def spread(cell: Cell, metric: str) -> Spread:
    """A metric over the seeds of a row."""
    return Spread(tuple(one.value(metric, cell.masks) for one in cell.seeds))


def compare(first: Cell, second: Cell, metric: str, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """The second row minus the first, seed by seed, with an interval for other images and other training seeds.

    The mean over S seeds has two sources of chance, whose variances are added: that of the images, from a bootstrap
    in which the same images are drawn for both rows and all seeds, so that what makes an image easy or hard for
    everyone cancels out; and that of training, the variance of `per_seed` over S. What a seed does to single images
    is in both, which errs on the side of caution. The interval is Student's, with the degrees of freedom of a sum of
    variances (Welch, 1947): near those of S seeds where training decides, near those of the images where these do.
    Drawing seeds again as well would not do: among 3 of them a bootstrap finds 2/3 of the variance, and its normal
    quantile of 2 should be one of 4. With one seed the interval is that of the images alone.

    A row without seeds of its own (a method that is not trained) is paired with every seed of the other.

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
    mean, seeds = float(per_seed.mean()), len(per_seed)
    parts = []  # (variance of the mean, its degrees of freedom)
    if images > 1:
        parts.append((gain(draws).mean(axis=1).var() * images / (images - 1), images - 1))
    if seeds > 1:
        parts.append((per_seed.var(ddof=1) / seeds, seeds - 1))
    half = _half_width(parts)
    return Difference(metric, mean, tuple(per_seed.tolist()), mean - half, mean + half, images)


def _half_width(parts: Sequence[tuple[float, int]]) -> float:
    """Half the interval at `LEVEL` of something whose variance is the sum of estimates with degrees of freedom."""
    variance = float(sum(part for part, _ in parts))
    doubt = float(sum(part**2 / freedom for part, freedom in parts))
    return t_quantile(variance**2 / doubt) * variance**0.5 if doubt > 0 else 0.0


def t_quantile(freedom: float) -> float:
    """What the size of Student's t stays below with the chance `LEVEL`.

    With t = sqrt(freedom) tan(angle), the density of the angle is proportional to cos(angle)^(freedom - 1).
    """
    freedom = min(freedom, 1e4)  # practically normal from there on
    angles, step = np.linspace(0, np.pi / 2, 100_000, endpoint=False, retstep=True)
    share = np.cumsum(np.cos(angles + step / 2) ** (freedom - 1))
    angle = angles[np.searchsorted(share, LEVEL * share[-1])] + step
    return float(freedom**0.5 * np.tan(angle))


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
