"""What prompting that starts at a later layer saves: seconds for N expressions about one encoded image.

Random weights at the size of a preset; prompts from the first layer on, and from a quarter, a half, three quarters
of the layers. Measured in turn, medians. What it costs in accuracy is for `promptris ablate start`.

    python benchmarks/first_layer.py [--preset vit-b] [--dtype bfloat16] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptris.benchmarking.timing import interleaved
from promptris.modeling.build import build_random
from promptris.modeling.presets import get_preset
from promptris.placement import place
from promptris.predictor import Predictor

COUNTS = (1, 2, 4, 8, 16)


def predictor_from(preset: str, layer: int, dtype: str) -> Predictor:
    """Random weights with prompts from a layer on."""
    config = get_preset(preset).config
    changed = replace(config, prompting=replace(config.prompting, first_layer=layer))
    return Predictor(place(build_random(preset, config=changed), "auto", dtype), remembered_images=0)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="vit-b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)

    layers = predictor_from(options.preset, 0, options.dtype).model.clip.depth
    starts = [round(share * layers) for share in (0, 0.25, 0.5, 0.75)]
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    asked = {start: predictor_from(options.preset, start, options.dtype) for start in starts}
    with_image = {start: predictor.set_image(image) for start, predictor in asked.items()}
    rows = []
    for count in COUNTS:
        texts = [f"a dog {k}" for k in range(count)]
        times = interleaved(
            {str(start): lambda s=start, t=texts: with_image[s].predict(t) for start in starts},  # type: ignore[misc]
            options.repeats,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        seconds = {start: times[str(start)].median for start in starts}
        rows.append(
            {
                "expressions": count,
                "seconds": {start: round(value, 4) for start, value in seconds.items()},
                "times_as_fast": {start: round(seconds[0] / value, 3) for start, value in seconds.items()},
            }
        )
    report = {
        "preset": options.preset,
        "dtype": options.dtype,
        "layers": layers,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "rows": rows,
    }
    text = json.dumps(report, indent=2) + "\n"
    if options.json:
        options.json.write_text(text)
    print(text, end="")
    return report


if __name__ == "__main__":
    main()
