"""What people and programs read: sentences and progress on stderr, results and tables on stdout."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from promptris.errors import PromptRISError

if TYPE_CHECKING:
    from rich.table import Table

    from promptris.evaluation.baselines import Baselines
    from promptris.evaluation.protocol import Evaluation

_PLAIN_WIDTH = 120
"""Columns of a table that does not go to a terminal."""
_COLUMNS = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")


def say(text: str) -> None:
    """One line on stderr."""
    line = (
        " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    )  # names of files need not be text
    print(f"promptris: {line}", file=sys.stderr, flush=True)


def report(error: BaseException, debug: bool, about: str | None = None) -> None:
    """One sentence about an error on stderr; with `debug`, the traceback before it.

    `about` is the input that it happened to; the sentence begins with it unless it names it anyway.
    """
    if debug:
        traceback.print_exception(error)
    if isinstance(error, PromptRISError):
        sentence = str(error)
    else:
        first = next(iter(str(error).splitlines()), "")[:300]
        sentence = f"unexpected {type(error).__name__}" + (f": {first}" if first else "")
        if not debug:
            sentence += "; run again with --debug for the traceback"
    say(sentence if about is None or about in sentence else f"{about}: {sentence}")


def print_record(record: dict[str, Any]) -> None:
    """One JSON line on stdout, with its letters as they are where stdout can show them."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        line = json.dumps(record)
    print(line, flush=True)


def new_table(*columns: str, words: int = 1) -> Table:
    """A table whose first `words` columns hold text and the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", overflow="fold")
    return table


def print_table(table: Table, title: str | None = None) -> None:
    """A table on stdout, its title above it; text is shown as it is, without markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    if title is not None:
        console.print(title)
    console.print(table)


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}"


def metrics_table(evaluation: Evaluation) -> Table:
    """The metrics of an evaluation in percent: final masks, coarse masks, each kind of expression."""
    table = new_table("masks", *_COLUMNS, "expressions")
    rows = {"final": evaluation.final, "coarse": evaluation.coarse}
    rows |= {f"final, {kind}": scores for kind, scores in evaluation.by_kind.items()}
    for name, scores in rows.items():
        table.add_row(name, *(percent(scores[column]) for column in _COLUMNS), str(scores["count"]))
    return table


def baselines_table(baselines: Baselines) -> Table:
    """What trivial answers and ceilings score, in percent."""
    table = new_table("without a model", *_COLUMNS)
    rows = {**baselines.trivial, **{f"oracle on {g} x {g}": s for g, s in baselines.oracle.items()}}
    for name, scores in rows.items():
        table.add_row(name, *(percent(scores[column]) for column in _COLUMNS))
    return table


def objects_line(baselines: Baselines) -> str:
    """Where the objects of the trivial answers come from."""
    origins = {
        "annotations": "all that are annotated in an image",
        "referents": "those that some expression means, as no others are known",
    }
    left_out = f"; {baselines.unreadable} that cannot be read are left out" if baselines.unreadable else ""
    return f"objects: {origins[baselines.objects]}{left_out}"


def verdict(evaluation: Evaluation) -> str | None:
    """A sentence that compares a model with the best trivial answer; None without baselines."""
    if evaluation.baselines is None:
        return None
    miou = evaluation.final["mIoU"]
    if evaluation.baselines.best is None:
        return (
            f"final mIoU {percent(miou)}, and no answer without a model to hold it against: too many expressions "
            "are about the only object that is known in their image, which every such answer hits"
        )
    name, best = evaluation.baselines.best
    against = (
        f"final mIoU {percent(miou)} against {percent(best)} of the best answer without a model ({name})"
    )
    if evaluation.baselines.beaten_by(miou):
        return against
    return f"{against}: not clearly better, so this model does not count as working on these data"


def generalised_table(evaluation: Evaluation) -> Table:
    """The metrics of generalised RIS in percent; "-" where there is nothing to score."""
    scores = evaluation.generalised
    columns = ("gIoU", "cIoU", "N-acc", "T-acc")
    table = new_table("masks", *columns, "expressions", "without target")
    cells = ["-" if (score := scores[column]) is None else percent(score) for column in columns]
    table.add_row("final", *cells, str(scores["count"]), str(scores["count_no_target"]))
    return table


def no_progress(done: int, total: int) -> None:
    """Where no bar is wanted."""


@contextmanager
def progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the block runs, with what is done and the time left; it is told (done, in all).

    In all is 0 where the end is not known. There is no bar when stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would send what goes to stdout to this console, away from a file or a pipe.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False, transient=True) as bar:
        number = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(number, completed=done, total=total or None)
