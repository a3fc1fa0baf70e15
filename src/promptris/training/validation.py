"""Evaluation in the middle of a run, in numbers and in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from promptris.data.dataset import ReferDataset
from promptris.evaluation.protocol import Evaluation, evaluate, score
from promptris.predictor import Predictor
from promptris.team import Team
from promptris.training.boards import Boards, examples_of, panels_of
from promptris.training.callbacks import AfterSteps
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.step_table import StepTable

COLUMNS = ("step", "mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")


class Validation(AfterSteps):
    """Evaluates the model every few steps, by the one protocol, all processes together.

    Args:
        dataset: the data.
        split: which split.
        every: steps of the optimiser between evaluations.
        path: CSV file that gets a row per evaluation, final masks and coarse ones (columns "coarse_...").
        checkpoint: keeps the state with the highest mIoU.
        boards: get the metrics too.
    """

    def __init__(
        self,
        dataset: ReferDataset,
        split: str,
        every: int,
        path: Path,
        checkpoint: StepCheckpoint | None = None,
        boards: Boards | None = None,
    ) -> None:
        self.dataset, self.split, self.every, self.path = dataset, split, every, path
        self.checkpoint, self.boards = checkpoint, boards

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        super().on_train_start(trainer, module)
        if trainer.is_global_zero:
            columns = [*COLUMNS, *(f"coarse_{name}" for name in COLUMNS[1:])]
            self._table = StepTable(self.path, columns, trainer.global_step)

    def after_step(self, trainer: L.Trainer, module: Any, step: int) -> None:
        if step % self.every == 0 and not trainer.should_stop:
            self.evaluate(trainer, module)

    def evaluate(self, trainer: L.Trainer, module: Any) -> Evaluation:
        """Evaluate now."""
        team = Team(trainer.global_rank, trainer.world_size)
        with trainer.precision_plugin.forward_context():
            result = evaluate(Predictor(module.model), self.dataset, self.split, team=team)
        module.model.train()
        if trainer.is_global_zero:
            self._append(trainer.global_step, result)
        if self.boards is not None:
            self.boards.scalars(trainer.global_step, {"val": result.to_dict()})
        if self.checkpoint is not None:
            self.checkpoint.save_best(trainer, result.final["mIoU"])
        return result

    def _append(self, step: int, result: Evaluation) -> None:
        row: dict[str, Any] = {"step": step}
        for name in COLUMNS[1:]:
            row[name] = f"{result.final[name]:.6f}"
            row[f"coarse_{name}"] = f"{result.coarse[name]:.6f}"
        self._table.append(row)


class Pictures(AfterSteps):
    """Shows what the model makes of a few expressions, always the same ones, at the end of every epoch.

    Args:
        dataset: the data.
        split: where the expressions are from.
        every: steps of the optimiser between pictures; they are shown at the end of training besides.
        boards: where to; None on all processes but the first.
        count: how many.
    """

    def __init__(
        self,
        dataset: ReferDataset,
        split: str,
        every: int,
        boards: Boards | None,
        count: int = 6,
    ) -> None:
        self.few, self.split, self.every = examples_of(dataset, split, count), split, every
        self.boards, self.count = boards, count

    def after_step(self, trainer: L.Trainer, module: Any, step: int) -> None:
        if step % self.every == 0 or step == trainer.max_steps:
            self.show(trainer, module)

    def show(self, trainer: L.Trainer, module: Any) -> None:
        """Show them now."""
        if self.boards is None:
            return
        with trainer.precision_plugin.forward_context():
            scored = list(score(Predictor(module.model), self.few, self.split))
        module.model.train()
        self.boards.pictures(trainer.global_step, panels_of(scored, self.few.images, self.count))
