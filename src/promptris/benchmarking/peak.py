"""The highest rate of matrix products that this machine shows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from promptris.benchmarking.timing import synchronise
from promptris.ops.onednn import fits_onednn, onednn_product

# Rows, inputs, outputs: the perceptrons of SAM's and CLIP's towers, and a cube.
SHAPES = ((4096, 768, 3072), (4096, 3072, 768), (2048, 2048, 2048))
GPU_SHAPES = ((32768, 768, 3072), (32768, 3072, 768), (8192, 8192, 8192))
GPU_CALLS = 10
"""Products between two looks at the clock on a GPU, which starts each before the one before it is done."""


def measured_peak(device: torch.device, dtype: torch.dtype, repeats: int = 12, seconds: float = 4.0) -> float:
    """FLOP/s of the fastest of some products by the fastest library that is there: the median of several tries."""
    best = 0.0
    shapes = SHAPES if device.type == "cpu" else GPU_SHAPES
    for rows, inputs, outputs in shapes:
        x = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        ways: list[Callable[[], object]] = [lambda x=x, w=weight: torch.nn.functional.linear(x, w)]  # type: ignore[misc]
        if fits_onednn(x):
            ways.append(lambda x=x, w=weight: onednn_product(x, w))  # type: ignore[misc]
        for way in ways:
            with torch.inference_mode():
                calls = 1 if device.type == "cpu" else GPU_CALLS
                usual = _median(way, repeats, seconds / len(shapes) / len(ways), calls)
            best = max(best, 2 * rows * inputs * outputs / usual)
    return best


def _median(way: Callable[[], object], repeats: int, seconds: float, calls: int) -> float:
    way()
    synchronise()
    tries, end = [], time.perf_counter() + seconds
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            way()
        synchronise()
        now = time.perf_counter()
        tries.append((now - start) / calls)
        if now > end:
            break
    return statistics.median(tries)
