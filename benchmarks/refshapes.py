"""How fast RefShapes is made, on one core: in memory, and written to disk as a data set.

Rates are scenes per second of processor time, so that other programs on the machine disturb little, and per
second on the clock beside it. Each is the median over the rounds; every round makes other scenes.

    python benchmarks/refshapes.py [--scenes 200] [--rounds 5] [--size 128] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from rich.console import Console
from rich.table import Table

from promptris.data.refshapes import LEVELS, WorldOptions, make_example, write_refshapes


@dataclass(frozen=True)
class Rate:
    """Scenes per second: of processor time, and on the clock."""

    processor: float
    clock: float


def in_memory(seed: int, scenes: int, options: WorldOptions) -> None:
    """Scenes with pictures, masks and expressions."""
    for index in range(scenes):
        make_example(seed, index, options)


def written(seed: int, scenes: int, options: WorldOptions) -> None:
    """A data set in REFER's layout."""
    with tempfile.TemporaryDirectory() as folder:
        write_refshapes(folder, {"train": scenes}, seed, options)


WAYS: dict[str, Callable[[int, int, WorldOptions], None]] = {"in memory": in_memory, "written": written}


def measure(
    make: Callable[[int, int, WorldOptions], None], options: WorldOptions, scenes: int, rounds: int
) -> Rate:
    """The median rate of some rounds, after a short one that does not count."""
    make(0, 2, options)
    rates = []
    for seed in range(1, rounds + 1):
        processor, clock = time.process_time(), time.perf_counter()
        make(seed, scenes, options)
        rates.append((scenes / (time.process_time() - processor), scenes / (time.perf_counter() - clock)))
    return Rate(*(round(statistics.median(column), 1) for column in zip(*rates, strict=True)))


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure and print; returns what goes into the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=200, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="side of the scenes in pixels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.scenes < 1 or options.rounds < 1:
        parser.error("--scenes and --rounds must be at least 1")

    rates = {
        level: {
            way: measure(make, WorldOptions(options.size, level), options.scenes, options.rounds)
            for way, make in WAYS.items()
        }
        for level in LEVELS
    }
    table = Table(caption="per second of processor time / on the clock", min_width=56)
    table.title = f"RefShapes, {options.size} px: scenes per second on one core"
    for column in ("level", *WAYS):
        table.add_column(column, justify="left" if column == "level" else "right")
    for level, row in rates.items():
        table.add_row(level, *(f"{rate.processor:.0f} / {rate.clock:.0f}" for rate in row.values()))
    Console(width=100).print(table)
    result: dict[str, object] = {
        "scenes_per_second": {
            level: {way: asdict(rate) for way, rate in row.items()} for level, row in rates.items()
        },
        "scenes": options.scenes,
        "rounds": options.rounds,
        "size": options.size,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
