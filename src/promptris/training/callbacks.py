"""What happens around training steps: the metrics file and the lines a person reads."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from promptris.training.steps import seed_step


class SeedSteps(L.Callback):
    """Makes everything random in a step a function of the seed and the step's number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        seed_step(self.seed, trainer.global_step, trainer.global_rank)


class MetricsFile(L.Callback):
    """Appends one row per step to `metrics.csv`; a resumed run drops the rows it is about to repeat.

    Args:
        path: the file.
        terms: names of the loss terms; columns are step, stage, loss, lr, the terms and seconds per step.
    """

    def __init__(self, path: Path, terms: tuple[str, ...]) -> None:
        self.path = path
        self.columns = ("step", "stage", "loss", "lr", *terms, "seconds")

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        kept: list[dict[str, str]] = []
        if self.path.exists() and trainer.global_step > 0:
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        # Step counter, stage and rate move on before the batch's end is announced.
        self._started = time.perf_counter()
        self._stage = getattr(module, "stage_number", 0)
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {name: f"{value.item():.6g}" for name, value in outputs.items()}
        row |= {
            "step": trainer.global_step,
            "stage": self._stage,
            "lr": f"{self._lr:.6g}",
            "seconds": f"{time.perf_counter() - self._started:.4f}",
        }
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(row)


class ProgressLines(L.Callback):
    """One line every few seconds: step, losses, learning rate, time left.

    Args:
        name: what is being trained.
        total: number of steps.
        every: seconds between lines.
    """

    def __init__(self, name: str, total: int, every: float = 10.0) -> None:
        self.name, self.total, self.every = name, total, every

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._start_step = trainer.global_step
        self._start = self._last = time.perf_counter()
        self._recent: dict[str, list[float]] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            self._recent.setdefault(name, []).append(value.item())
        now, step = time.perf_counter(), trainer.global_step
        if now - self._last < self.every and step < self.total:
            return
        means = "  ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in self._recent.items())
        left = (now - self._start) / max(step - self._start_step, 1) * (self.total - step)
        if trainer.is_global_zero:
            print(
                f"{self.name} {step}/{self.total}  {means}  {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
        self._last, self._recent = now, {}


class SkippedItems(L.Callback):
    """Lists the items that a run goes on without in a file, one sentence a line, each once.

    Args:
        path: the file; what a resumed run listed before stays in it.
        known: items that were left out before training began.
    """

    def __init__(self, path: Path, known: Sequence[str]) -> None:
        self.path, self.known = path, known

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._listed: set[str] = set()
        if self.path.exists():
            self._listed.update(self.path.read_text(encoding="utf-8").splitlines())
        self._list(self.known)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._list(batch.skipped)

    def _list(self, sentences: Sequence[str]) -> None:
        lines = [" ".join(sentence.split()) for sentence in sentences]
        new = [line for line in dict.fromkeys(lines) if line not in self._listed]
        self._listed.update(new)
        if new:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)
