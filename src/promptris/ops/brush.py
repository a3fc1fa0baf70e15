"""Label Studio's run lengths for brush masks."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from promptris.ops.masks import BoolMask, as_bool_mask

_CHANNELS = 4  # the canvas of a brush is RGBA
_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
"""The widths that a length may be written in; every stream names its own in its header."""


def mask_to_brush(mask: BoolMask | Tensor) -> list[int]:
    """Encode a mask `[H, W]` as the bytes of Label Studio's "rle".

    The values are those of the RGBA canvas, row by row: 255 in all four channels inside the mask, else 0. A stream of
    bits holds their number (32 bits), the size of a value less one (5), four widths less one (4 each), and then the
    runs: a 1, which of the widths (2 bits), the length less one in so many bits, the value. Zeros fill the last byte.
    """
    values = as_bool_mask(mask).reshape(-1)
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [values.size]])) * _CHANNELS
    inside = values[starts]

    longest = 1 << int(_LENGTH_BITS[-1])
    pieces = -(-lengths // longest)  # a run that is too long for the widest field is cut
    inside = np.repeat(inside, pieces)
    cut = np.full(int(pieces.sum()), longest)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest

    which = np.searchsorted(1 << _LENGTH_BITS, cut)
    bits = _LENGTH_BITS[which]
    codes = ((((1 << 2) | which) << bits) | (cut - 1)) << _VALUE_BITS
    codes = codes | np.where(inside, 255, 0)
    header = [(values.size * _CHANNELS, 32), (_VALUE_BITS - 1, 5), *((int(n) - 1, 4) for n in _LENGTH_BITS)]
    heads, head_widths = (np.array(column) for column in zip(*header, strict=True))
    stream = np.concatenate([_bits(heads, head_widths), _bits(codes, 3 + bits + _VALUE_BITS)])
    packed: list[int] = np.packbits(stream).tolist()
    return packed


def _bits(numbers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The lowest `widths` bits (at most 32) of every number, highest first, one after the other."""
    rows = np.unpackbits(numbers.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    chosen: np.ndarray = rows[np.arange(32) >= 32 - widths[:, None]]
    return chosen
