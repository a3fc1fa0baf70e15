"""Masks: what they are, their boxes and overlap.

A mask is a boolean array `[H, W]`, row 0 at the top. Pixel (x, y) covers the square from (x, y) to (x+1, y+1)
of the image plane and is sampled at its centre (x+0.5, y+0.5); polygon coordinates and boxes live in that
plane, so they run from 0 to W and from 0 to H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from promptris.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

BoolMask: TypeAlias = NDArray[np.bool_]


def as_bool_mask(mask: Any, name: str = "mask") -> BoolMask:
    """Return a mask as a boolean numpy array `[H, W]`.

    Takes bool or integer arrays and tensors on any device (non-zero is foreground). Raises InputError for
    other shapes, empty sides, and floating-point values, which would hide a forgotten threshold.
    """
    # Told by what it can do: a client of the server reads masks without torch.
    is_tensor = hasattr(mask, "is_floating_point") and hasattr(mask, "cpu")
    if is_tensor and not (mask.is_floating_point() or mask.is_complex()):
        mask, is_tensor = mask.cpu().numpy(), False
    if is_tensor or np.asarray(mask).dtype.kind not in "biu":
        raise InputError(f"The {name} is not boolean: threshold its values first, for example probs > 0.5.")
    array = np.asarray(mask)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"The {name} has shape {array.shape}: pass one non-empty [height, width] array.")
    return array.astype(bool, copy=False)


def mask_bbox(mask: BoolMask | Tensor) -> list[int]:
    """The tight box `[x, y, width, height]` of a mask `[H, W]` in pixels; `[0, 0, 0, 0]` when it is empty."""
    array = as_bool_mask(mask)
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if rows.size == 0:
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def mask_counts(a: BoolMask | Tensor, b: BoolMask | Tensor) -> tuple[int, int]:
    """Pixels in the intersection and the union of two masks `[H, W]`; InputError when their sizes differ."""
    first, second = as_bool_mask(a, "first mask"), as_bool_mask(b, "second mask")
    if first.shape != second.shape:
        raise InputError(
            f"The masks have different sizes, {first.shape} and {second.shape}: resize one of them first."
        )
    intersection = int(np.count_nonzero(first & second))
    return intersection, int(np.count_nonzero(first)) + int(np.count_nonzero(second)) - intersection


def iou_from_counts(intersection: int, union: int) -> float:
    """Intersection over union from pixel counts, in [0, 1].

    Two empty masks are equal and score 1; an empty mask against a non-empty one scores 0. Raises InputError
    for counts that no pair of masks can have.
    """
    if not 0 <= intersection <= union:
        raise InputError(
            f"An intersection of {intersection} and a union of {union} pixels cannot belong to two masks."
        )
    return 1.0 if union == 0 else intersection / union


def mask_iou(a: BoolMask | Tensor, b: BoolMask | Tensor) -> float:
    """Intersection over union of two masks of one size `[H, W]`, in [0, 1]; two empty masks score 1."""
    return iou_from_counts(*mask_counts(a, b))
