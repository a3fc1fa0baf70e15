"""The training losses: segmentation on both masks and instance contrast between expressions (Eq. 7-9).

The criterion scores a model's output and keeps every term by name. All of it runs in float32, under mixed
precision too: sums over a 256x256 mask and logarithms near 0 and 1 do not survive half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from promptris.errors import InputError
from promptris.structures import SegmentationTargets

# The overlap stays this far from 0 and 1, which bounds each logarithm of Eq. 8 at about -13.8.
OVERLAP_MARGIN = 1e-6


class ScoredOutput(Protocol):
    """The part of a model's output that the criterion reads."""

    @property
    def coarse_logits_hr(self) -> Tensor:
        """float [B, h, w]: the coarse map at the resolution of SAM's mask prompt."""

    @property
    def mask_logits(self) -> Tensor | None:
        """float [B, h, w]: the final masks; None where SAM was not run."""

    @property
    def image_index(self) -> Tensor:
        """int64 [B]: which image of the batch each expression belongs to."""


@contextmanager
def _full_precision(tensor: Tensor) -> Iterator[None]:
    """Turn autocast off on the tensor's device: it would compute the products of Eq. 7 in half precision."""
    with torch.autocast(device_type=tensor.device.type, enabled=False):
        yield


# ----------------------------------------------------------------------------------------------- segmentation


def mask_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of mask logits, averaged over pixels and masks.

    Args:
        logits: [B, h, w].
        target: [B, h, w], shares of foreground in [0, 1].

    Returns a float32 scalar >= 0.
    """
    _check_same_shape(logits, target)
    with _full_precision(logits):
        return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice_loss(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """Dice loss in the form of V-Net, with squares in the denominator, averaged over masks.

    For probabilities p = sigmoid(logits) and truth g, per mask:
    `1 - (2 sum p g + eps) / (sum p^2 + sum g^2 + eps)`.
    The squares make p = g the minimum, 0, for soft truth as well; with plain sums it would reward pushing
    half-covered border cells to 1. It is also the overlap of Eq. 7, measured against the truth.

    Args:
        logits: [B, h, w].
        target: [B, h, w], shares of foreground in [0, 1].
        eps: in cells; keeps an empty mask against an empty truth at loss 0.

    Returns a float32 scalar in [0, 1].
    """
    _check_same_shape(logits, target)
    with _full_precision(logits):
        probs, truth = logits.float().sigmoid().flatten(1), target.float().flatten(1)
        shared = 2 * (probs * truth).sum(1)
        total = probs.square().sum(1) + truth.square().sum(1)
        return (1 - (shared + eps) / (total + eps)).mean()


# ------------------------------------------------------------------------------------------ instance contrast


def pairwise_dice(probs: Tensor) -> Tensor:
    """Overlap of every pair of soft masks (Eq. 7).

    `O_ij = 2 sum_k S_i^k S_j^k / (sum_k (S_i^k)^2 + sum_k (S_j^k)^2)`

    Args:
        probs: [b, H, W] or [b, P], sigmoid masks in [0, 1].

    Returns float32 [b, b], symmetric, in [0, 1], ones on the diagonal; a mask that is zero everywhere
    overlaps nothing.
    """
    if probs.ndim < 2:
        raise InputError(f"The masks have shape {tuple(probs.shape)}: pass [masks, height, width].")
    with _full_precision(probs):
        flat = probs.float().flatten(1)
        energy = flat.square().sum(1)
        total = energy[:, None] + energy[None, :]
        return 2 * (flat @ flat.T) / total.clamp(min=torch.finfo(torch.float32).tiny)


def instance_contrastive_loss(overlap: Tensor, same_instance: Tensor, weight: Tensor) -> Tensor:
    """Instance contrast among the b expressions of one image (Eq. 8).

    `L = -1/b^2 sum_i sum_j w_i [ Y_ij log O_ij + (1 - Y_ij) log(1 - O_ij) ]`

    Args:
        overlap: [b, b], the O of Eq. 7; clamped to [1e-6, 1 - 1e-6], so the loss is finite.
        same_instance: bool [b, b], the Y: True where both expressions describe the same instance.
        weight: [b], the w: how far each mask can be trusted, in [0, 1]; no gradient passes through it.

    Returns a float32 scalar >= 0.
    """
    count = overlap.shape[0]
    if overlap.shape != (count, count) or same_instance.shape != overlap.shape or weight.shape != (count,):
        shapes = f"{tuple(overlap.shape)}, {tuple(same_instance.shape)}, {tuple(weight.shape)}"
        raise InputError(f"Overlap, same_instance and weight are {shapes}: pass [b, b], [b, b] and [b].")
    one_image = torch.zeros(count, dtype=torch.int64, device=overlap.device)
    return _contrast_per_image(overlap, same_instance, weight, one_image)


def _contrast_per_image(
    overlap: Tensor, same_instance: Tensor, weight: Tensor, image_index: Tensor
) -> Tensor:
    """Eq. 8 within each image, averaged over the images; b may differ between them."""
    with _full_precision(overlap):
        bounded = overlap.float().clamp(OVERLAP_MARGIN, 1 - OVERLAP_MARGIN)
        log_likelihood = torch.where(same_instance.bool(), bounded.log(), torch.log1p(-bounded))
        same_image = (image_index[:, None] == image_index[None, :]).float()
        per_image = same_image.sum(1)  # b of the image that row i belongs to
        images = per_image.reciprocal().sum().clamp(min=1)
        row_weight = weight.detach().float() / (per_image.square() * images)
        return -(row_weight[:, None] * same_image * log_likelihood).sum()


def trust_weight(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of each thresholded mask with its thresholded truth: the w of Eq. 8.

    Takes logits and soft truth [B, h, w], both cut at probability or share 0.5; returns float32 [B] in [0, 1]
    without gradient. Where both are empty the weight is 0, since nothing was found that others could be
    compared with.
    """
    with torch.no_grad():
        predicted, truth = (logits > 0).flatten(1), (target > 0.5).flatten(1)
        intersection = (predicted & truth).sum(1)
        union = (predicted | truth).sum(1)
        return intersection.float() / union.clamp(min=1)


# -------------------------------------------------------------------------------------------------- criterion


class PromptRISCriterion:
    """The whole training loss, term by term (Eq. 9).

    `loss = coarse_weight (coarse_bce + coarse_dice) + final_weight (final_bce + final_dice)
    + icl_weight icl_scale (coarse_icl + final_icl)`; the paper sets every weight to 1.
    """

    def __init__(
        self, coarse_weight: float = 1.0, final_weight: float = 1.0, icl_weight: float = 1.0
    ) -> None:
        weights = {"coarse_weight": coarse_weight, "final_weight": final_weight, "icl_weight": icl_weight}
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise InputError(f"The loss weight {name} is {value}: it must be a number of at least 0.")
        self.coarse_weight = coarse_weight
        self.final_weight = final_weight
        self.icl_weight = icl_weight

    def __call__(
        self, outputs: ScoredOutput, targets: SegmentationTargets, icl_scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Score a batch of B expressions.

        Args:
            outputs: coarse logits [B, h, w], final logits [B, h, w] or None, image index [B].
            targets: truth at the same resolution, and instance ids.
            icl_scale: extra factor on the instance contrast, for ramping it in.

        Returns float32 scalars: `loss` (the weighted total, to be minimised) and the unweighted terms
        `coarse_bce`, `coarse_dice`, `coarse_icl` and, where SAM was run, `final_bce`, `final_dice`,
        `final_icl`. Raises InputError when shapes disagree.
        """
        terms = self._terms("coarse", outputs.coarse_logits_hr, outputs.image_index, targets)
        loss = self.coarse_weight * (terms["coarse_bce"] + terms["coarse_dice"])
        contrast = terms["coarse_icl"]
        if outputs.mask_logits is not None:
            terms |= self._terms("final", outputs.mask_logits, outputs.image_index, targets)
            loss = loss + self.final_weight * (terms["final_bce"] + terms["final_dice"])
            contrast = contrast + terms["final_icl"]
        return {"loss": loss + self.icl_weight * icl_scale * contrast, **terms}

    @staticmethod
    def _terms(
        name: str, logits: Tensor, image_index: Tensor, targets: SegmentationTargets
    ) -> dict[str, Tensor]:
        _check_same_shape(logits, targets.masks)
        for label, ids in (("image_index", image_index), ("instance_id", targets.instance_id)):
            if ids.shape != logits.shape[:1]:
                raise InputError(f"The {label} has shape {tuple(ids.shape)}: it needs one entry per mask.")
        with _full_precision(logits):
            overlap = pairwise_dice(logits.float().sigmoid())
        same_instance = targets.instance_id[:, None] == targets.instance_id[None, :]
        weight = trust_weight(logits, targets.masks)
        return {
            f"{name}_bce": mask_bce(logits, targets.masks),
            f"{name}_dice": dice_loss(logits, targets.masks),
            f"{name}_icl": _contrast_per_image(overlap, same_instance, weight, image_index),
        }


def _check_same_shape(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape:
        raise InputError(
            f"The mask logits {tuple(logits.shape)} and their truth {tuple(target.shape)} differ in shape: "
            "bring the truth to the resolution of the logits."
        )
