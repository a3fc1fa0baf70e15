"""Stages and learning rates."""

from __future__ import annotations

import pytest

from promptris.errors import InputError
from promptris.training.config import PretrainingConfig, Stage, TrainConfig
from promptris.training.schedule import Schedule


def paper_schedule(steps_per_epoch: int = 10) -> Schedule:
    config = TrainConfig()
    return Schedule.from_epochs(config.stages, steps_per_epoch, config.lr, config.decay_power)


def test_the_paper_trains_20_epochs_without_and_30_with_sam():
    schedule = paper_schedule()
    assert schedule.total == 500
    assert [schedule.needs_sam(step) for step in (0, 199, 200, 499)] == [False, False, True, True]


def test_polynomial_decay_over_the_whole_run():
    schedule = paper_schedule()
    assert schedule.learning_rate(0) == pytest.approx(1e-4)
    # Half of the way: 1e-4 * 0.5 ** 0.9.
    assert schedule.learning_rate(250) == pytest.approx(1e-4 * 0.5358867, rel=1e-6)
    assert schedule.learning_rate(500) == 0.0


def test_a_stage_with_a_rate_of_its_own_decays_over_the_stage():
    schedule = Schedule.from_epochs([Stage(1, False, 2e-3), Stage(0.5, True, 1e-3)], 100, 1.0, 1.0)
    assert schedule.ends == (100, 150)
    assert schedule.learning_rate(50) == pytest.approx(1e-3)
    assert schedule.learning_rate(100) == pytest.approx(1e-3)
    assert schedule.learning_rate(125) == pytest.approx(0.5e-3)


def test_stage_numbers_past_the_end_are_the_last_stage():
    assert paper_schedule().stage_number(10_000) == 1


@pytest.mark.parametrize("stages", [[], [Stage(0.0)], [Stage(1), Stage(0.001)]])
def test_a_stage_without_a_step_is_refused(stages: list[Stage]):
    with pytest.raises(InputError, match="at least one step"):
        Schedule.from_epochs(stages, 10, 1e-4, 0.9)


def test_pretraining_rate_warms_up_and_ends_at_the_final_rate():
    config = PretrainingConfig(steps=1000, lr=1e-3, final_lr=1e-5, warmup=100)
    assert config.learning_rate(0) == pytest.approx(1e-5)
    assert config.learning_rate(99) == pytest.approx(1e-3)
    # Half of the cosine: the mean of both rates.
    assert config.learning_rate(550) == pytest.approx((1e-3 + 1e-5) / 2)
    assert config.learning_rate(1000) == pytest.approx(1e-5)


def test_warm_up_multiplies_the_decay_at_the_start():
    schedule = Schedule.from_epochs([Stage(1)], 100, lr=1.0, power=1.0, warmup=4)
    assert [schedule.learning_rate(step) for step in (0, 1, 3, 4)] == pytest.approx([0.25, 0.495, 0.97, 0.96])
