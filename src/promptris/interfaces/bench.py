"""`promptris bench`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from promptris.errors import InputError
from promptris.interfaces.arguments import Device, Model
from promptris.interfaces.models import DEFAULT_MODEL, ModelChoice
from promptris.interfaces.terminal import new_table, print_table, say

STDOUT = Path("-")


def bench_command(
    model: Model = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Build the size named by --model with random weights."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write everything that was measured to this file; '-' prints it."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds of every comparison.", min=1)] = 3,
    rivals: Annotated[
        bool,
        typer.Option(
            help="Measure the slow ways too: the naive one, transformers' own, CLIPSeg. Minutes at the paper's size."
        ),
    ] = True,
    engines: Annotated[
        bool,
        typer.Option(
            help="Measure SAM's image encoder by the other engines that are installed, too; their first conversion "
            "takes minutes at the paper's size."
        ),
    ] = False,
    device: Device = "auto",
) -> int:
    """Measure speed, memory and agreement on this machine, beside what one would run instead."""
    ModelChoice(model, random_weights, device).check()
    if json_file is not None and json_file.is_dir():
        raise InputError(f"--json {json_file} is a folder: name a file")
    from promptris.benchmarking.bench import Settings, run_bench, summary_rows
    from promptris.outputs import write_whole

    settings = Settings(
        model or DEFAULT_MODEL, random_weights, device, repeats, rivals=rivals, engines=engines
    )
    result = {"command": shlex.join(["promptris", *sys.argv[1:]]), **run_bench(settings, say)}
    text = json.dumps(result, indent=2) + "\n"
    if json_file == STDOUT:
        print(text, end="")
        return 0
    if json_file is not None:
        write_whole(json_file, text.encode())
        say(f"written to {json_file}")
    table = new_table("ratio", "value")
    for name, value in summary_rows(result):
        table.add_row(name, value)
    print_table(table, f"{settings.model}: how many times as fast, or as small, ours is")
    return 0
