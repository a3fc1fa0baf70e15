"""Batches by step number: the same sequence whether a run was interrupted or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class StepSampler(Sampler[int]):
    """The step numbers start .. total-1. Its length is `total`, which is what progress is measured by."""

    def __init__(self, total: int, start: int = 0) -> None:
        self.total, self.start = total, start

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


def step_loader(batches: Dataset[Any], total: int, start: int, workers: int = 0) -> DataLoader[Any]:
    """A loader over a data set whose item k is the finished batch of step k."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=StepSampler(total, start),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set torch's random state as a function of the step, so that a resumed run draws the same numbers."""
    # Odd constants keep neighbouring steps and ranks apart in the generator's 64-bit seed.
    torch.manual_seed(
        (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    )
