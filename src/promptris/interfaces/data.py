"""`promptris data`: is a data set whole, and where does it come from?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from promptris.interfaces.terminal import new_table, print_table, progress, say

WHOLE, OFF = 0, 1

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def data_command(context: typer.Context) -> None:
    """Check data sets, describe them, show samples, or download them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="PROMPTRIS_DATA",
        help="Folder with the images and the data sets' folders; not needed for your own data. "
        "Also taken from PROMPTRIS_DATA.",
    ),
]


@app.command("check")
def check_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="refcoco, refcoco+, refcocog, grefcoco, refshapes, refcoco-combined, or a folder of your own.",
        ),
    ],
    data_root: DataRoot = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="Partition: unc, umd or google.  [default: the data set's usual one]"),
    ] = None,
    decode: Annotated[
        bool, typer.Option(help="Decode every image, which finds files that are cut off.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> int:
    """Is a data set whole? Counts, and every broken item by name.

    Referents, images and sentences of each split are set beside the published numbers, where there are any, and
    every image is decoded. The exit code is 1 when anything is off.
    """
    from promptris.data.catalog import read_dataset
    from promptris.data.check import check_dataset
    from promptris.data.readers.own_layout import LAYOUT_HELP, UnknownLayoutError

    try:
        dataset = read_dataset(name, data_root, split_by, skip_broken=True, notify=say)
    except UnknownLayoutError:
        print(LAYOUT_HELP)
        raise
    with progress("images") as advance:
        report = check_dataset(dataset, decode, advance)
    if as_json:
        print(
            json.dumps({"name": dataset.name, "split_by": dataset.split_by, "ok": report.ok} | asdict(report))
        )
    else:
        _print_counts(f"{dataset.name} {dataset.split_by}".strip(), report.counts)
        _print_groups(report.open_vocabulary)
    for note in report.notes:
        say(f"note: {note}")
    for problem in report.problems:
        say(problem)
    say(_verdict(len(report.problems), decode))
    return WHOLE if report.ok else OFF


def _print_counts(title: str, rows: tuple[Any, ...]) -> None:
    known = any(row.published for row in rows)
    columns = ["referents", "images", "sentences"]
    if known:
        columns = [column for name in columns for column in (name, "published")]
    table = new_table("split", *columns, *(["ok"] if known else []))
    for row in rows:
        cells: list[str] = []
        for place in range(3):
            cells.append(_number(row.found, place))
            if known:
                cells.append(_number(row.published, place))
        verdict = "" if row.published is None else "yes" if row.ok else "NO"
        table.add_row(row.split, *cells, *([verdict] if known else []))
    print_table(table, title)


def _number(counts: tuple[int, ...] | None, place: int) -> str:
    return "-" if counts is None else f"{counts[place]:,}"


def _print_groups(rows: tuple[Any, ...]) -> None:
    if not rows:
        return
    table = new_table("split", "categories", "referents", "expected", "ok", words=2)
    for row in rows:
        table.add_row(
            " + ".join(row.splits),
            row.group,
            f"{row.found:,}",
            f"{row.published:,}",
            "yes" if row.ok else "NO",
        )
    print()
    print_table(table, "open vocabulary (Table 2)")


def _verdict(problems: int, decode: bool) -> str:
    if problems:
        return f"{problems} thing{'s are' if problems > 1 else ' is'} off, each named above"
    return "nothing is off" if decode else "nothing is off, as far as can be told without decoding the images"


@app.command("fetch")
def fetch_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="refcoco, refcoco+, refcocog, grefcoco, coco-train2014, or a name in --sources.",
        ),
    ],
    data_root: Annotated[
        Path,
        typer.Option(envvar="PROMPTRIS_DATA", help="Folder that gets the images and the data set's folder."),
    ],
    images: Annotated[bool, typer.Option(help="Fetch the images too (13.5 GB for COCO).")] = True,
    sources: Annotated[
        Path | None,
        typer.Option(help="Another list of sources, in the form of the package's own sources.yaml."),
    ] = None,
) -> int:
    """Download a data set; resume, verify, unpack.

    What was interrupted goes on where it stopped. Sizes and hashes are compared with the published ones.
    """
    from promptris.data.fetching.fetch import fetch

    with _transfers() as tell:
        report = fetch(name, data_root, sources, images, tell)
    for file in report.files:
        say(file.sentence)
    if name != "coco-train2014":
        say(f"check it with:  promptris data check {name} --data-root {data_root}")
    return WHOLE


@contextmanager
def _transfers() -> Iterator[Any]:
    """Bars for downloads, one per file and stage; notes as lines. Without a terminal only the notes."""
    import sys

    if not sys.stderr.isatty():
        yield lambda event: say(f"{event.file}: {event.note}") if event.note else None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        bars: dict[tuple[str, str], Any] = {}

        def tell(event: Any) -> None:
            if event.note:
                bar.console.print(f"promptris: {event.file}: {event.note}", markup=False, highlight=False)
            key = (event.file, event.stage)
            if key not in bars:
                bars[key] = bar.add_task(f"{event.stage} {event.file}", total=event.total)
            bar.update(bars[key], completed=event.done, total=event.total)

        yield tell
