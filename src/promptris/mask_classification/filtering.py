"""Which of many overlapping masks to keep: their boxes, their stability, and non-maximum suppression."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_boxes(masks: Bool[Tensor, "P h w"]) -> Float[Tensor, "P 4"]:
    """Tight boxes (left, top, right, bottom) as fractions of the image; all 0 for an empty mask.

    A cell covers its whole square, so a full mask has the box (0, 0, 1, 1).
    """
    edges = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns, then rows
        length = occupied.shape[1]
        first = occupied.int().argmax(dim=1)
        stop = length - occupied.flip(1).int().argmax(dim=1)
        edges.append((first / length, stop / length))
    boxes = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], dim=1)
    return boxes * masks.flatten(1).any(dim=1, keepdim=True)


def stability(
    logits: Float[Tensor, "P h w"], threshold: float = 0.0, offset: float = 1.0
) -> Float[Tensor, " P"]:
    """How little a mask depends on where its logits are cut, in [0, 1].

    It is the IoU of the mask cut at `threshold + offset` with the one cut at `threshold - offset`, which
    contains it (Segment Anything, appendix B); 0 where both are empty.
    """
    inner = (logits > threshold + offset).flatten(1).sum(dim=1)
    outer = (logits > threshold - offset).flatten(1).sum(dim=1)
    return inner / outer.clamp(min=1)


def box_iou(a: Float[Tensor, "A 4"], b: Float[Tensor, "B 4"]) -> Float[Tensor, "A B"]:
    """IoU of every box (left, top, right, bottom) of `a` with every one of `b`; 0 where both have no area."""
    overlap = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    intersection = overlap.clamp(min=0).prod(dim=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a, b))
    union = area_a[:, None] + area_b - intersection
    return intersection / torch.where(union > 0, union, torch.ones_like(union))


def suppress_overlapping(
    boxes: Float[Tensor, "P 4"], scores: Float[Tensor, " P"], highest_iou: float
) -> Int[Tensor, " kept"]:
    """Greedy non-maximum suppression: indices of the boxes to keep, the best first.

    From the best score downwards, a box is kept unless its IoU with one that was kept before is above
    `highest_iou`. Of equal scores the earlier comes first.
    """
    order = scores.argsort(descending=True, stable=True)
    # The walk is one of small steps, each depending on those before: faster on the CPU.
    clashes = (box_iou(boxes[order], boxes[order]) > highest_iou).cpu()
    alive = torch.ones(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if alive[row]:
            alive[row + 1 :] &= ~clashes[row, row + 1 :]
    return order[alive.to(order.device)]
