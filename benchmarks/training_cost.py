"""The tables of docs/training-cost.md: operations and memory of a training step, and what 50 epochs of them take.

Everything here is counted or derived from counts; nothing is measured. Takes about a minute on one core.

    python benchmarks/training_cost.py [--images 28000] [--utilisation 0.30 0.40]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpu_train import PEAK_TFLOPS

from promptris.modeling.build import build_random, count_parameters
from promptris.modeling.cost import PARTS, StepCost, StepShape, count_step
from promptris.modeling.prompt_ris import PromptRIS
from promptris.training.config import TrainConfig

GPUS = (("L4", 24), ("RTX 4090", 24), ("A100", 40), ("A100", 80), ("H100", 80), ("H200", 141))
"""Names and memory in GB."""
SCALING = 0.9
"""Share of eight GPUs' speed that is assumed to be left of eight times one."""
MIB, GIB = 2**20, 2**30


def paper() -> PromptRIS:
    """The paper's sizes."""
    return build_random("vit-b")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def operations(first: StepCost, second: StepCost) -> str:
    """TFLOP of a step by part."""

    def tera(value: int) -> str:
        return f"{value / 1e12:.2f}" if value else "–"

    rows: list[list[str]] = []
    for part in PARTS:
        both = (first.forward, first.backward, second.forward, second.backward)
        rows.append([part, *(tera(side[part]) for side in both)])
    sides = (first.forward, first.backward, second.forward, second.backward)
    rows.append(["sum", *(tera(sum(side.values())) for side in sides)])
    head = ("part", "stage 1 forward", "stage 1 backward", "stage 2 forward", "stage 2 backward")
    return table(head, rows)


def variants() -> tuple[str, dict[tuple[int, bool], StepCost]]:
    """TFLOP and memory of a step in every variant, and the costs without recomputation by (stage, cached)."""
    rows, costs = [], {}
    for stage, cached in ((1, False), (2, False), (2, True)):
        for recompute in (False, True):
            full, half = (
                count_step(paper, sam=stage == 2, cached=cached, recompute=recompute, precision=precision)
                for precision in ("32", "bf16")
            )
            if not recompute:
                costs[stage, cached] = full
            rows.append(
                [
                    stage,
                    "not used" if stage == 1 else "cached" if cached else "computed",
                    "on" if recompute else "off",
                    f"{full.flops / 1e12:.1f}",
                    f"{full.peak_bytes / GIB:.1f}",
                    f"{half.peak_bytes / GIB:.1f}",
                ]
            )
    head = ("stage", "SAM embeddings", "checkpointing", "TFLOP", "float32 GiB", "bf16 GiB")
    return table(head, rows), costs


def small_batches() -> str:
    """Memory of the second stage with fewer images at once, in bf16."""
    rows = []
    for images in (2, 4, 8, 16):
        memory = (
            count_step(paper, StepShape(images=images), recompute=recompute, precision="bf16").peak_bytes
            for recompute in (False, True)
        )
        rows.append([images, *(f"{peak / GIB:.1f}" for peak in memory)])
    return table(("images at once", "checkpointing off, GiB", "on, GiB"), rows)


def duration(seconds: float) -> str:
    """In hours, or in minutes where they are few."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=28_000, help="training images")
    parser.add_argument("--utilisation", type=float, nargs=2, default=(0.30, 0.40), metavar=("LOW", "HIGH"))
    options = parser.parse_args()

    memory, costs = variants()
    sections = [operations(costs[1, False], costs[2, False]), memory, small_batches()]

    config = TrainConfig()
    steps = options.images / config.images_per_step
    epochs = {1: config.stages[0].epochs, 2: config.stages[1].epochs}
    once = options.images * costs[2, False].forward["SAM image encoder"] / config.images_per_step
    totals = {
        cached: steps * (epochs[1] * costs[1, False].flops + epochs[2] * costs[2, cached].flops)
        + (once if cached else 0)
        for cached in (False, True)
    }
    rows = [
        ["stage 1", f"{steps * epochs[1]:,.0f}", f"{steps * epochs[1] * costs[1, False].flops / 1e18:.2f}"],
        ["stage 2", f"{steps * epochs[2]:,.0f}", f"{steps * epochs[2] * costs[2, False].flops / 1e18:.2f}"],
        [
            "stage 2, cached",
            f"{steps * epochs[2]:,.0f}",
            f"{(steps * epochs[2] * costs[2, True].flops + once) / 1e18:.2f}",
        ],
        ["both", f"{steps * sum(epochs.values()):,.0f}", f"{totals[False] / 1e18:.2f}"],
        ["both, cached", f"{steps * sum(epochs.values()):,.0f}", f"{totals[True] / 1e18:.2f}"],
    ]
    sections.append(table(("", "steps", "EFLOP"), rows))

    rows = []
    for gpu, size in GPUS:
        peak = PEAK_TFLOPS[gpu]
        cells = [f"{gpu}, {size} GB", peak]
        for cached in (False, True):
            for count in (1, 8):
                speed = peak * 1e12 * (1 if count == 1 else count * SCALING)
                slow, fast = (totals[cached] / speed / share for share in options.utilisation)
                cells.append(f"{duration(fast)} – {duration(slow)}")
        rows.append(cells)
    head = ("GPU", "peak TFLOP/s", "1 GPU", "8 GPUs", "1 GPU, cached", "8 GPUs, cached")
    sections.append(table(head, rows))

    total = count_parameters(paper())[-1]
    weights = 4 * (total.trainable + total.frozen)
    # Gradients are among the step's peak; AdamW keeps two more numbers.
    state = 8 * total.trainable
    embedding = 256 * 64 * 64 * 2
    sections.append(
        table(
            ("", "size"),
            [
                ["weights, float32", f"{weights / GIB:.2f} GiB"],
                ["state of AdamW", f"{state / GIB:.2f} GiB"],
                ["SAM embedding of an image, bf16", f"{embedding / MIB:.0f} MiB"],
                [
                    f"embedding cache of {options.images:,} images",
                    f"{options.images * embedding / GIB:.1f} GiB",
                ],
            ],
        )
    )
    sys.stdout.write("\n".join(sections))


if __name__ == "__main__":
    main()
