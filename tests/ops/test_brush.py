"""Label Studio's run lengths, read back bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptris.ops.brush import mask_to_brush

Decode = Callable[[list[int]], list[int]]


def check(decode: Decode, mask: np.ndarray) -> None:
    stream = mask_to_brush(mask)
    assert all(type(byte) is int and 0 <= byte < 256 for byte in stream)
    assert decode(stream) == np.repeat(mask.reshape(-1) * 255, 4).tolist()


def test_a_pixel_by_hand() -> None:
    # 4 values; 8 bits each; widths 3, 4, 8, 16; then: run, width 0, length 4, 255; five zeros.
    bits = f"{4:032b}" + f"{7:05b}" + "0010" + "0011" + "0111" + "1111" + "1" + "00" + "011" + "11111111"
    bits += "0" * (-len(bits) % 8)
    assert mask_to_brush(np.ones((1, 1), bool)) == [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_mask_comes_back(decode_brush: Decode, height: int, width: int, share: float, seed: int) -> None:
    check(decode_brush, np.random.default_rng(seed).random((height, width)) < share)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 32769])
def test_lengths_around_every_width(decode_brush: Decode, length: int) -> None:
    row = np.zeros((1, length + 3), bool)
    row[0, 1 : 1 + length] = True
    check(decode_brush, row)


@pytest.mark.parametrize("value", [False, True])
def test_a_uniform_mask(decode_brush: Decode, value: bool) -> None:
    check(decode_brush, np.full((150, 200), value))
