"""`promptris batch`: many images on many machines, by Ray."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from promptris.errors import InputError
from promptris.interfaces.arguments import Clip, Device, Dtype, Model, Sam, Threshold
from promptris.interfaces.models import DEFAULT_MODEL
from promptris.interfaces.options import check_threshold, require_extra
from promptris.interfaces.terminal import print_record, progress, say

_NAMED_ERRORS = 10


def batch_command(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Parquet or JSON-lines files with an image and one or several expressions per row; a folder with "
            "such files, a glob in quotes, or a URI (s3://...)."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the results, or a URI; an earlier run in it goes on.")],
    model: Model = None,
    image_column: Annotated[str, typer.Option(help="Column of paths or URIs.")] = "image",
    expression_column: Annotated[
        str | None,
        typer.Option(help="Column of texts or lists of texts.  [default: expressions or expression]"),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Workers, or the fewest and the most: 4 or 1,8.  [default: as many as there is room for]"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Expressions per part of the results.")] = 256,
    expressions_per_pass: Annotated[int, typer.Option(help="How many run through the model at once.")] = 16,
    num_cpus: Annotated[float, typer.Option(help="Cores of each worker.")] = 1,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each worker; 0.5 lets two share one.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threshold: Threshold = 0.5,
    max_retries: Annotated[
        int, typer.Option(help="How often lost work and images that do not come are tried again.")
    ] = 3,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with an earlier run in --out.")
    ] = True,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster, or auto.  [default: RAY_ADDRESS, else this machine alone]"),
    ] = None,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Segment what a table of images and expressions asks for, on one machine or many.

    Writes parquet: row, item, image, expression, score, area, bbox, point, COCO's run lengths, error. Prints one JSON
    line that sums up. What was interrupted goes on when the command is given again.
    """
    workers = parse_concurrency(concurrency)
    check_threshold(threshold)
    require_extra("ray")

    from promptris.distributed import segment_dataset

    with progress("expressions") as advance:
        summary = segment_dataset(
            source,
            out,
            model or DEFAULT_MODEL,
            image_column=image_column,
            expression_column=expression_column,
            concurrency=workers,
            batch_size=batch_size,
            expressions_per_pass=expressions_per_pass,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            device=device,
            dtype=dtype,
            threshold=threshold,
            clip=clip,
            sam=sam,
            max_retries=max_retries,
            resume=resume,
            address=address,
            progress=advance,
        )
    print_record(asdict(summary))
    if summary.errors:
        from promptris.distributed.parts import Results

        for image, error in Results(summary.out).errors(_NAMED_ERRORS):
            say(error if image in error else f"{image}: {error}")
        say(
            f"{summary.errors} of {summary.expressions} expressions have no answer: the column error in "
            f"{summary.out} says why"
        )
    for number, problem in list(summary.unfinished.items())[:_NAMED_ERRORS]:
        say(f"part {number}: {problem}")
    if summary.unfinished:
        say(f"{len(summary.unfinished)} parts are not written: the same command tries them again")
    return 1 if summary.errors or summary.unfinished else 0


def parse_concurrency(text: str | None) -> tuple[int, int] | None:
    """The fewest and the most workers of "4" or "1,8"; None stays None."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(
            f"--concurrency {text!r} is not a number of workers, or the fewest and the most, such as 1,8"
        )
    return int(parts[0]), int(parts[-1])
