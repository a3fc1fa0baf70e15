"""How well proposals fit expressions, by CLIP as it was published: no training, no prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from promptris.errors import InputError
from promptris.mask_classification.crops import proposal_views
from promptris.mask_classification.proposals import Proposals
from promptris.processing import Processor

EXPRESSIONS_PER_PASS = 64


@dataclass(frozen=True)
class ScoringConfig:
    """How CLIP looks at a proposal.

    Attributes:
        margin: context around a proposal's box on each side, as a share of the box's longer side.
        crop_weight: weight of the crop's cosine similarity.
        masked_weight: weight of the masked crop's.
        crops_per_pass: crops that run through CLIP at once.
    """

    margin: float = 0.5
    crop_weight: float = 0.5
    masked_weight: float = 0.5
    crops_per_pass: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise InputError(f"{field.name} must not be negative, it is {value}")
        if self.crop_weight + self.masked_weight == 0:
            raise InputError("crop_weight and masked_weight are both 0: give one of them a positive value")
        if self.crops_per_pass < 1:
            raise InputError(f"crops_per_pass must be at least 1, not {self.crops_per_pass}")


def embed_proposals(
    clip: CLIPModel, pixels: NDArray[np.uint8], proposals: Proposals, config: ScoringConfig
) -> Float[Tensor, "P D"]:
    """Weighted mean of the unit CLIP features of each proposal's crop and masked crop, float32.

    Its product with a unit text feature is the weighted mean of the two cosine similarities.

    Args:
        clip: transformers' CLIP.
        pixels: the image [H, W, 3].
        proposals: of this image.
        config: margin and weights.
    """
    side = clip.config.vision_config.image_size
    total = config.crop_weight + config.masked_weight
    features = proposals.boxes.new_zeros(len(proposals), clip.config.projection_dim)
    for start in range(0, len(proposals), config.crops_per_pass):
        part = slice(start, start + config.crops_per_pass)
        crops, masks = proposal_views(pixels, proposals[part], side, config.margin)
        if config.crop_weight:
            features[part] += config.crop_weight / total * _embed(clip, crops)
        if config.masked_weight:
            features[part] += config.masked_weight / total * _embed(clip, crops * masks[:, None])
    return features


def _embed(clip: CLIPModel, pixels: Tensor) -> Float[Tensor, "P D"]:
    features = clip.get_image_features(pixel_values=pixels.to(clip.dtype)).pooler_output
    return F.normalize(features.float(), dim=-1)


def embed_expressions(
    clip: CLIPModel, processor: Processor, expressions: Sequence[str]
) -> Float[Tensor, "B D"]:
    """Unit CLIP features of expressions, float32."""
    parts = []
    for start in range(0, len(expressions), EXPRESSIONS_PER_PASS):
        batch = processor.expressions(expressions[start : start + EXPRESSIONS_PER_PASS]).to(clip.device)
        output = clip.get_text_features(batch.input_ids, attention_mask=batch.word_mask.long())
        parts.append(F.normalize(output.pooler_output.float(), dim=-1))
    return torch.cat(parts)


def choice_probabilities(
    clip: CLIPModel, proposals: Float[Tensor, "P D"], expressions: Float[Tensor, "B D"]
) -> Float[Tensor, "B P"]:
    """CLIP's zero-shot probability of each proposal being meant: softmax over similarities at its temperature."""
    return (clip.logit_scale.float().exp() * expressions @ proposals.T).softmax(dim=-1)
