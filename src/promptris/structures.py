"""The tensors that travel between data, model and losses, each described once.

Axis letters: I images, B expressions (folded over images), T tokens of the longest expression with [SOS] and
[EOS], H_C x W_C CLIP's patch grid, H_S x W_S SAM's patch grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Tensors = TypeVar("Tensors", bound="_TensorFields")


@dataclass
class _TensorFields:
    """Moves every tensor field at once."""

    def to(self: Tensors, device: torch.device | str, non_blocking: bool = False) -> Tensors:
        """A copy whose tensors live on `device`; other fields are kept."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), (Tensor, _TensorFields))
        }
        return dataclasses.replace(self, **moved)


@dataclass
class ExpressionBatch(_TensorFields):
    """Tokenised expressions and the image each belongs to.

    Attributes:
        input_ids: [B, T] token ids, padded on the right.
        word_mask: [B, T] true for [SOS], words and [EOS].
        image_index: [B] which of the I images each expression is about.
    """

    input_ids: Int[Tensor, "B T"]
    word_mask: Bool[Tensor, "B T"]
    image_index: Int[Tensor, " B"]


@dataclass
class ImageBatch(_TensorFields):
    """Images prepared for both towers: uint8, which the model normalises, or floats that are normalised.

    Attributes:
        clip_pixels: [I, 3, h, w] for CLIP.
        sam_pixels: [I, 3, s, s] for SAM; None when SAM is not run, or its features are known.
        sam_embeddings: [I, D_S, H_S, W_S] SAM's image features, where they were computed before.
    """

    clip_pixels: Float[Tensor, "I 3 h w"] | UInt8[Tensor, "I 3 h w"]
    sam_pixels: Float[Tensor, "I 3 s s"] | UInt8[Tensor, "I 3 s s"] | None = None
    sam_embeddings: Float[Tensor, "I D_S H_S W_S"] | None = None

    @staticmethod
    def together(parts: Sequence[ImageBatch]) -> ImageBatch:
        """The images of all parts, in their order."""
        sam = [part.sam_pixels for part in parts if part.sam_pixels is not None]
        known = [part.sam_embeddings for part in parts if part.sam_embeddings is not None]
        return ImageBatch(
            torch.cat([part.clip_pixels for part in parts]),
            torch.cat(sam) if sam else None,
            torch.cat(known) if known else None,
        )


@dataclass
class ImageFeatures(_TensorFields):
    """What does not depend on the expression and is computed once per image.

    Attributes:
        clip_tokens: [I, 1+N_C, D_IC] CLIP's tokens, [CLS] first, before the first layer that is prompted (F_IC^0
            unless `PromptingConfig.first_layer` says otherwise).
        sam_embeddings: [I, D_S, H_S, W_S] SAM's image features F_IS; None in coarse-only mode.
    """

    clip_tokens: Float[Tensor, "I tokens D_IC"]
    sam_embeddings: Float[Tensor, "I D_S H_S W_S"] | None = None

    def image(self, row: int) -> ImageFeatures:
        """Those of one image, in memory of their own: the others can be forgotten."""
        sam = self.sam_embeddings
        return ImageFeatures(
            self.clip_tokens[row : row + 1].clone(), None if sam is None else sam[row : row + 1].clone()
        )

    @staticmethod
    def together(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Those of all images of all parts, in their order."""
        sam = [part.sam_embeddings for part in parts if part.sam_embeddings is not None]
        return ImageFeatures(torch.cat([part.clip_tokens for part in parts]), torch.cat(sam) if sam else None)


@dataclass
class PromptRISOutput(_TensorFields):
    """What the model predicts for B expressions.

    Attributes:
        coarse_logits: [B, H_C, W_C] response map S'_C (Eq. 2).
        coarse_logits_hr: [B, 4H_S, 4W_S] S_C, the same upsampled to SAM's mask-prompt size.
        image_index: [B] as given.
        mask_logits: [B, 4H_S, 4W_S] final mask S' (Eq. 4); None in coarse-only mode.
        predicted_iou: [B] SAM's own estimate of the IoU; None in coarse-only mode.
        point_index: [B] position of the point prompt in the flattened 4H_S x 4W_S grid; None likewise.
    """

    coarse_logits: Float[Tensor, "B H_C W_C"]
    coarse_logits_hr: Float[Tensor, "B H W"]
    image_index: Int[Tensor, " B"]
    mask_logits: Float[Tensor, "B H W"] | None = None
    predicted_iou: Float[Tensor, " B"] | None = None
    point_index: Int[Tensor, " B"] | None = None


@dataclass
class SegmentationTargets(_TensorFields):
    """Ground truth of B expressions at the resolution of `mask_logits`.

    Attributes:
        masks: [B, 4H_S, 4W_S] share of each cell that the referent covers, in [0, 1].
        instance_id: [B] annotation id. Two expressions of one image mean the same instance exactly when these
            are equal.
    """

    masks: Float[Tensor, "B H W"]
    instance_id: Int[Tensor, " B"]


@dataclass
class TrainingBatch(_TensorFields):
    """One step's worth of data.

    Attributes:
        images: I images.
        expressions: B = I·b expressions.
        truth: their ground truth.
        image_ids: the data set's id of each image, to name it in errors.
        seeds: of everything random about each image and its expressions, wherever and with whatever else in the
            batch it is computed.
        skipped: one sentence for each image that could not be read and that another stands in for.
    """

    images: ImageBatch
    expressions: ExpressionBatch
    truth: SegmentationTargets
    image_ids: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
