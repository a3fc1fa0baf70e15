"""Times of several ways to do something, measured in turn so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one way.

    Attributes:
        seconds: of each repeat.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return {
            "median": round(self.median, 5),
            "min": round(min(self.seconds), 5),
            "max": round(max(self.seconds), 5),
            "repeats": len(self.seconds),
        }


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    notify: Callable[[str], None],
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Each case once per round, for so many rounds, after one call that does not count.

    Args:
        cases: what to call, by name.
        repeats: rounds.
        notify: told what is running, in a few words.
        warm_up: whether there is such a call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(-1 if warm_up else 0, repeats):
        for name, call in cases.items():
            notify(f"{name}, {'warm-up' if round_ < 0 else f'round {round_ + 1} of {repeats}'}")
            start = time.perf_counter()
            call()
            synchronise()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio_of_medians(slow: Timing, fast: Timing) -> float:
    """How many times as fast the second is."""
    return round(slow.median / fast.median, 3)
