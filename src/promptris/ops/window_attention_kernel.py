"""The kernel of `promptris.ops.window_attention`; needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    qkv,
    places,
    empty,
    out,
    height,
    width,
    heads,
    down,
    across,
    scale,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD: tl.constexpr,
    PLACES: tl.constexpr,
    FILLED: tl.constexpr,
):
    """BLOCK queries of one head in one window; softmax over keys that come ROWS rows of the window at a time.

    Exponentials are of base 2, so scores are multiplied with log2(e). Where a step takes one row of keys, a query's
    bias for that row shifts all its scores, and the bias for the columns is the same in every step. Where it takes
    several, both biases are gathered once, and a product with ones and zeros hands them to the keys.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    OFFSETS: tl.constexpr = 2 * SIZE - 1
    head = tl.program_id(1)
    window = tl.program_id(2)
    image = (window // (down * across)).to(tl.int64)
    top = window % (down * across) // across * SIZE
    left = window % across * SIZE
    channels = heads * HEAD
    tokens = qkv + image * height * width * 3 * channels + head * HEAD
    channel = tl.arange(0, HEAD)

    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query_y = query // SIZE
    query_x = query % SIZE
    asked = (query_y < SIZE) & (top + query_y < height) & (left + query_x < width)
    token = (top + query_y) * width + left + query_x
    q = tl.load(tokens + token[:, None] * (3 * channels) + channel[None, :], mask=asked[:, None], other=0.0)
    images = tl.num_programs(2) // (down * across)
    first = (head * images + image) * height * width
    place = places + (first + token) * PLACES

    key = tl.arange(0, ROWS * WIDE)
    key_x = key % WIDE
    if ROWS == 1:
        horizontal = tl.load(
            place[:, None] + (OFFSETS + SIZE - 1) + query_x[:, None] - key_x[None, :],
            mask=asked[:, None] & (key_x < SIZE)[None, :],
            other=0.0,
        )
        horizontal = horizontal.to(tl.float32) * LOG2E
    else:
        side = tl.arange(0, 2 * WIDE)
        column = side - WIDE
        offset = tl.where(
            (side < WIDE)[None, :],
            query_y[:, None] - side[None, :],
            OFFSETS + query_x[:, None] - column[None, :],
        )
        sides = tl.load(
            place[:, None] + (SIZE - 1) + offset,
            mask=asked[:, None] & (side % WIDE < SIZE)[None, :],
            other=0.0,
        )
    if FILLED:
        no_key = tl.load(empty + channels + head * HEAD + channel)
        no_value = tl.load(empty + 2 * channels + head * HEAD + channel)

    highest = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    answer = tl.zeros([BLOCK, HEAD], dtype=tl.float32)
    for row in range(0, SIZE, ROWS):
        key_y = row + key // WIDE
        inside = (key_x < SIZE) & (key_y < SIZE)
        there = inside & (top + key_y < height) & (left + key_x < width)
        start = ((top + key_y) * width + left + key_x) * (3 * channels)
        k = tl.load(tokens + channels + start[None, :] + channel[:, None], mask=there[None, :], other=0.0)
        v = tl.load(tokens + 2 * channels + start[:, None] + channel[None, :], mask=there[:, None], other=0.0)
        if FILLED:
            k = tl.where(there[None, :], k, no_key[:, None])
            v = tl.where(there[:, None], v, no_value[None, :])
        if ROWS == 1:
            scores = tl.dot(q, k) * (scale * LOG2E) + horizontal
            vertical = tl.load(place + (SIZE - 1) + query_y - row, mask=asked, other=0.0)
            vertical = vertical.to(tl.float32) * LOG2E
        else:
            at_key = (side[:, None] == key_y[None, :]) | (column[:, None] == key_x[None, :])
            scores = tl.dot(q, k) * (scale * LOG2E) + tl.dot(sides, at_key.to(sides.dtype)) * LOG2E
        if ROWS * WIDE > SIZE or SIZE % ROWS:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        if ROWS == 1:
            higher = tl.maximum(highest, tl.max(scores, 1) + vertical)
            weights = tl.exp2(scores - (higher - vertical)[:, None])
        else:
            higher = tl.maximum(highest, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(highest - higher)
        total = total * shrunk + tl.sum(weights, 1)
        answer = answer * shrunk[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher

    answer = answer / total[:, None]
    written = out + image * height * width * channels + head * HEAD
    tl.store(
        written + token[:, None] * channels + channel[None, :],
        answer.to(out.dtype.element_ty),
        mask=asked[:, None],
    )
