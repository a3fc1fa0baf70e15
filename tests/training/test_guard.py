"""A loss or gradient that is no number changes nothing, is counted, and stops the run in the end."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from tiny_run import Data, Steps, Tiny, fit

from promptris.errors import InputError
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.guard import BadLossGuard

NAN, INF, NO_GRADIENT = math.nan, math.inf, 0.0


class History(Steps):
    """Weights and the optimiser's state after every step."""

    def __init__(self) -> None:
        self.states: list[tuple[dict[str, Any], dict[int, Any]]] = []
        super().__init__(self.note)

    def note(self, step: int, trainer: L.Trainer) -> None:
        weights = trainer.lightning_module.layer.state_dict()
        self.states.append(copy.deepcopy((weights, trainer.optimizers[0].state_dict()["state"])))

    def changed(self) -> list[bool]:
        """Of each step but the first: did anything change in it?"""
        return [not same(before, after) for before, after in zip(self.states, self.states[1:], strict=False)]


def same(one: Any, other: Any) -> bool:
    """Two nested states are equal, tensor by tensor."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def half_precision(scale: float = 1024.0) -> list[Any]:
    """The plugin of float16 with its scaler, which runs on a CPU too."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))]


@pytest.mark.parametrize("factor", [NAN, INF])
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}, "half"])
def test_a_bad_step_changes_neither_weights_nor_moments(factor: float, options: Any):
    history = History()
    if options == "half":
        options = {"plugins": half_precision(), "gradient_clip_val": 0.1}
    with pytest.warns(UserWarning, match=rf"the loss of step 3 is {factor} \(images 20, 21\).*1 of the 1"):
        fit(5, [BadLossGuard(1), history], Data({2: factor}), **options)
    assert history.changed() == [True, False, True, True]


def test_a_bad_first_step_leaves_the_optimiser_empty():
    history = History()
    with pytest.warns(UserWarning, match="the loss of step 1 is nan"):
        fit(2, [BadLossGuard(1), history], Data({0: NAN}))
    weights, moments = history.states[0]
    assert same(dict(weights), dict(Tiny().layer.state_dict())) and moments == {}
    assert history.changed() == [True]


def test_one_bad_pass_spoils_its_whole_step_and_is_named():
    history = History()
    with pytest.warns(UserWarning, match=r"the loss of step 2 is nan \(images 40, 41\)"):
        fit(3, [BadLossGuard(1), history], Data({4: NAN}), accumulate=3)
    assert history.changed() == [False, True]


def test_good_steps_are_what_they_are_without_the_guard():
    data = Data({1: 3.0})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*left out.*")
        guarded = fit(4, [BadLossGuard(0)], data, gradient_clip_val=0.5)
    plain = fit(4, [], data, gradient_clip_val=0.5)
    assert same(dict(guarded.state_dict()), dict(plain.state_dict()))


def test_without_the_guard_the_weights_are_lost():
    """What the guard is for, and that the bad batches here are bad."""
    for factor in (NAN, INF, NO_GRADIENT):
        assert fit(3, [], Data({1: factor})).layer.weight.isnan().all()


def test_a_bad_gradient_under_a_good_loss_is_left_out():
    history = History()
    with pytest.warns(
        UserWarning, match=r"the gradient of step 2 is no number, with a loss of 0 \(images 10, 11\)"
    ):
        fit(3, [BadLossGuard(1), history], Data({1: NO_GRADIENT}))
    assert history.changed() == [False, True]


def test_bad_gradients_of_half_precision_are_left_to_its_scaler():
    plugins, guard, history = half_precision(), BadLossGuard(0), History()
    fit(3, [guard, history], Data({1: NO_GRADIENT}), plugins=plugins)
    assert guard.skipped == 0
    assert history.changed() == [False, True]
    assert plugins[0].scaler.get_scale() == 512.0


def test_one_too_many_stops_the_run_and_the_last_checkpoint_stays(tmp_path: Path):
    checkpoint = StepCheckpoint(tmp_path / "last.ckpt", 0.0)
    with (
        pytest.warns(UserWarning, match="step 2"),
        pytest.raises(
            InputError, match=r"the loss of step 5 is inf \(images 40, 41\), after 1 steps that were left out"
        ),
    ):
        fit(9, [BadLossGuard(1), checkpoint], Data({1: NAN, 4: INF}))
    assert checkpoint.saved_step() == 4
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())


def test_none_allowed_stops_at_the_first():
    with pytest.raises(
        InputError, match=r"the loss of step 2 is nan \(images 10, 11\): look at these images"
    ):
        fit(3, [BadLossGuard(0)], Data({1: NAN}))


@pytest.mark.filterwarnings("ignore:.*may be.*:UserWarning")
def test_the_count_goes_on_in_a_resumed_run(tmp_path: Path):
    data = Data({1: NAN, 2: NAN, 5: NAN})
    guard = BadLossGuard(2)
    fit(4, [guard, StepCheckpoint(tmp_path / "last.ckpt", 0.0)], data)
    assert guard.skipped == 2
    checkpoint = StepCheckpoint(tmp_path / "last.ckpt", 0.0)
    with pytest.raises(InputError, match="the loss of step 6"):
        fit(8, [BadLossGuard(2), checkpoint], data, checkpoint=checkpoint)
    assert checkpoint.saved_step() == 5
