"""What oneDNN's linear layers bring to training on this CPU, beside torch's own.

Rates of linear layers of the small recipes' CLIP and of SAM ViT-B, forwards and backwards, and steps of the small
recipes, in one process and in turns; figures are medians. Weights and data are random, on which nothing depends.

    python benchmarks/linears.py [--rounds 5] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from made_up_step import TrainingStep, made_up_batch
from torch import nn

from promptris.modeling.build import build_random
from promptris.modeling.cost import StepShape
from promptris.ops.onednn import OneDnnLinears
from promptris.training.recipes import load_recipe

LAYERS = ((4768, 96, 384), (4768, 384, 96), (4096, 768, 3072), (4096, 3072, 768), (4096, 768, 2304))
"""Rows, width in, width out: CLIP's image tower in `refshapes-small`, and SAM ViT-B at 1024 pixels."""
WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {"torch": nullcontext, "onednn": OneDnnLinears}


def in_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a first round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def both_ways(work: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The same work with each kind of linear layer."""

    def within(way: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
        def run() -> None:
            with way():
                work()

        return run

    return {name: within(way) for name, way in WAYS.items()}


def layer_rates(rounds: int) -> list[dict[str, Any]]:
    """GFLOP/s of linear layers: forwards, and backwards to the input of a frozen layer."""
    rows = []
    for count, width_in, width_out in LAYERS:
        layer = nn.Linear(width_in, width_out).requires_grad_(False)
        x = torch.randn(count, width_in)
        inputs, gradient = x.clone().requires_grad_(), torch.randn(count, width_out)
        gflop = 2 * count * width_in * width_out / 1e9
        forwards = in_turns(both_ways(lambda layer=layer, x=x: layer(x)), rounds)
        passes = in_turns(both_ways(lambda layer=layer, x=inputs, g=gradient: layer(x).backward(g)), rounds)
        rows.append(
            {
                "size": [count, width_in, width_out],
                "forward_gflops": {name: round(gflop / seconds, 1) for name, seconds in forwards.items()},
                "both_gflops": {name: round(2 * gflop / seconds, 1) for name, seconds in passes.items()},
            }
        )
    return rows


def step_times(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a training step of the small recipes, without and with SAM."""
    rows = []
    for name in ("refshapes-ablation", "refshapes-small"):
        recipe = load_recipe(name)
        model = build_random(recipe.towers.preset, 0, recipe.model).train()
        step = TrainingStep(model)
        shape = StepShape(recipe.train.images_per_step, recipe.train.expressions_per_image, tokens=16)
        for with_sam in (False, True):
            batch = made_up_batch(model, shape, with_sam)
            seconds = in_turns(both_ways(lambda step=step, batch=batch: step(batch)), rounds)
            rows.append(
                {
                    "step": f"{name}, {'with' if with_sam else 'without'} SAM",
                    "seconds": {way: round(value, 3) for way, value in seconds.items()},
                    "ratio": round(seconds["torch"] / seconds["onednn"], 2),
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": layer_rates(options.rounds),
        "steps": step_times(options.rounds),
    }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")
    return result


if __name__ == "__main__":
    main()
