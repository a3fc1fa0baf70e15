"""One training step: prompt dropout, the ramp of instance contrast, what the optimiser holds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from promptris.modeling.prompt_ris import PromptRIS
from promptris.structures import SegmentationTargets, TrainingBatch
from promptris.training.config import Stage, TrainConfig
from promptris.training.module import PromptRISTraining, kept_prompts
from promptris.training.schedule import Schedule


def make_batch(model: PromptRIS, with_sam: bool) -> TrainingBatch:
    rng = np.random.default_rng(0)
    processor = model.processor()
    images = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(2)]
    size = model.sam.mask_size
    return TrainingBatch(
        images=processor.images(images, with_sam=with_sam),
        expressions=processor.expressions(["red", "a b", "blue", "c"], [0, 0, 1, 1]),
        truth=SegmentationTargets(torch.rand(4, size, size).round(), torch.tensor([1, 1, 2, 3])),
        image_ids=(10, 11),
        seeds=(5, 6),
    )


def make_module(model: PromptRIS, **changes: float) -> PromptRISTraining:
    config = TrainConfig(**changes)
    return PromptRISTraining(
        model, config, Schedule.from_epochs([Stage(1, False), Stage(1, True)], 10, 1.0, 0.9)
    )


def test_prompt_dropout_rates_and_that_one_always_stays():
    torch.manual_seed(0)
    keep = kept_prompts(20_000, 0.2, torch.device("cpu"))
    assert keep.any(dim=1).all()
    # Dropped with 0.2, except that when all three are (0.008) one of them comes back.
    expected = 0.8 + 0.008 / 3
    assert keep.float().mean(dim=0).tolist() == pytest.approx([expected] * 3, abs=0.012)


@pytest.mark.parametrize(("dropout", "per_sample"), [(0.0, 3.0), (1.0, 1.0)])
def test_prompt_dropout_extremes(dropout: float, per_sample: float):
    keep = kept_prompts(500, dropout, torch.device("cpu"))
    assert keep.sum(dim=1).float().mean().item() == per_sample


def test_prompts_are_dropped_independently():
    torch.manual_seed(0)
    keep = kept_prompts(20_000, 0.2, torch.device("cpu")).float()
    assert torch.corrcoef(keep.T).fill_diagonal_(0).abs().max() < 0.05


def test_terms_of_both_stages(small_model: PromptRIS):
    module = make_module(small_model)
    coarse = module.training_step(make_batch(small_model, with_sam=False), 0)
    joint = module.training_step(make_batch(small_model, with_sam=True), 0)
    assert set(coarse) == {"loss", "coarse_bce", "coarse_dice", "coarse_icl"}
    assert set(joint) == set(coarse) | {"final_bce", "final_dice", "final_icl"}


def test_the_loss_is_the_sum_of_its_terms(small_model: PromptRIS):
    terms = make_module(small_model).training_step(make_batch(small_model, with_sam=True), 0)
    total = sum(value for name, value in terms.items() if name != "loss")
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_instance_contrast_is_ramped_in(small_model: PromptRIS):
    module = make_module(small_model, icl_ramp=0.5)
    assert module.icl_scale() == pytest.approx(1 / 10)
    module = make_module(small_model, icl_ramp=0.0)
    assert module.icl_scale() == 1.0


def test_the_optimiser_holds_the_trainable_parameters_once(small_model: PromptRIS):
    module = make_module(small_model, weight_decay=0.3)
    groups = module.configure_optimizers()["optimizer"].param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in small_model.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"]) and all(p.ndim < 2 for p in groups[1]["params"])


def test_towers_that_are_tuned_have_a_rate_of_their_own(small_model: PromptRIS):
    model = copy.deepcopy(small_model)
    model.unfreeze_towers()
    module = make_module(model, lr=0.02, towers_lr=0.25)
    optimizer, scheduler = (module.configure_optimizers()[name] for name in ("optimizer", "lr_scheduler"))
    towers = {id(p) for tower in model.frozen_towers() for p in tower.parameters() if p.requires_grad}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == {id(p) for p in model.parameters() if p.requires_grad} and towers < set(rates)
    highest = max(rates.values())
    assert all(rate == pytest.approx(highest * (0.25 if p in towers else 1)) for p, rate in rates.items())
    assert scheduler["interval"] == "step"


def test_only_learned_parts_change_in_a_step(small_model: PromptRIS):
    model = copy.deepcopy(small_model).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    module = make_module(model)
    optimizer = module.configure_optimizers()["optimizer"]
    torch.manual_seed(0)
    module.training_step(make_batch(model, with_sam=True), 0)["loss"].backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed <= trainable
    # A prompt that no sample kept in this one draw may have no gradient; everything else moves.
    assert len(changed) > 0.9 * len(trainable)
    assert not model.clip.training and not model.sam.training
