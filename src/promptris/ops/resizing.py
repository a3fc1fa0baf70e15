"""Resizing: the one way logits are enlarged or shrunk, and masks turned into soft targets."""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from promptris.errors import InputError


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logit maps `[..., h, w]` to `[..., H, W]`, `size = (H, W)`: bilinear, pixel areas aligned.

    The one resizing of the package, for coarse maps, SAM's masks and the way back to the original image
    alike. It never overshoots the range of its input. Differentiable; the dtype is kept.
    """
    if logits.ndim < 2:
        raise InputError(f"The logits have shape {tuple(logits.shape)}: pass maps [..., height, width].")
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    if logits.numel() == 0:
        return logits.new_zeros(*logits.shape[:-2], *size)
    flat = logits.reshape(-1, 1, *logits.shape[-2:])
    resized = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.reshape(*logits.shape[:-2], *size)


def pool_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks `[..., H, W]` to soft targets `[..., h, w]`, float32: the share of foreground in each cell.

    The exact area: a pixel that lies across cells is divided among them, so the mean over the cells is the
    mean of the mask. On a grid finer than the mask, cells inside one pixel repeat it. Bool and integer masks
    count every non-zero value as foreground, and give shares in [0, 1]; float masks are taken as shares
    already.
    """
    if masks.ndim < 2:
        raise InputError(f"The masks have shape {tuple(masks.shape)}: pass masks [batch, height, width].")
    height, width = masks.shape[-2:]
    if (height, width) == tuple(size) or masks.numel() == 0:
        shares = masks.float() if masks.is_floating_point() else (masks != 0).float()
        return shares if masks.numel() else shares.new_zeros(*masks.shape[:-2], *size)
    if masks.is_floating_point():
        values, first, second = masks.float(), torch.float32, torch.float32
    else:
        # Integers are exact, and the small ones fast.
        values = (masks if masks.dtype == torch.bool else masks != 0).view(torch.uint8)
        first, second = torch.int16 if height < 2**15 else torch.int32, torch.int32
    sums, cell_height = _sum_rows(values, size[0], first)
    sums, cell_width = _sum_rows(sums.transpose(-1, -2).contiguous(), size[1], second)
    return sums.transpose(-1, -2).float().div_(cell_height * cell_width).contiguous()


def _sum_rows(values: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Sums over `count` equal bands of the rows of `[..., rows, columns]`, and the height of a band.

    The unit of length is the largest that measures both rows and bands in whole numbers.
    """
    rows = values.shape[-2]
    divisor = gcd(rows, count)
    row_height, band_height = count // divisor, rows // divisor
    top = torch.arange(count, device=values.device) * band_height
    first = top // row_height
    sums = None
    # The k-th row that each band touches, weighted with the length they share; a band of few rows ends early.
    for k in range(int(((top + band_height - 1) // row_height - first).max()) + 1):
        row = first + k
        shared = torch.minimum((row + 1) * row_height, top + band_height) - torch.maximum(
            row * row_height, top
        )
        weight = shared.clamp(min=0).to(dtype)[:, None]
        touched = values.index_select(-2, row.clamp(max=rows - 1)).to(dtype)
        sums = touched * weight if sums is None else sums.addcmul_(touched, weight)
    assert sums is not None
    return sums, band_height
