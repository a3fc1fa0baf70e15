"""Eq. 7-9 and the segmentation losses: numbers by hand, and what their gradients do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from promptris.errors import InputError
from promptris.losses import (
    PromptRISCriterion,
    SegmentationTargets,
    dice_loss,
    instance_contrastive_loss,
    mask_bce,
    pairwise_dice,
    trust_weight,
)


@dataclass
class Outputs:
    coarse_logits_hr: Tensor
    mask_logits: Tensor | None
    image_index: Tensor


def test_pairwise_dice_by_hand() -> None:
    # A = (1, 0), B = (1/2, 1/2), C = (0, 1): O_AB = 2 * 1/2 / (1 + 1/2) = 2/3 = O_BC, O_AC = 0.
    overlap = pairwise_dice(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    expected = torch.tensor([[1, 2 / 3, 0], [2 / 3, 1, 2 / 3], [0, 2 / 3, 1]])
    torch.testing.assert_close(overlap, expected)


def test_pairwise_dice_takes_maps_and_empty_masks() -> None:
    masks = torch.rand(3, 5, 7)
    torch.testing.assert_close(pairwise_dice(masks), pairwise_dice(masks.flatten(1)))
    assert pairwise_dice(torch.zeros(2, 4, 4)).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(InputError):
        pairwise_dice(torch.rand(5))


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        # -1/4 [ 0.5 ln(1-0.25) + 1.0 ln(1-0.25) ] = 0.375 * 0.2876821
        ([[True, False], [False, True]], 0.1078808),
        # -1/4 [ 0.5 ln 0.25 + 1.0 ln 0.25 ] = 0.375 * 1.3862944
        ([[True, True], [True, True]], 0.5198604),
    ],
)
def test_instance_contrast_by_hand(same: list[list[bool]], expected: float) -> None:
    overlap = torch.tensor([[1.0, 0.25], [0.25, 1.0]])  # the diagonal adds ln(1 - 1e-6), below the tolerance
    loss = instance_contrastive_loss(overlap, torch.tensor(same), torch.tensor([0.5, 1.0]))
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def test_instance_contrast_weighs_rows() -> None:
    """w_i belongs to the row: with an overlap that is not symmetric the two rows cost differently."""
    overlap = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    loss = instance_contrastive_loss(overlap, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(-math.log(0.5) / 4, abs=2e-6)


def test_instance_contrast_at_the_extremes_is_finite() -> None:
    overlap = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    same = torch.tensor([[False, True], [False, False]])
    loss = instance_contrastive_loss(overlap, same, torch.ones(2))
    # All four pairs are as wrong as can be: each costs -ln 1e-6 = 13.8155, up to float32's 1 - 1e-6.
    assert loss.item() == pytest.approx(13.8155, abs=0.02)
    loss.backward()
    assert torch.isfinite(overlap.grad).all()  # type: ignore[arg-type]

    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    every = torch.ones(2, 2, dtype=torch.bool)
    instance_contrastive_loss(pairwise_dice(logits.sigmoid()), every, torch.ones(2)).backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_no_gradient_through_the_weight() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    same = torch.eye(3, dtype=torch.bool)

    def gradient(attached: bool) -> Tensor:
        x = logits.clone().requires_grad_()
        weight = x.sigmoid().mean(1)
        weight = weight if attached else weight.detach()
        instance_contrastive_loss(pairwise_dice(x.sigmoid()), same, weight).backward()
        assert x.grad is not None
        return x.grad

    torch.testing.assert_close(gradient(attached=True), gradient(attached=False), rtol=0, atol=0)
    assert gradient(attached=True).abs().max() > 1e-3


def test_instance_contrast_pulls_together_and_pushes_apart() -> None:
    """Masks 0, 1 mean one instance and 2, 3 another; all four start as noise around one half."""
    logits = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    instance = torch.tensor([7, 7, 9, 9])
    same = instance[:, None] == instance[None, :]
    optimizer = torch.optim.Adam([logits], lr=0.1)
    before = pairwise_dice(logits.sigmoid()).detach()
    for _ in range(200):
        loss = instance_contrastive_loss(pairwise_dice(logits.sigmoid()), same, torch.ones(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = pairwise_dice(logits.sigmoid()).detach()
    off_diagonal = before[~torch.eye(4, dtype=torch.bool)]
    assert off_diagonal.min() > 0.8 and off_diagonal.max() < 0.9  # at the start no pair stands out
    assert after[0, 1] > 0.95 and after[2, 3] > 0.95
    assert after[:2, 2:].max() < 0.2


def test_instance_contrast_checks_shapes() -> None:
    with pytest.raises(InputError, match="weight"):
        instance_contrastive_loss(torch.eye(3), torch.eye(3).bool(), torch.ones(2))


def test_dice_by_hand() -> None:
    # p = 1/2 in four cells, g = (1, 1, 0, 0): 2 * 1 / (1 + 2) = 2/3.
    logits, truth = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert dice_loss(logits, truth, eps=0).item() == pytest.approx(1 / 3)
    assert dice_loss(logits, truth).item() == pytest.approx(1 - 3 / 4)  # eps 1: (2 + 1) / (3 + 1)
    # Averaged over masks, not pooled over them: the second mask is right, loss 0.
    both = dice_loss(torch.cat([logits, 200 * truth - 100]), truth.repeat(2, 1, 1), eps=0)
    assert both.item() == pytest.approx(1 / 6)


def test_dice_is_lowest_at_the_soft_truth() -> None:
    truth = torch.tensor([[[0.9, 0.5], [0.25, 0.05]]])
    logits = truth.logit().requires_grad_()
    loss = dice_loss(logits, truth)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6
    assert dice_loss(torch.where(truth >= 0.5, 9.0, -9.0), truth).item() > 0.05


def test_dice_of_nothing_against_nothing() -> None:
    assert dice_loss(torch.full((1, 4, 4), -50.0), torch.zeros(1, 4, 4)).item() == pytest.approx(0)


def test_bce_by_hand() -> None:
    # p = 3/4: -ln 3/4 = 0.287682 where g = 1, -ln 1/4 = 1.386294 where g = 0, their mean where g = 1/2.
    logits = torch.full((1, 1, 3), math.log(3))
    losses = [mask_bce(logits[..., :1], torch.full((1, 1, 1), g)).item() for g in (1.0, 0.0, 0.5)]
    assert losses == pytest.approx([0.287682, 1.386294, 0.836988], abs=1e-5)
    truth = torch.tensor([[[1.0, 0.0, 0.5]]])
    assert mask_bce(logits, truth).item() == pytest.approx(0.836988, abs=1e-5)


def test_segmentation_losses_refuse_other_shapes() -> None:
    for loss in (mask_bce, dice_loss):
        with pytest.raises(InputError, match="resolution"):
            loss(torch.zeros(2, 4, 4), torch.zeros(2, 8, 8))


def test_trust_weight_by_hand() -> None:
    # Found {0, 2}, true {0, 1} (share above one half): 1 of 3. Both empty: 0.
    logits = torch.tensor([[[3.0, -3.0, 3.0, -3.0]], [[-1.0, -1.0, -1.0, -1.0]]], requires_grad=True)
    truth = torch.tensor([[[1.0, 0.6, 0.4, 0.0]], [[0.0, 0.4, 0.5, 0.0]]])
    weight = trust_weight(logits, truth)
    assert weight.tolist() == pytest.approx([1 / 3, 0])
    assert not weight.requires_grad


def batch(seed: int = 0) -> tuple[Outputs, SegmentationTargets]:
    """Five expressions: image 0 has three, image 1 two; instance id 4 appears in both images."""
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(5, 6, 6, generator=generator) > 0.5).float()
    coarse = torch.randn(5, 6, 6, generator=generator) + 2 * (2 * truth - 1)
    final = torch.randn(5, 6, 6, generator=generator) + 4 * (2 * truth - 1)
    targets = SegmentationTargets(truth, torch.tensor([4, 8, 4, 4, 5]))
    return Outputs(coarse, final, torch.tensor([0, 0, 0, 1, 1])), targets


def expected_icl(logits: Tensor, targets: SegmentationTargets) -> float:
    """Eq. 8 written as loops over images and pairs, averaged over the two images."""
    per_image = []
    for rows in ([0, 1, 2], [3, 4]):
        total = 0.0
        for i in rows:
            p, g = logits[i] > 0, targets.masks[i] > 0.5
            weight = (p & g).sum().item() / (p | g).sum().item()
            for j in rows:
                si, sj = logits[i].double().sigmoid(), logits[j].double().sigmoid()
                o = (2 * (si * sj).sum() / ((si * si).sum() + (sj * sj).sum())).item()
                o = min(max(o, 1e-6), 1 - 1e-6)
                same = targets.instance_id[i] == targets.instance_id[j]
                total += weight * (math.log(o) if same else math.log(1 - o))
        per_image.append(-total / len(rows) ** 2)
    return sum(per_image) / 2


def test_criterion_terms() -> None:
    outputs, targets = batch()
    terms = PromptRISCriterion()(outputs, targets)
    assert set(terms) == {"loss"} | {f"{m}_{t}" for m in ("coarse", "final") for t in ("bce", "dice", "icl")}
    for name, logits in (("coarse", outputs.coarse_logits_hr), ("final", outputs.mask_logits)):
        assert logits is not None
        assert terms[f"{name}_icl"].item() == pytest.approx(expected_icl(logits, targets), rel=1e-4)
        assert terms[f"{name}_bce"].item() == pytest.approx(mask_bce(logits, targets.masks).item())
        assert terms[f"{name}_dice"].item() == pytest.approx(dice_loss(logits, targets.masks).item())
    parts = sum(value.item() for name, value in terms.items() if name != "loss")
    assert terms["loss"].item() == pytest.approx(parts)  # Eq. 9, all weights 1


def test_criterion_weights() -> None:
    outputs, targets = batch()
    plain = {k: v.item() for k, v in PromptRISCriterion()(outputs, targets).items()}
    weighted = PromptRISCriterion(coarse_weight=2, final_weight=3, icl_weight=5)(
        outputs, targets, icl_scale=0.5
    )
    expected = (
        2 * (plain["coarse_bce"] + plain["coarse_dice"])
        + 3 * (plain["final_bce"] + plain["final_dice"])
        + 2.5 * (plain["coarse_icl"] + plain["final_icl"])
    )
    assert weighted["loss"].item() == pytest.approx(expected)
    assert weighted["final_icl"].item() == pytest.approx(plain["final_icl"])  # terms are not weighted
    with pytest.raises(InputError, match="icl_weight"):
        PromptRISCriterion(icl_weight=-1)


def test_criterion_without_sam() -> None:
    outputs, targets = batch()
    both = PromptRISCriterion()(outputs, targets)
    outputs.mask_logits = None
    coarse = PromptRISCriterion()(outputs, targets)
    assert set(coarse) == {"loss", "coarse_bce", "coarse_dice", "coarse_icl"}
    assert coarse["loss"].item() == pytest.approx(
        sum(both[f"coarse_{t}"].item() for t in ("bce", "dice", "icl"))
    )


def test_criterion_does_not_care_about_the_order_of_expressions() -> None:
    outputs, targets = batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    assert outputs.mask_logits is not None
    mixed = Outputs(outputs.coarse_logits_hr[order], outputs.mask_logits[order], outputs.image_index[order])
    moved = SegmentationTargets(targets.masks[order], targets.instance_id[order])
    torch.testing.assert_close(PromptRISCriterion()(mixed, moved), PromptRISCriterion()(outputs, targets))


def test_instance_contrast_leaves_other_images_alone() -> None:
    """Image 1's masks move; what image 0 receives as gradient stays the same."""
    outputs, targets = batch()
    gradients = []
    for shift in (0.0, 1.0):
        logits = outputs.coarse_logits_hr.clone()
        logits[3:] += shift
        logits.requires_grad_()
        PromptRISCriterion()(Outputs(logits, None, outputs.image_index), targets)["coarse_icl"].backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3])
    assert gradients[0][:3].abs().max() > 1e-4
    assert (gradients[0][3:] - gradients[1][3:]).abs().max() > 1e-5


def test_criterion_runs_in_float32_under_autocast() -> None:
    outputs, targets = batch()
    assert outputs.mask_logits is not None
    halved = Outputs(outputs.coarse_logits_hr.bfloat16(), outputs.mask_logits.bfloat16(), outputs.image_index)
    rounded = Outputs(halved.coarse_logits_hr.float(), halved.mask_logits.float(), outputs.image_index)  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = PromptRISCriterion()(halved, targets)
        overlap = pairwise_dice(outputs.coarse_logits_hr.sigmoid())
    assert all(term.dtype == torch.float32 for term in mixed.values())
    torch.testing.assert_close(mixed, PromptRISCriterion()(rounded, targets))
    torch.testing.assert_close(overlap, pairwise_dice(outputs.coarse_logits_hr.sigmoid()))


def test_criterion_checks_its_input(unchecked) -> None:
    outputs, targets = batch()
    with pytest.raises(InputError, match="resolution"):
        PromptRISCriterion()(outputs, SegmentationTargets(targets.masks[:, :3], targets.instance_id))
    with pytest.raises(InputError, match="instance_id"):
        PromptRISCriterion()(outputs, SegmentationTargets(targets.masks, targets.instance_id[:4]))
