"""COCO's run lengths: masks to and from them, and COCO's `segmentation` fields turned into them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from promptris.errors import InputError
from promptris.ops.masks import BoolMask, as_bool_mask
from promptris.ops.polygons import checked_ring

if TYPE_CHECKING:
    from torch import Tensor

# A few characters of run lengths can claim any size, so one that no image has is refused before it is filled.
_MAX_PIXELS = 2**30
# A compressed count is written in groups of five bits; seven groups hold any count below 2**34.
_MAX_GROUPS_PER_COUNT = 7


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
    (height, width), runs = _checked_runs(rle)
    values = np.arange(len(runs)) % 2 == 1  # runs alternate, background first, down the columns
    return np.ascontiguousarray(np.repeat(values, runs).reshape(height, width, order="F"))


def _checked_runs(rle: Any) -> tuple[tuple[int, int], NDArray[np.int64]]:
    """(height, width) and the lengths of the runs, which add up to the size."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise InputError('The RLE is not a dict with "size" and "counts": pass COCO run lengths.')
    height, width = _rle_size(rle["size"])
    counts = rle["counts"]
    runs = _decompress_counts(counts) if isinstance(counts, str | bytes) else _plain_counts(counts)
    # The bound on a single run keeps the sum itself from overflowing.
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise InputError(f"The RLE counts do not add up to its size {height}x{width}: the RLE is damaged.")
    return (height, width), runs


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


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> BoolMask:
    """Turn a COCO `segmentation` field into a mask `[height, width]`; see `segmentation_to_run_lengths`."""
    counts = segmentation_to_run_lengths(segmentation, height, width)
    return rle_to_mask({"size": [height, width], "counts": counts})


def segmentation_to_run_lengths(segmentation: Any, height: int, width: int) -> bytes:
    """Turn a COCO `segmentation` field into COCO's compressed run lengths of its mask.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, whose union is the object, or an
            RLE dict, compressed or plain. Polygons are filled by pycocotools, so the pixels are those of the
            official benchmark.
        height, width: size of the image the annotation belongs to.

    Raises InputError for an empty segmentation, a polygon of fewer than three points or with an odd number of
    coordinates, coordinates that are no numbers, and an RLE that is damaged or of another size.
    """
    if isinstance(segmentation, dict):
        size, runs = _checked_runs(segmentation)
        if size != (height, width):
            raise InputError(
                f"The RLE is {size[0]}x{size[1]} but its image is {height}x{width} (height x width)."
            )
        counts = segmentation["counts"]
        if isinstance(counts, bytes):
            return counts
        if isinstance(counts, str):
            return counts.encode("ascii")
        compressed = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
        return bytes(compressed["counts"])
    if not isinstance(segmentation, list | tuple) or len(segmentation) == 0:
        raise InputError("The segmentation is empty: it needs a list of polygons or an RLE dict.")
    polygons = [checked_ring(ring, f"Polygon {k} of the segmentation") for k, ring in enumerate(segmentation)]
    encoded = coco_mask.frPyObjects([ring.tolist() for ring in polygons], height, width)
    return bytes(coco_mask.merge(encoded)["counts"])


def covers_nothing(counts: bytes, height: int, width: int) -> bool:
    """Whether a mask `[height, width]`, as compressed run lengths, has no pixel or none but its first one.

    The latter is what coordinates from 0 to 1, instead of in pixels, come to.
    """
    rle = {"size": [height, width], "counts": counts}
    area = int(coco_mask.area(rle))
    return area == 0 or (area == 1 and height * width > 1 and bool(rle_to_mask(rle)[0, 0]))


def merge_run_lengths(parts: Sequence[bytes], height: int, width: int) -> bytes:
    """The union of masks `[height, width]` as COCO's compressed run lengths; no parts give an empty mask."""
    if not parts:
        empty = coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
        return bytes(empty["counts"])
    size = [height, width]
    return bytes(coco_mask.merge([{"size": size, "counts": counts} for counts in parts])["counts"])
