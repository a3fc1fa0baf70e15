"""Polygons: masks to and from outlines with holes, and to the plain rings of COCO annotations.

Coordinates live in the image plane of `ops.masks`: x from 0 to W, y from 0 to H.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import contourpy
import numpy as np
from numpy.typing import NDArray

from promptris.errors import InputError
from promptris.ops.masks import BoolMask, as_bool_mask, mask_bbox

if TYPE_CHECKING:
    from torch import Tensor

Ring: TypeAlias = list[float]

# Rasterising a polygon takes memory in proportion to its outline, so absurd coordinates are refused first.
_MAX_COORDINATE = 1e6


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


def mask_to_coco_polygons(mask: BoolMask | Tensor) -> list[Ring]:
    """Trace a mask `[H, W]` into a COCO `segmentation`: one flat ring per region.

    Filling the rings as COCO's own tools do, and uniting them, gives back the same mask exactly. COCO's rings
    have no holes, so each hole is joined to the outline by a line there and back, which encloses nothing.
    An empty mask gives `[]`.
    """
    return [_joined(region) for region in mask_to_polygons(mask)]


def _joined(region: Sequence[Ring]) -> Ring:
    """The outline, then every hole as a detour from its first point."""
    outline, holes = region[0], region[1:]
    if not holes:
        return outline
    start = outline[:2]
    return [*outline, *start, *(value for hole in holes for value in (*hole, *hole[:2], *start))]


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
            checked_ring(ring, f"Ring {r} of region {k}").reshape(-1, 2) for r, ring in enumerate(region)
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


def checked_ring(ring: Any, name: str) -> NDArray[np.float64]:
    """A flat ring `[x0, y0, x1, y1, ...]` as an array; InputError, naming it, if it is no polygon."""
    try:
        coordinates = np.asarray(ring, dtype=np.float64)
    except OverflowError:  # an int that no float can hold
        coordinates = np.full(6, np.inf)
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
