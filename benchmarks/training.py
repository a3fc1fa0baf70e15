"""What sharing and recomputation bring to a training step of the paper's model on this machine.

**Sharing.** Time of a step of the second stage with SAM's image encoder run once per image, as promptris does, and
once per expression, as code does that treats every (image, expression) pair as a sample. Both in one process and in
turns.

**Memory.** Peak resident memory of a step with and without activation checkpointing, each in a fresh process: what
the step adds to a process that holds the model, its optimiser and a batch already. "counted" is what
`promptris.modeling.cost` expects.

The model has the paper's towers (CLIP ViT-B/16, SAM ViT-B) with random weights, on which the figures do not depend.
Images have half the paper's sides, which takes a few minutes on two cores; `--full` takes the paper's sides.

    python benchmarks/training.py [--full] [--rounds 3] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from made_up_step import TrainingStep, made_up_batch
from rich.console import Console
from rich.table import Table
from transformers import CLIPModel, SamModel

from promptris.modeling.build import build_model
from promptris.modeling.cost import StepShape, count_step
from promptris.modeling.presets import get_preset
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.tokenizer import byte_tokenizer

PER_IMAGE = 4


@dataclass(frozen=True)
class Size:
    """Sides of the two squares in pixels, and images of the step that is timed and of the one that is weighed."""

    clip: int
    sam: int
    timed: int
    weighed: int


SIZES = {"half": Size(240, 512, timed=1, weighed=4), "full": Size(480, 1024, timed=1, weighed=2)}
PROMPT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""Has glibc give memory back when it is freed, so that resident memory is what is in use."""
MEMORY_CASES = tuple((sam, recompute) for sam in (False, True) for recompute in (False, True))


def build(size: Size) -> PromptRIS:
    """The paper's towers with random weights, for images of a size."""
    preset = get_preset("vit-b")
    preset = dataclasses.replace(
        preset,
        sam_vision={**preset.sam_vision, "image_size": size.sam},
        config=dataclasses.replace(preset.config, clip_image_size=size.clip),
    )
    torch.manual_seed(0)
    clip = preset.clip_config()
    tokenizer = byte_tokenizer(clip.text_config.vocab_size, clip.text_config.max_position_embeddings)
    return build_model(CLIPModel(clip), SamModel(preset.sam_config()), preset.config, tokenizer)


def sharing(size: Size, rounds: int, console: Console) -> dict[str, Any]:
    """Step times with one encoding per image and with one per expression."""
    model = build(size).train()
    step = TrainingStep(model)
    batch = made_up_batch(model, StepShape(size.timed, PER_IMAGE), with_sam=True)
    step(batch)  # the first step allocates what the others find
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for share, measured in times.items():
            start = time.perf_counter()
            step(batch, share=share)
            measured.append(time.perf_counter() - start)
    ratios = [per_expression / shared for shared, per_expression in zip(*times.values(), strict=True)]
    table = Table(title=f"Step of the second stage, {size.timed} image, {PER_IMAGE} expressions")
    for column in ("SAM's image encoder is run", "seconds", "lowest", "highest"):
        table.add_column(column)
    for share, measured in times.items():
        row = (statistics.median(measured), min(measured), max(measured))
        table.add_row("once per image" if share else "once per expression", *(f"{t:.2f}" for t in row))
    console.print(table, f"ratio {statistics.median(ratios):.2f}")
    return {
        "seconds_shared": round(statistics.median(times[True]), 2),
        "seconds_per_expression": round(statistics.median(times[False]), 2),
        "ratio": {
            "median": round(statistics.median(ratios), 2),
            "lowest": round(min(ratios), 2),
            "highest": round(max(ratios), 2),
        },
    }


def memory(name: str, threads: int, console: Console) -> dict[str, Any]:
    """Peak memory of a step, each in a fresh process."""
    size = SIZES[name]
    table = Table(title=f"Memory of a step, {size.weighed} images, {size.weighed * PER_IMAGE} expressions")
    columns = ("stage", "activation checkpointing", "step MB", "counted MB", "whole process MB", "seconds")
    for column in columns:
        table.add_column(column, justify="right")
    rows = []
    for sam, recompute in MEMORY_CASES:
        case = [name, str(threads), str(int(sam)), str(int(recompute))]
        done = subprocess.run(
            [sys.executable, __file__, "--weigh", *case],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | PROMPT_MALLOC,
        )
        row = {"stage": 2 if sam else 1, "checkpointing": recompute, **json.loads(done.stdout)}
        shape = StepShape(size.weighed, PER_IMAGE)
        counted = count_step(lambda: build(size), shape, sam=sam, recompute=recompute).peak_bytes
        row["counted_mb"] = round(counted / 2**20)
        rows.append(row)
        table.add_row(
            str(row["stage"]),
            "on" if recompute else "off",
            *(str(row[column]) for column in ("step_mb", "counted_mb", "process_mb", "seconds")),
        )
    console.print(table)
    ratios = {
        f"stage{stage}": round(off["step_mb"] / on["step_mb"], 2)
        for stage, (off, on) in {1: rows[:2], 2: rows[2:]}.items()
    }
    console.print(f"ratios {ratios}")
    return {"rows": rows, "ratios": ratios}


def weigh(name: str, threads: str, sam: str, recompute: str) -> None:
    """One step in this process; prints what it took."""
    torch.set_num_threads(int(threads))
    size = SIZES[name]
    model = build(size).train()
    model.checkpoint_activations(bool(int(recompute)))
    step = TrainingStep(model)
    # A small step first, after which the optimiser has its state; then the peak so far is forgotten.
    step(made_up_batch(model, StepShape(1, 1), with_sam=True))
    batch = made_up_batch(model, StepShape(size.weighed, PER_IMAGE), with_sam=bool(int(sam)))
    Path("/proc/self/clear_refs").write_text("5")
    before, _ = resident_memory()
    start = time.perf_counter()
    step(batch)
    seconds = time.perf_counter() - start
    _, peak = resident_memory()
    result = {"step_mb": round(peak - before), "process_mb": round(peak), "seconds": round(seconds, 1)}
    sys.stdout.write(json.dumps(result))


def resident_memory() -> tuple[float, float]:
    """Now and at the highest, in MB."""
    status = Path("/proc/self/status").read_text()
    now, peak = (re.search(rf"{field}:\s*(\d+)", status) for field in ("VmRSS", "VmHWM"))
    assert now and peak
    return float(now.group(1)) / 1024, float(peak.group(1)) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="images with the paper's sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("sharing", "memory"), help="measure one of the two")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--weigh", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weigh:
        weigh(*options.weigh)
        return

    torch.set_num_threads(options.threads)
    console = Console(width=110)
    name = "full" if options.full else "half"
    size = SIZES[name]
    result: dict[str, Any] = {
        "clip_side": size.clip,
        "sam_side": size.sam,
        "expressions_per_image": PER_IMAGE,
    }
    ratios: dict[str, float] = {}
    if options.only != "memory":
        result["sharing"] = sharing(size, options.rounds, console)
        ratios["sharing_time"] = result["sharing"]["ratio"]["median"]
    if options.only != "sharing":
        result["memory"] = memory(name, options.threads, console)
        ratios |= {f"checkpointing_memory_{k}": v for k, v in result["memory"]["ratios"].items()}
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps({"ratios": ratios, **result, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
