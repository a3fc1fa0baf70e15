"""Stages in steps, and the learning rate of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from promptris.errors import InputError
from promptris.training.config import Stage, TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Which stage a step belongs to and how fast it learns.

    Attributes:
        stages: as configured.
        ends: step at which each stage ends.
        lr: learning rate at the start of the run.
        power: of the polynomial decay.
        warmup: steps of linear warm-up at the start of the run.
        steps_per_epoch: steps in which every image comes once.
    """

    stages: tuple[Stage, ...]
    ends: tuple[int, ...]
    lr: float
    power: float
    warmup: int = 0
    steps_per_epoch: int = 1

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
        return cls(tuple(stages), tuple(accumulate(lengths)), lr, power, warmup, steps_per_epoch)

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

    def item_needs_sam(self, accumulate: int, item: int) -> bool:
        """Whether SAM is run in a backward pass, of which `accumulate` make a step."""
        return self.needs_sam(item // accumulate)

    def learning_rate(self, step: int) -> float:
        """Warm-up, then polynomial decay over the run or, where a stage has its own rate, over the stage."""
        number = self.stage_number(step)
        own = self.stages[number].lr
        start = self.ends[number - 1] if number and own is not None else 0
        end = self.ends[number] if own is not None else self.total
        left = max(0.0, 1 - (step - start) / (end - start))
        risen = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return (self.lr if own is None else own) * left**self.power * risen


def make_schedule(config: TrainConfig, images: int, processes: int = 1) -> Schedule:
    """The schedule of a run over so many training images.

    Raises:
        InputError: when there are fewer images than one step needs, or a stage has no step.
    """
    passes = images // (config.images_per_step * processes)
    if passes < config.accumulate:
        needed = config.images_per_step * processes * config.accumulate
        raise InputError(
            f"the training data has {images} images, fewer than the {needed} of one step: add data or lower "
            "train.images_per_step or train.accumulate"
        )
    return Schedule.from_epochs(
        config.stages, passes // config.accumulate, config.lr, config.decay_power, config.warmup
    )
