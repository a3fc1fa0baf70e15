"""Curves of training, of one run or of several over each other: losses, learning rate, stages, validation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promptris.data.paths import is_file, is_folder
from promptris.errors import InputError, MissingExtraError
from promptris.outputs import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS_FILE, VALIDATION_FILE = "metrics.csv", "validation.csv"
CURVE_FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
"""How curves may be written, by the ending of the file's name."""
EXTRA = "experiments"

_NO_TERMS = ("step", "stage", "loss", "lr", "seconds", "images_per_second", "memory_mb")
_COLUMNS = 3
# Okabe and Ito's palette, those that are dark enough for a line on white.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1c1f25")
_DASHES = ("-", "--", ":", "-.")
_INK, _SOFT, _GRID = "#202226", "#686c74", "#e4e6ea"


@dataclass(frozen=True, eq=False)
class RunCurves:
    """The figures of a run.

    Attributes:
        label: its name for people.
        steps: [N] numbers of the steps.
        stages: [N] index of the stage of each.
        series: "loss", "lr" and the terms of the loss by name, each [N]; NaN where a step has no such figure.
        validation_steps: [M] steps after which there was an evaluation, M may be 0.
        validation: mIoU of the "final" masks and, where it was told, of the "coarse" ones, as fractions [M].
    """

    label: str
    steps: Ints
    stages: Ints
    series: dict[str, Floats]
    validation_steps: Ints
    validation: dict[str, Floats]

    @property
    def terms(self) -> list[str]:
        """Names of the terms of the loss."""
        return [name for name in self.series if name not in ("loss", "lr")]

    @property
    def boundaries(self) -> list[tuple[float, int]]:
        """Where each stage but the first begins, half a step before its first one, and its index."""
        first = np.flatnonzero(np.diff(self.stages)) + 1
        return [(float(self.steps[i - 1] + self.steps[i]) / 2, int(self.stages[i])) for i in first]

    @property
    def best_validation(self) -> tuple[int, float] | None:
        """Step and value of the highest mIoU of the final masks; None without an evaluation."""
        values = self.validation.get("final")
        if values is None or not np.isfinite(values).any():
            return None
        place = int(np.nanargmax(values))
        return int(self.validation_steps[place]), float(values[place])


def read_runs(folders: Sequence[Path]) -> list[RunCurves]:
    """The figures of runs, labelled by as much of their paths as tells them apart; see `read_run`."""
    if not folders:
        raise InputError("no run is given: name the folder of at least one")
    given = {folder.resolve(): folder for folder in folders}
    return [read_run(given[path], label) for path, label in zip(given, run_labels(list(given)), strict=True)]


def run_labels(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths, of one length for all, that differ."""
    for length in range(1, max(len(folder.parts) for folder in folders)):
        labels = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def read_run(folder: Path, label: str) -> RunCurves:
    """The figures that a run has written so far.

    Raises:
        InputError: when the folder has no metrics.csv, or one without steps or with something else than numbers.
    """
    path = folder / METRICS_FILE
    if not is_folder(folder):
        raise InputError(f"{folder} is no folder: name the folder of a run, the --out of promptris train")
    if not is_file(path):
        raise InputError(
            f"{folder} has no {METRICS_FILE}: name the folder of a run, the --out of promptris train"
        )
    table = _read_table(path, ("step", "loss"))
    steps = table["step"].astype(np.int64)
    if not len(steps):
        raise InputError(f"{path} has no step yet: wait until the run has done one")
    names = ["loss", *(name for name in table if name == "lr" or name not in _NO_TERMS)]
    validation_steps, validation = np.empty(0, np.int64), {}
    if is_file(folder / VALIDATION_FILE):
        scores = _read_table(folder / VALIDATION_FILE, ("step", "mIoU"))
        validation_steps = scores["step"].astype(np.int64)
        columns = {"final": "mIoU", "coarse": "coarse_mIoU"}
        validation = {name: scores[column] for name, column in columns.items() if column in scores}
    return RunCurves(
        label,
        steps,
        table["stage"].astype(np.int64) if "stage" in table else np.zeros_like(steps),
        {name: table[name] for name in names},
        validation_steps,
        validation,
    )


def _read_table(path: Path, required: Sequence[str]) -> dict[str, Floats]:
    """The columns of a file of numbers; empty cells are NaN, and a last line still being written is left out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            rows = [row for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    for name in required:
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}: it is not the file of a training run")
    if rows and len(rows[-1]) < len(columns):
        rows.pop()
    values = np.full((len(rows), len(columns)), np.nan)
    for number, row in enumerate(rows):
        try:
            values[number] = [float(cell) if cell.strip() else np.nan for cell in row]
        except ValueError:
            raise InputError(
                f"line {number + 2} of {path} is not {len(columns)} numbers: the file is damaged there"
            ) from None
    table = {name: values[:, place] for place, name in enumerate(columns)}
    for name in ("step", "stage"):
        if name in table and not np.isfinite(table[name]).all():
            raise InputError(f"{path} has a line without a {name}: the file is damaged")
    return table


def smooth(values: Floats, stages: Ints, window: int) -> Floats:
    """Means over the `window` steps around each step, within its stage; NaN where none of them has a number.

    A mean around the step does not lag behind the curve, and losses of different stages, which have different
    terms, are not mixed. At the ends of a stage the mean is over fewer steps. An even window is one step wider
    on the left.
    """
    result = np.full(len(values), np.nan)
    edges = [0, *(np.flatnonzero(np.diff(stages)) + 1).tolist(), len(values)]
    for start, stop in pairwise(edges):
        part = values[start:stop]
        known = np.isfinite(part)
        sums = np.concatenate([[0.0], np.cumsum(np.where(known, part, 0.0))])
        counts = np.concatenate([[0], np.cumsum(known)])
        places = np.arange(len(part))
        low = np.maximum(places - window // 2, 0)
        high = np.minimum(places + (window - 1) // 2 + 1, len(part))
        count = counts[high] - counts[low]
        result[start:stop] = np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)
    return result


def default_window(runs: Sequence[RunCurves]) -> int:
    """Steps to smooth over: a fiftieth of the longest run, at least 1."""
    return max(1, max(len(run.steps) for run in runs) // 50)


# ---------------------------------------------------------------------------------------------------- drawing


def check_curves_path(path: Path) -> str:
    """Matplotlib's name of the format that the path's ending asks for; InputError naming the endings there are."""
    try:
        return CURVE_FORMATS[path.suffix.lower()]
    except KeyError:
        endings = ", ".join(CURVE_FORMATS)
        raise InputError(f"{path} has no ending of a plot: name a file that ends in {endings}") from None


def write_curves(runs: Sequence[RunCurves], path: Path, window: int | None = None) -> None:
    """Draw the curves of runs into a PNG, SVG or PDF, whole or not at all; the same runs give the same bytes.

    Args:
        runs: drawn over each other, each in its colour.
        path: its ending is the format.
        window: steps to smooth the losses over; None means `default_window`.

    Raises:
        InputError: for another ending, a window below 1, or a file that cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    kind = check_curves_path(path)
    if window is not None and window < 1:
        raise InputError(f"losses cannot be smoothed over {window} steps: name at least 1")
    require_matplotlib()

    import matplotlib

    # Names of runs are shown as they are, never read as formulas; a salt makes the ids of an SVG repeatable.
    with matplotlib.rc_context({"text.usetex": False, "svg.hashsalt": "promptris", "font.size": 9}):
        figure = draw_curves(runs, window or default_window(runs))
        buffer = io.BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=kind, dpi=160, metadata=dates.get(kind))
    write_whole(path, buffer.getvalue())


def require_matplotlib() -> None:
    """MissingExtraError, saying what to install, unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingExtraError("matplotlib", EXTRA) from error


def draw_curves(runs: Sequence[RunCurves], window: int) -> Figure:
    """The loss, learning rate and validation mIoU in a first row of panels, the loss's terms below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    terms = list(dict.fromkeys(name for run in runs for name in run.terms))
    beside = [
        name
        for name, there in (
            ("lr", any("lr" in run.series for run in runs)),
            ("validation", any(len(run.validation_steps) for run in runs)),
        )
        if there
    ]
    rows = 1 + -(-len(terms) // _COLUMNS)
    spacing = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.04)
    figure = Figure(figsize=(11.5, 0.75 + 2.45 * rows), layout=spacing, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, _COLUMNS)
    panels = {"loss": figure.add_subplot(grid[0, : _COLUMNS - len(beside)])}
    for place, name in enumerate(beside, start=_COLUMNS - len(beside)):
        panels[name] = figure.add_subplot(grid[0, place])
    for place, name in enumerate(terms):
        panels[name] = figure.add_subplot(grid[1 + place // _COLUMNS, place % _COLUMNS])

    # One scale of steps for all panels, so that what happens at a step stands in one place.
    last = max(int(run.steps[-1]) for run in runs)
    for name, axes in panels.items():
        _dress(axes, {"lr": "learning rate", "validation": "validation mIoU, %"}.get(name, name), last)
        _mark_stages(axes, runs, with_names=name == "loss")
    for number, run in enumerate(runs):
        for name, values in run.series.items():
            if name == "lr":
                panels[name].plot(run.steps, values, color=_color(number), linestyle=_dash(number), lw=1.6)
            else:
                _draw_loss(panels[name], run, values, number, window)
        if "validation" in panels:
            _draw_validation(panels["validation"], run, number)
    for name, axes in panels.items():
        if name not in ("lr", "validation"):
            _fit_loss(axes, [run for run in runs if name in run.series], name, window)
        elif name == "lr":
            axes.set_ylim(bottom=0)
    _name_runs(figure, runs, window)
    return figure


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _dash(number: int) -> Any:
    """Runs beyond the colours are told apart by their lines."""
    return _DASHES[number // len(_COLORS) % len(_DASHES)]


def _dress(axes: Axes, title: str, last: int) -> None:
    """A panel with its title, light lines to read values by, and numbers that stay short."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(title, loc="left", fontsize=10, color=_INK, parse_math=False)
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short_step(step)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0, labelsize=8.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(_SOFT)


def short_step(step: float) -> str:
    """A number of steps in a few letters: 500, 2000, 12k, 1.5M."""
    if step >= 1e6:
        return f"{step / 1e6:g}M"
    return f"{step / 1e3:g}k" if step >= 1e4 else f"{step:g}"


def _mark_stages(axes: Axes, runs: Sequence[RunCurves], with_names: bool) -> None:
    """A line where a stage begins: grey where all runs agree, else in the run's colour."""
    common = all(run.boundaries == runs[0].boundaries for run in runs)
    named: set[float] = set()
    for number, run in enumerate(runs[:1] if common else runs):
        color = _SOFT if common else _color(number)
        for step, stage in run.boundaries:
            axes.axvline(step, color=color, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
            if with_names and step not in named:
                named.add(step)
                axes.annotate(
                    f"stage {stage + 1}",
                    (step, 1),
                    (4, -2),
                    xycoords=axes.get_xaxis_transform(),
                    textcoords="offset points",
                    va="top",
                    fontsize=8,
                    color=color,
                )


def _draw_loss(axes: Axes, run: RunCurves, values: Floats, number: int, window: int) -> None:
    """The smoothed curve, and behind it faintly the raw one."""
    color, means = _color(number), smooth(values, run.stages, window)
    if window > 1:
        # In SVG and PDF as pixels: a hundred thousand steps would make a file that nothing opens.
        axes.plot(run.steps, values, color=color, lw=0.6, alpha=0.22, zorder=2, rasterized=True)
    gaps = np.flatnonzero(np.diff(run.stages)) + 1  # no line leads from one stage into the next
    steps, means = np.insert(run.steps.astype(float), gaps, np.nan), np.insert(means, gaps, np.nan)
    marker = "o" if len(run.steps) == 1 else None
    axes.plot(steps, means, color=color, linestyle=_dash(number), lw=1.7, marker=marker, zorder=3)


def _draw_validation(axes: Axes, run: RunCurves, number: int) -> None:
    """Final masks as a full line, coarse ones as a thin dashed one; the highest value is written beside it."""
    color = _color(number)
    for name, style in (("coarse", "--"), ("final", _dash(number))):
        if name in run.validation:
            width, alpha = (1.7, 1.0) if name == "final" else (1.1, 0.75)
            axes.plot(
                run.validation_steps,
                100 * run.validation[name],
                color=color,
                linestyle=style,
                linewidth=width,
                alpha=alpha,
                marker="o",
                markersize=3.2 if name == "final" else 2.2,
            )
    if run.best_validation is not None:
        step, value = run.best_validation
        axes.annotate(
            f"{100 * value:.1f}",
            (step, 100 * value),
            (0, 5),
            textcoords="offset points",
            ha="right" if step > 0.9 * axes.get_xlim()[1] else "center",
            fontsize=8,
            color=color,
        )
        axes.margins(y=0.12)


def _fit_loss(axes: Axes, runs: Iterable[RunCurves], name: str, window: int) -> None:
    """Limits that show the smoothed curves and nearly all raw values: single peaks may leave the panel."""
    highest: list[float] = []
    lowest: list[float] = []
    for run in runs:
        values = run.series[name][np.isfinite(run.series[name])]
        means = smooth(run.series[name], run.stages, window)
        means = means[np.isfinite(means)]
        if len(values):
            highest.append(max(float(means.max()), float(np.quantile(values, 0.99))))
            lowest.append(min(float(means.min()), float(np.quantile(values, 0.01))))
    if not highest:
        return
    top, bottom = max(highest), min(0.0, min(lowest))
    if top > bottom:
        axes.set_ylim(bottom * 1.05, top + 0.05 * (top - bottom))


def _name_runs(figure: Figure, runs: Sequence[RunCurves], window: int) -> None:
    """Names of the runs above the panels, and below them how to read the lines."""
    from matplotlib.lines import Line2D

    handles: list[Line2D] = [
        Line2D([], [], color=_color(number), linestyle=_dash(number), linewidth=2)
        for number in range(len(runs))
    ]
    columns = min(len(runs), 4)
    legend: Any = figure.legend(
        handles,
        # Matplotlib leaves out labels that begin with an underscore.
        [f"\u2009{run.label}" for run in runs],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        labelcolor=_INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    notes = []
    if window > 1:
        notes.append(f"losses: mean over {window} steps, faint the single steps")
    if any("coarse" in run.validation for run in runs):
        notes.append("validation: full line final masks, dashed coarse masks")
    figure.supxlabel("   ·   ".join(["steps", *notes]), fontsize=9, color=_SOFT)
