"""Batches by step number: the same sequence whether a run was interrupted or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

MakeBatches = Callable[[int, int], Dataset[Any]]
"""(rank, number of processes) -> a data set whose item k is this process's finished batch of step k."""


class StepSampler(Sampler[int]):
    """The step numbers start .. total-1. Its length is `total`, which is what progress is measured by."""

    def __init__(self, total: int, start: int = 0) -> None:
        self.total, self.start = total, start

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class StepData(L.LightningDataModule):
    """Loads the batches of the steps that are not done yet.

    Args:
        make: see `MakeBatches`; called once the processes are connected.
        total: steps of the whole run.
        start: the first one that is not done.
        workers: processes that prepare batches.
        start_worker: called in each of them, with its number.
    """

    def __init__(
        self,
        make: MakeBatches,
        total: int,
        start: int = 0,
        workers: int = 0,
        start_worker: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.make, self.total, self.start = make, total, start
        self.workers, self.start_worker = workers, start_worker

    def train_dataloader(self) -> DataLoader[Any]:
        """One loader for the whole run; there are no epochs to Lightning."""
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return DataLoader(
            self.make(rank, world_size),
            batch_size=None,
            sampler=StepSampler(self.total, self.start),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=self.start_worker,
            pin_memory=torch.cuda.is_available(),
        )


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set torch's random state as a function of the step, so that a resumed run draws the same numbers."""
    # Odd constants keep neighbouring steps and ranks apart in the generator's 64-bit seed.
    torch.manual_seed(
        (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    )
