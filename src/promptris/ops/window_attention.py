"""SAM's attention within windows on a GPU, as one kernel (Triton, which comes with torch's builds for GPUs).

It reads queries, keys and values where their projection left them and writes the answers where the next layer reads
them: no windows are cut out, filled up or joined again, and no bias is held for pairs of tokens. A bias is a query's
product with the embedding of the offset to a key, and those products are few: 2 (2 size - 1) per query.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ROW_BY_ROW = 64, 4, 3
SEVERAL_ROWS = 128, 4, 3
"""Queries of a program, its warps, and the steps that are loaded ahead; for windows whose row fills a step or not."""
KEYS = 64
"""Keys that a step of the kernel takes, at least: whole rows of a window, filled up to a power of two."""
LARGEST = 128
"""The largest side of a window."""
HEADS = (16, 32, 64, 128)
"""Widths of a head that the kernel takes."""


@cache
def has_triton() -> bool:
    """Whether kernels can be compiled."""
    return importlib.util.find_spec("triton") is not None


def fits_kernel(device: torch.device, dtype: torch.dtype, size: int, head: int) -> bool:
    """Whether `attend_in_windows` takes projections of this type there, windows up to such a side, such heads."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and size <= LARGEST
        and head in HEADS
        and has_triton()
    )


def attend_in_windows(
    qkv: Float[Tensor, "I H W C"],
    places: Float[Tensor, "heads I H W P"],
    empty: Float[Tensor, " C"],
    size: int,
) -> Float[Tensor, "I H W D"]:
    """Attention with decomposed relative positions within windows of `size` x `size`; C = 3 D.

    Windows that stick out are filled up with tokens whose projection is `empty`; their keys and values take part.

    Args:
        qkv: projections of the tokens: queries, keys, values, each by heads.
        places: products of the unscaled queries with the embeddings of the 2 size - 1 vertical offsets, then with
            those of the horizontal ones, then anything; offset 0 is in the middle, query minus key counts.
        empty: projection of a token that is not there.
        size: side of the windows.
    """
    answer: Tensor = _operation(qkv, places, empty, size)
    return answer


# What torch.compile and torch.export see of the kernel.
@torch.library.custom_op("promptris::attend_in_windows", mutates_args=())
def _operation(qkv: Tensor, places: Tensor, empty: Tensor, size: int) -> Tensor:
    return run_kernel(qkv, places, empty, size)


@_operation.register_fake
def _(qkv: Tensor, places: Tensor, empty: Tensor, size: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


def run_kernel(
    qkv: Tensor,
    places: Tensor,
    empty: Tensor,
    size: int,
    launch: tuple[int, int, int] | None = None,
) -> Tensor:
    """`attend_in_windows` with a choice of queries, warps and steps ahead."""
    import triton

    images, height, width, channels = qkv.shape
    heads = len(places)
    qkv, places, empty = qkv.contiguous(), places.contiguous(), empty.contiguous()
    out = qkv.new_empty(images, height, width, channels // 3)
    down, across = -(-height // size), -(-width // size)
    wide = max(16, triton.next_power_of_2(size))
    block, warps, stages = launch or (SEVERAL_ROWS if wide < KEYS else ROW_BY_ROW)
    grid = (triton.cdiv(size * size, block), heads, images * down * across)
    _kernel()[grid](
        qkv,
        places,
        empty,
        out,
        height,
        width,
        heads,
        down,
        across,
        (channels // 3 // heads) ** -0.5,
        SIZE=size,
        WIDE=wide,
        ROWS=max(1, KEYS // wide),
        BLOCK=block,
        HEAD=channels // 3 // heads,
        PLACES=places.shape[4],
        FILLED=down * size > height or across * size > width,
        num_warps=warps,
        num_stages=stages,
    )
    return out


@cache
def _kernel() -> Any:
    from promptris.ops.window_attention_kernel import attend

    return attend
