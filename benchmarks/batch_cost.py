"""What a million expressions cost on CPU cores, from measured times; the prices are assumptions that you give.

Measured are core-seconds (CPU time of all threads), which other work on the machine changes little:
- the built-in model, through promptris.distributed.segment_dataset from the table to the parts, two workers;
- the paper's size with random weights (the figures do not depend on them): encoding an image, and an expression.
No GPU is measured. Takes some minutes.

    python benchmarks/batch_cost.py [--price-per-core-hour 0.04] [--json FILE]
    python benchmarks/batch_cost.py --tables FILE    # only the tables, from an earlier --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Ray's workers step back behind everything else on a machine, and would starve on a busy one.
os.environ.setdefault("RAY_worker_niceness", "0")

PRICE = 0.04
EXPRESSIONS_PER_IMAGE = (1, 4, 16)
DTYPES = ("float32", "bfloat16")


def measure_tiny(scenes: int) -> dict[str, Any]:
    """A batch of RefShapes scenes with all their expressions, on two workers of one core each."""
    from PIL import Image

    from promptris.data.refshapes import make_example
    from promptris.distributed import segment_dataset

    with tempfile.TemporaryDirectory() as name:
        folder, lines = Path(name), []
        for index in range(scenes):
            example = make_example(seed=5, index=index)
            Image.fromarray(example.image).save(folder / f"{index}.png")
            texts = [description.text for description in example.descriptions]
            lines.append(json.dumps({"image": f"{index}.png", "expressions": texts}) + "\n")
        (folder / "questions.jsonl").write_text("".join(lines))
        progress: list[tuple[float, int]] = []
        summary = segment_dataset(
            folder / "questions.jsonl",
            folder / "out",
            concurrency=(1, 2),
            batch_size=64,
            progress=lambda done, _: progress.append((time.perf_counter(), done)),
        )
    (first, begun), (last, done) = progress[1], progress[-1]
    return {
        "images": summary.images,
        "expressions": summary.expressions,
        "workers": summary.workers,
        "seconds_with_start_of_ray": summary.seconds,
        "expressions_per_second_once_started": round((done - begun) / (last - first), 1),
        "core_seconds_of_the_workers": summary.core_seconds,
        "core_seconds_per_expression": round(summary.core_seconds / summary.expressions, 4),
    }


def core_seconds(function: Any) -> float:
    """CPU time of a call, the lesser of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def measure_full(dtype: str, expressions: int) -> dict[str, Any]:
    """One image and some expressions at the paper's size on one thread, as in a worker, after warming up."""
    import numpy as np
    import torch

    from promptris.modeling.build import build_random
    from promptris.placement import place
    from promptris.predictor import Predictor

    # Threads that wait for each other on a busy machine would burn core-seconds.
    torch.set_num_threads(1)
    predictor = Predictor(place(build_random("vit-b"), "cpu", dtype), remembered_images=0)
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    texts = [f"the object number {number} on the left" for number in range(expressions)]
    with_image = predictor.set_image(image)
    with_image.predict(texts[0])
    return {
        "dtype": dtype,
        "core_seconds_per_image": round(core_seconds(lambda: predictor.set_image(image)), 2),
        "core_seconds_per_expression": round(
            core_seconds(lambda: with_image.predict(texts)) / expressions, 2
        ),
    }


def tables(result: dict[str, Any], price: float) -> str:
    """What docs/ray.md shows."""

    def row(name: str, seconds: float, each: int | str) -> str:
        hours = seconds * 1e6 / 3600
        return f"| {name} | {each} | {seconds:.3g} | {hours:,.0f} | {hours * price:,.2f} |"

    lines = [
        f"| model | expressions per image | core-seconds per expression | core-hours per million | at {price:g} per "
        "core-hour |",
        "| --- | --- | --- | --- | --- |",
    ]
    tiny = result["tiny"]
    each = round(tiny["expressions"] / tiny["images"])
    lines.append(row("tiny, whole batch", tiny["core_seconds_per_expression"], each))
    for full in result["full"]:
        for count in EXPRESSIONS_PER_IMAGE:
            seconds = full["core_seconds_per_image"] / count + full["core_seconds_per_expression"]
            lines.append(row(f"paper's size, {full['dtype']}", seconds, count))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--price-per-core-hour", type=float, default=PRICE)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--expressions", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tables", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.tables is not None:
        sys.stdout.write(tables(json.loads(options.tables.read_text()), options.price_per_core_hour))
        return
    tiny = measure_tiny(options.scenes)

    import torch

    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "tiny": tiny,
        "full": [measure_full(dtype, options.expressions) for dtype in DTYPES],
    }
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text + "\n" + tables(result, options.price_per_core_hour))
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
