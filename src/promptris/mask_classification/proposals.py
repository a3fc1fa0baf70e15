"""Masks of everything in an image, without a question: SAM prompted by a grid of points.

As SAM's own automatic mask generator does it (Segment Anything, appendix B), on the whole image alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from promptris.errors import InputError
from promptris.mask_classification.filtering import mask_boxes, stability, suppress_overlapping
from promptris.modeling.sam_adapter import SamAdapter


@dataclass(frozen=True)
class ProposalConfig:
    """How masks are proposed and which are kept. The thresholds are those published with SAM.

    Attributes:
        points_per_side: points along each side of the grid; SAM's own generator takes 32, in four times the time.
        multimask: take SAM's three masks per point (whole, part, subpart) instead of its single one.
        min_predicted_iou: lowest quality of a mask by SAM's own estimate.
        min_stability: lowest `stability` of a mask.
        stability_offset: distance of its two cuts from 0, in logits.
        nms_iou: masks whose boxes overlap more than this count as the same.
        rank_by: which of these is kept: the one with the highest "predicted_iou", or "stability".
        min_area: smallest share of the image a mask covers.
        max_area: largest share.
        points_per_pass: points that run through SAM's mask decoder at once; memory grows with it.
    """

    points_per_side: int = 16
    multimask: bool = True
    min_predicted_iou: float = 0.88
    min_stability: float = 0.95
    stability_offset: float = 1.0
    nms_iou: float = 0.7
    rank_by: Literal["predicted_iou", "stability"] = "predicted_iou"
    min_area: float = 0.0
    max_area: float = 1.0
    points_per_pass: int = 32

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_pass"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("min_predicted_iou", "min_stability", "nms_iou", "min_area", "max_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, not at {getattr(self, name):g}")
        if not self.stability_offset >= 0:
            raise InputError(f"stability_offset must not be negative, it is {self.stability_offset:g}")
        if self.rank_by not in ("predicted_iou", "stability"):
            raise InputError(f"rank_by must be predicted_iou or stability, not {self.rank_by!r}")


SINGLE_MASK = ProposalConfig(
    points_per_side=12, multimask=False, min_predicted_iou=0.0, min_stability=0.4, rank_by="stability"
)
"""For a small SAM that has learned one mask per prompt.

Over such a grid its own estimate of quality tells little (correlation with the true IoU 0.15 on RefShapes) and
stability much (0.72); its logits are flatter than a released SAM's, hence the lower threshold.
"""


def proposal_config_for(sam: SamAdapter) -> ProposalConfig:
    """The settings that suit a SAM: three masks per point where it has learned to give them.

    One that `promptris.training.sam_pretraining` made has learned to give a single one.
    """
    return ProposalConfig() if sam.knows_several_masks() else SINGLE_MASK


@dataclass(frozen=True)
class Proposals:
    """P masks of one image, the one with the highest predicted IoU first.

    Attributes:
        logits: [P, 4H_S, 4W_S] float32.
        boxes: [P, 4] left, top, right, bottom of the mask as fractions of the image.
        points: [P, 2] the grid point each was proposed by, (x, y) fractions.
        predicted_iou: [P] SAM's estimate of its quality.
        stability: [P] in [0, 1].
    """

    logits: Float[Tensor, "P h w"]
    boxes: Float[Tensor, "P 4"]
    points: Float[Tensor, "P 2"]
    predicted_iou: Float[Tensor, " P"]
    stability: Float[Tensor, " P"]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: Tensor | slice) -> Proposals:
        """Some of them."""
        return Proposals(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def joined(parts: list[Proposals]) -> Proposals:
        """One after the other."""
        return Proposals(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Proposals))
        )


def point_grid(points_per_side: int) -> Float[Tensor, "n 2"]:
    """Centres of the cells of a square grid over the image, row by row, as (x, y) fractions."""
    centres = (torch.arange(points_per_side) + 0.5) / points_per_side
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def propose(sam: SamAdapter, embedding: Float[Tensor, "1 D_S H_S W_S"], config: ProposalConfig) -> Proposals:
    """Masks of what is in an image, near-duplicates and poor ones left out; there may be none.

    Args:
        sam: SAM.
        embedding: of the one image, from `SamAdapter.encode_image`.
        config: how many points, and what is kept.
    """
    grid = point_grid(config.points_per_side).to(embedding.device)
    kept = [
        _good(_masks_at(sam, embedding, points, config), config)
        for points in grid.split(config.points_per_pass)
    ]
    found = Proposals.joined(kept)
    return found[suppress_overlapping(found.boxes, getattr(found, config.rank_by), config.nms_iou)]


def _masks_at(sam: SamAdapter, embedding: Tensor, points: Tensor, config: ProposalConfig) -> Proposals:
    """Every mask that SAM answers a click at each of some points with."""
    # transformers' SAM counts in pixels of its square and moves clicks to the pixels' centres itself.
    clicks = points * sam.image_size - 0.5
    answer = sam.sam(
        image_embeddings=embedding, input_points=clicks[None, :, None], multimask_output=config.multimask
    )
    logits = answer.pred_masks[0].float()
    per_point = logits.shape[1]
    logits = logits.flatten(0, 1)
    return Proposals(
        logits=logits,
        boxes=mask_boxes(logits > 0),
        points=points.repeat_interleave(per_point, dim=0),
        predicted_iou=answer.iou_scores[0].float().flatten(),
        stability=stability(logits, offset=config.stability_offset),
    )


def _good(found: Proposals, config: ProposalConfig) -> Proposals:
    """Those that pass every threshold."""
    area = (found.logits > 0).flatten(1).float().mean(dim=1)
    return found[
        (found.predicted_iou >= config.min_predicted_iou)
        & (found.stability >= config.min_stability)
        & (area >= config.min_area)
        & (area <= config.max_area)
        & (area > 0)
    ]
