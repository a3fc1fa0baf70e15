"""What CLIP gets to see of each proposal: a square around it, and the same with everything else taken away."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from promptris.mask_classification.proposals import Proposals
from promptris.processing import CLIP_MEAN, CLIP_STD, normalise

MEAN_COLOUR = tuple(round(255 * value) for value in CLIP_MEAN)
"""CLIP's mean colour, which fills what lies beyond the image."""

Window = tuple[int, int, int]
"""Left, top and side of a square in an image's pixels; it may leave the image."""


def square_windows(boxes: Float[Tensor, "P 4"], size: tuple[int, int], margin: float) -> list[Window]:
    """The smallest square around each box and its margin.

    Args:
        boxes: left, top, right, bottom as fractions of the image.
        size: (height, width) of the image.
        margin: added on each of the four sides, as a share of the box's longer one.
    """
    height, width = size
    windows = []
    for left, top, right, bottom in boxes.tolist():
        longer = max((right - left) * width, (bottom - top) * height)
        side = max(1, round(longer * (1 + 2 * margin)))
        centre_x, centre_y = (left + right) / 2 * width, (top + bottom) / 2 * height
        windows.append((math.floor(centre_x - side / 2 + 0.5), math.floor(centre_y - side / 2 + 0.5), side))
    return windows


def crop_square(pixels: NDArray[np.uint8], window: Window, side: int) -> UInt8[Tensor, "3 side side"]:
    """A window of an image [H, W, 3], bicubically resized, with CLIP's mean colour beyond the image.

    Only what lies in the image is resized, so that a window far larger than it takes no more memory.
    """
    height, width = pixels.shape[:2]
    left, top, extent = window
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + extent, width), min(top + extent, height)
    columns, rows = (
        (first := round(start * side / extent), max(first + 1, round(stop * side / extent)))
        for start, stop in ((x0 - left, x1 - left), (y0 - top, y1 - top))
    )
    inside = torch.from_numpy(pixels[y0:y1, x0:x1].copy()).permute(2, 0, 1)
    resized = F.interpolate(
        inside[None],
        size=(rows[1] - rows[0], columns[1] - columns[0]),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    square = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    square[:, rows[0] : rows[1], columns[0] : columns[1]] = resized[0]
    return square


def window_masks(
    logits: Float[Tensor, "P h w"], windows: list[Window], size: tuple[int, int], side: int
) -> Bool[Tensor, "P side side"]:
    """Masks of an image of some size (height, width) within each window, at side x side samples.

    They are false beyond the image.
    """
    height, width = size
    frame = torch.tensor(windows, dtype=torch.float32, device=logits.device)
    steps = (torch.arange(side, device=logits.device) + 0.5) / side
    # grid_sample's own frame: -1 and 1 are the image's borders, as in `resize_logits`.
    x = 2 * (frame[:, :1] + frame[:, 2:] * steps) / width - 1
    y = 2 * (frame[:, 1:2] + frame[:, 2:] * steps) / height - 1
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    # Up to the outermost samples only: beyond them the logits stay what they are there.
    edge = 1 - 1 / torch.tensor(logits.shape[:0:-1], device=logits.device)
    sampled = F.grid_sample(logits[:, None], grid.clamp(-edge, edge), mode="bilinear", align_corners=False)
    return (sampled[:, 0] > 0) & (grid.abs() <= 1).all(dim=-1)


def proposal_views(
    pixels: NDArray[np.uint8], proposals: Proposals, side: int, margin: float
) -> tuple[Float[Tensor, "P 3 side side"], Bool[Tensor, "P side side"]]:
    """Normalised crops of P > 0 proposals, and where in each the proposal's mask is; on the proposals' device.

    A crop times its mask is the masked crop: after normalisation CLIP's mean colour is 0.
    """
    size = (pixels.shape[0], pixels.shape[1])
    windows = square_windows(proposals.boxes, size, margin)
    crops = torch.stack([crop_square(pixels, window, side) for window in windows])
    return (
        normalise(crops.to(proposals.logits.device), CLIP_MEAN, CLIP_STD),
        window_masks(proposals.logits, windows, size, side),
    )
