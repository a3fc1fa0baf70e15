"""Masks: sizes, overlap, and their run-length and polygon forms.

A mask is a boolean array `[H, W]`, row 0 at the top. Pixel (x, y) covers the square from (x, y) to (x+1, y+1)
of the image plane and is sampled at its centre (x+0.5, y+0.5); polygon coordinates and boxes live in that
plane, so they run from 0 to W and from 0 to H.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import index
from typing import Any, TypeAlias

import contourpy
import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from promptris.errors import InputError

BoolMask: TypeAlias = NDArray[np.bool_]
Ring: TypeAlias = list[float]

# Rasterising a polygon takes memory in proportion to its outline, so absurd coordinates are refused first.
_MAX_COORDINATE = 1e6
# A few characters of run lengths can claim any size, so one that no image has is refused before it is filled.
_MAX_PIXELS = 2**30
# A compressed count is written in groups of five bits; seven groups hold any count below 2**34.
_MAX_GROUPS_PER_COUNT = 7


def as_bool_mask(mask: Any, name: str = "mask") -> BoolMask:
    """Return a mask as a boolean numpy array `[H, W]`.

    Takes bool or integer arrays and tensors on any device (non-zero is foreground). Raises InputError for
    other shapes, empty sides, and floating-point values, which would hide a forgotten threshold.
    """
    if isinstance(mask, Tensor) and not (mask.is_floating_point() or mask.is_complex()):
        mask = mask.cpu().numpy()
    if isinstance(mask, Tensor) or np.asarray(mask).dtype.kind not in "biu":
        raise InputError(f"The {name} is not boolean: threshold its values first, for example probs > 0.5.")
    array = np.asarray(mask)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"The {name} has shape {array.shape}: pass one non-empty [height, width] array.")
    return array.astype(bool, copy=False)


# ------------------------------------------------------------------------------------------------ run lengths


def mask_to_rle(mask: BoolMask | Tensor) -> dict[str, Any]:
    """Encode a mask `[H, W]` as COCO's compressed run lengths.

    Returns `{"size": [H, W], "counts": str}`, which goes into JSON as it is.
    """
    array = as_bool_mask(mask)
    encoded = coco_mask.encode(np.asfortranarray(array, dtype=np.uint8))
    return {"size": [int(array.shape[0]), int(array.shape[1])], "counts": encoded["counts"].decode("ascii")}


def rle_to_mask(rle: Any) -> BoolMask:
    """Decode COCO run lengths, compressed (str or bytes) or plain (list of counts), into a mask `[H, W]`.

    Decoded here and not by pycocotools because the string may come from anywhere: runs that are damaged, or
    that do not add up to the stated size, raise InputError.
    """
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise InputError('The RLE is not a dict with "size" and "counts": pass COCO run lengths.')
    height, width = _rle_size(rle["size"])
    counts = rle["counts"]
    runs = _decompress_counts(counts) if isinstance(counts, str | bytes) else _plain_counts(counts)
    # The bound on a single run keeps the sum itself from overflowing.
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise InputError(f"The RLE counts do not add up to its size {height}x{width}: the RLE is damaged.")
    values = np.arange(len(runs)) % 2 == 1  # runs alternate, background first, down the columns
    return np.ascontiguousarray(np.repeat(values, runs).reshape(height, width, order="F"))


def _rle_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (index(side) for side in size)
    except (TypeError, ValueError):
        raise InputError(f"The RLE size {size!r} is not [height, width].") from None
    if height < 1 or width < 1 or height * width > _MAX_PIXELS:
        raise InputError(f"The RLE size {size!r} is not the size of an image.")
    return height, width


def _plain_counts(counts: Any) -> NDArray[np.int64]:
    try:
        runs = np.asarray(counts)
    except ValueError:
        runs = np.empty((0, 0))
    if runs.ndim != 1 or runs.size == 0 or runs.dtype.kind not in "iu":
        raise InputError("The RLE counts are neither a string nor a list of integers.")
    return runs.astype(np.int64)


def _decompress_counts(counts: str | bytes) -> NDArray[np.int64]:
    """Undo COCO's text form of the counts.

    Base-32 digits from the lowest up, written in ASCII from '0'; bit 5 says that more follow; the last digit
    carries the sign; from the fourth count on, each is the difference from the count two before it.
    """
    raw = counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or (codes < 0).any() or (codes > 63).any() or codes[-1] & 0x20:
        raise InputError("The RLE counts string is empty or damaged: it is not COCO's compressed form.")
    last = np.flatnonzero((codes & 0x20) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if (lengths > _MAX_GROUPS_PER_COUNT).any():
        raise InputError("The RLE counts string is damaged: a count in it is too large.")
    place = np.arange(codes.size) - np.repeat(first, lengths)
    runs = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    runs -= np.where(codes[last] & 0x10, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


# ------------------------------------------------------------------------------------------- COCO annotations


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> BoolMask:
    """Turn a COCO `segmentation` field into a mask `[height, width]`.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, whose union is the object, or an
            RLE dict, compressed or plain. Polygons are filled by pycocotools, so the pixels are those of the
            official benchmark.
        height, width: size of the image the annotation belongs to.

    Raises InputError for an empty segmentation, a polygon of fewer than three points or with an odd number of
    coordinates, coordinates that are no numbers, and an RLE of another size.
    """
    if isinstance(segmentation, dict):
        mask = rle_to_mask(segmentation)
        if mask.shape != (height, width):
            size = f"{mask.shape[0]}x{mask.shape[1]}"
            raise InputError(f"The RLE is {size} but its image is {height}x{width} (height x width).")
        return mask
    if not isinstance(segmentation, list | tuple) or len(segmentation) == 0:
        raise InputError("The segmentation is empty: it needs a list of polygons or an RLE dict.")
    polygons = [
        _checked_ring(ring, f"Polygon {k} of the segmentation") for k, ring in enumerate(segmentation)
    ]
    encoded = coco_mask.frPyObjects([ring.tolist() for ring in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)


def _checked_ring(ring: Any, name: str) -> NDArray[np.float64]:
    try:
        coordinates = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not a flat list of numbers [x0, y0, x1, y1, ...].") from None
    if coordinates.ndim != 1:
        raise InputError(f"{name} is not a flat list of numbers [x0, y0, x1, y1, ...].")
    if coordinates.size % 2:
        raise InputError(
            f"{name} has an odd number of coordinates ({coordinates.size}): points are x, y pairs."
        )
    if coordinates.size < 6:
        raise InputError(f"{name} has {coordinates.size // 2} points: a polygon needs at least 3.")
    if not (np.abs(coordinates) <= _MAX_COORDINATE).all():  # also false for NaN
        raise InputError(f"{name} has coordinates that are not finite or lie absurdly far outside the image.")
    return coordinates


# --------------------------------------------------------------------------------------------------- polygons


def mask_to_polygons(mask: BoolMask | Tensor) -> list[list[Ring]]:
    """Trace a mask `[H, W]` into polygons, holes kept.

    Returns a list of regions; a region is `[outer, hole, hole, ...]`, each ring flat and closed implicitly:
    `[x0, y0, x1, y1, ...]` in the image plane (x from 0 to W, y from 0 to H). Pixels that touch only at a
    corner are regions of their own. Corners are cut by half a pixel, yet every pixel centre stays on its side
    of the line, so `polygons_to_mask` gives back the same mask exactly. An empty mask gives `[]`.
    """
    array = as_bool_mask(mask)
    box = mask_bbox(array)
    if box[2] == 0:
        return []
    x, y, w, h = box
    # The border of background closes every line; samples sit at pixel centres, hence the half pixel.
    padded = np.pad(array[y : y + h, x : x + w], 1).astype(np.float64)
    generator = contourpy.contour_generator(
        x=np.arange(w + 2) + (x - 0.5),
        y=np.arange(h + 2) + (y - 0.5),
        z=padded,
        name="serial",
        fill_type=contourpy.FillType.OuterOffset,
    )
    points_per_region, offsets_per_region = generator.filled(0.5, np.inf)
    regions = []
    for points, offsets in zip(points_per_region, offsets_per_region, strict=True):
        rings = [points[a : b - 1] for a, b in pairwise(offsets)]  # a ring's last point repeats its first
        regions.append([_without_collinear(ring).ravel().tolist() for ring in rings])
    return regions


def _without_collinear(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drop the points of a closed ring `[N, 2]` that lie on a straight run of it."""
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0] != 0
    return points[turns]


def polygons_to_mask(polygons: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> BoolMask:
    """Fill polygons into a mask `[height, width]`: the inverse of `mask_to_polygons`, holes included.

    Takes regions `[outer, hole, ...]` of flat rings in the image plane. A pixel is set when its centre is
    inside by the even-odd rule over the rings of a region; regions are united. No regions give an empty mask.
    Raises InputError for rings that are no polygons.
    """
    mask = np.zeros((height, width), dtype=bool)
    for k, region in enumerate(polygons):
        rings = [
            _checked_ring(ring, f"Ring {r} of region {k}").reshape(-1, 2) for r, ring in enumerate(region)
        ]
        if rings:
            _fill_region(mask, rings)
    return mask


def _fill_region(mask: BoolMask, rings: list[NDArray[np.float64]]) -> None:
    """Scan-line fill in place: each edge flips everything to the right of it in the rows it crosses."""
    height, width = mask.shape
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    # Rows whose centre y+0.5 is in [low, high): half open, so that a shared vertex is counted once.
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(np.int64)
    stop = np.clip(np.ceil(high - 0.5), 0, height).astype(np.int64)
    rows_per_edge = stop - first
    if rows_per_edge.sum() == 0:
        return
    edge = np.repeat(np.arange(len(start)), rows_per_edge)
    rows = (
        np.arange(len(edge))
        - np.repeat(np.cumsum(rows_per_edge) - rows_per_edge, rows_per_edge)
        + first[edge]
    )
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + (rows + 0.5 - start[edge, 1]) * slope
    columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)

    # Only the region's own window is touched: many specks would otherwise cost a full image each.
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max()
    flips = np.zeros((bottom - top, right - left + 1), dtype=np.int64)
    np.add.at(flips, (rows - top, columns - left), 1)
    inside = np.cumsum(flips, axis=1) % 2 == 1
    mask[top:bottom, left:right] |= inside[:, : right - left]


# ------------------------------------------------------------------------------------------ boxes and overlap


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


# --------------------------------------------------------------------------------------------------- resizing


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
    """Shrink masks `[B, H, W]` to soft targets `[B, h, w]`, float32: the share of foreground in each cell.

    Bool and integer masks count every non-zero value as foreground; float masks are taken as shares already.
    Cells that do not divide the image evenly overlap by the pixel they share; a grid finer than the mask
    repeats pixels.
    """
    if masks.ndim < 2:
        raise InputError(f"The masks have shape {tuple(masks.shape)}: pass masks [batch, height, width].")
    shares = masks.float() if masks.is_floating_point() else (masks != 0).float()
    if tuple(masks.shape[-2:]) == tuple(size):
        return shares
    if masks.numel() == 0:
        return shares.new_zeros(*masks.shape[:-2], *size)
    pooled = F.adaptive_avg_pool2d(shares.reshape(-1, 1, *masks.shape[-2:]), (size[0], size[1]))
    return pooled.reshape(*masks.shape[:-2], *size)
