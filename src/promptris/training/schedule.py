"""Stages in steps, and the learning rate of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from promptris.errors import InputError
from promptris.training.config import Stage


@dataclass(frozen=True)
class Schedule:
    """Which stage a step belongs to and how fast it learns.

    Attributes:
        stages: as configured.
        ends: step at which each stage ends.
        lr: learning rate at the start of the run.
        power: of the polynomial decay.
        warmup: steps of linear warm-up at the start of the run.
    """

    stages: tuple[Stage, ...]
    ends: tuple[int, ...]
    lr: float
    power: float
    warmup: int = 0

    @classmethod
    def from_epochs(
        cls, stages: Sequence[Stage], steps_per_epoch: int, lr: float, power: float, warmup: int = 0
    ) -> Schedule:
        """Stages given in epochs; an `InputError` when one has no step at all."""
        lengths = [round(stage.epochs * steps_per_epoch) for stage in stages]
        if not lengths or min(lengths) < 1:
            raise InputError(
                f"every training stage needs at least one step; the stages of {[s.epochs for s in stages]} "
                f"epochs have {lengths} steps with {steps_per_epoch} steps per epoch"
            )
        return cls(tuple(stages), tuple(accumulate(lengths)), lr, power, warmup)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.ends[-1]

    def stage_number(self, step: int) -> int:
        """Index of the stage a step belongs to."""
        return next((i for i, end in enumerate(self.ends) if step < end), len(self.ends) - 1)

    def needs_sam(self, step: int) -> bool:
        """Whether SAM is run in a step."""
        return self.stages[self.stage_number(step)].sam

    def learning_rate(self, step: int) -> float:
        """Warm-up, then polynomial decay over the run or, where a stage has its own rate, over the stage."""
        number = self.stage_number(step)
        own = self.stages[number].lr
        start = self.ends[number - 1] if number and own is not None else 0
        end = self.ends[number] if own is not None else self.total
        left = max(0.0, 1 - (step - start) / (end - start))
        risen = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return (self.lr if own is None else own) * left**self.power * risen
