"""What happens around training steps: randomness, figures, the metrics file, the list of what was skipped."""

from __future__ import annotations

import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from promptris.team import Team
from promptris.training.step_table import StepTable
from promptris.training.steps import seed_step


class SeedSteps(L.Callback):
    """Makes everything random in a step a function of the seed and the step's number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        seed_step(self.seed, trainer.global_step, trainer.global_rank)


class AfterSteps(L.Callback, ABC):
    """Does something after steps of the optimiser; backward passes that only add to the gradient do not count."""

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._done = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._done:
            self._done = trainer.global_step
            self.after_step(trainer, module, self._done)

    @abstractmethod
    def after_step(self, trainer: L.Trainer, module: Any, step: int) -> None:
        """Called once per step, with how many are done."""


@dataclass(frozen=True)
class StepRecord:
    """The figures of one step of the optimiser, over all processes.

    Attributes:
        step: its number, from 1.
        total: steps of the run.
        stage: index of its stage.
        losses: means of the loss and its terms.
        lr: learning rate.
        seconds: time since the step before.
        images: images of this step.
        peak_memory: most bytes in use so far, of the GPU where there is one.
    """

    step: int
    total: int
    stage: int
    losses: dict[str, float]
    lr: float
    seconds: float
    images: int
    peak_memory: int

    @property
    def images_per_second(self) -> float:
        """Images of this step by its time."""
        return self.images / max(self.seconds, 1e-9)


Sink = Callable[[StepRecord], None]


class StepFigures(L.Callback):
    """Collects the figures of each step and hands them to whoever shows or stores them.

    Args:
        total: steps of the run.
        sinks: called on the first process, once per step of the optimiser.
    """

    def __init__(self, total: int, sinks: Sequence[Sink]) -> None:
        self.total, self.sinks = total, sinks

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._done, self._since = trainer.global_step, time.perf_counter()
        self._losses: dict[str, list[torch.Tensor]] = {}
        self._images = 0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        # Stage and rate move on before the batch's end is announced.
        self._stage = getattr(module, "stage_number", 0)
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in (outputs or {}).items():
            # Lightning has divided the loss, and only the loss, by the number of backward passes.
            factor = trainer.accumulate_grad_batches if name == "loss" else 1
            self._losses.setdefault(name, []).append(value.detach() * factor)
        self._images += len(getattr(batch, "image_ids", ()))
        if trainer.global_step == self._done:
            return  # gradients are still being accumulated
        means = {name: torch.stack(values).float().mean() for name, values in self._losses.items()}
        if trainer.world_size > 1:
            means = {name: trainer.strategy.reduce(value, reduce_op="mean") for name, value in means.items()}
        now = time.perf_counter()
        record = StepRecord(
            step=trainer.global_step,
            total=self.total,
            stage=self._stage,
            losses={name: value.item() for name, value in means.items()},
            lr=self._lr,
            seconds=now - self._since,
            images=self._images * trainer.world_size,
            peak_memory=peak_memory(),
        )
        self._done, self._since, self._losses, self._images = trainer.global_step, now, {}, 0
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(record)


def peak_memory() -> int:
    """The most bytes that were in use at once: of the current GPU, or of this process where there is none."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


class MetricsFile:
    """A sink that appends one row per step to `metrics.csv`.

    Args:
        path: the file.
        terms: names of the loss terms.
        resumed_at: steps that are done already.
    """

    def __init__(self, path: Path, terms: tuple[str, ...], resumed_at: int = 0) -> None:
        columns = ("step", "stage", "loss", "lr", *terms, "seconds", "images_per_second", "memory_mb")
        self.table = StepTable(path, columns, resumed_at)

    def __call__(self, record: StepRecord) -> None:
        row: dict[str, Any] = {name: f"{value:.6g}" for name, value in record.losses.items()}
        row |= {
            "step": record.step,
            "stage": record.stage,
            "lr": f"{record.lr:.6g}",
            "seconds": f"{record.seconds:.4f}",
            "images_per_second": f"{record.images_per_second:.3g}",
            "memory_mb": round(record.peak_memory / 2**20),
        }
        self.table.append(row)


class SkippedItems(L.Callback):
    """Lists the items that a run goes on without in a file, one sentence a line, each once.

    Args:
        path: the file; what a resumed run listed before stays in it.
        known: items that were left out before training began.
    """

    def __init__(self, path: Path, known: Sequence[str]) -> None:
        self.path, self.known = path, known

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._team = Team(trainer.global_rank, trainer.world_size)
        self._listed: set[str] = set()
        if self.path.exists():
            self._listed.update(self.path.read_text(encoding="utf-8").splitlines())
        self._list(self.known)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._list([sentence for part in self._team.gather(batch.skipped) for sentence in part])

    def _list(self, sentences: Sequence[str]) -> None:
        lines = [" ".join(sentence.split()) for sentence in sentences]
        new = [line for line in dict.fromkeys(lines) if line not in self._listed]
        self._listed.update(new)
        if new and self._team.rank == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)
