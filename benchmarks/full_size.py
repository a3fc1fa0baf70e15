"""Time and memory of the paper-size model (CLIP ViT-B/16 at 480, SAM ViT-B at 1024) on this machine.

Random weights: the figures do not depend on them. Prints one JSON object; seconds are medians.

    python benchmarks/full_size.py [--preset vit-b] [--expressions 4] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from promptris.modeling.build import build_random, count_parameters
from promptris.predictor import Predictor


def peak_memory() -> float:
    """Peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="vit-b")
    parser.add_argument("--expressions", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    start = time.perf_counter()
    model = build_random(options.preset)
    predictor = Predictor(model, remembered_images=0)
    built = time.perf_counter() - start
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    texts = [f"the object number {i} on the left" for i in range(options.expressions)]

    with_image = predictor.set_image(image)
    total = count_parameters(model)[-1]
    result = {
        "preset": options.preset,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "parameters": {"trainable": total.trainable, "frozen": total.frozen},
        "seconds": {
            "build": round(built, 3),
            "set_image": median_seconds(lambda: predictor.set_image(image), options.repeats),
            "predict_1": median_seconds(lambda: with_image.predict(texts[0]), options.repeats),
            f"predict_{len(texts)}": median_seconds(lambda: with_image.predict(texts), options.repeats),
        },
        "peak_memory_gb": round(peak_memory(), 2),
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
