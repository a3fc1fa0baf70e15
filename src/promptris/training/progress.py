"""What a person sees of a run while it trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from promptris.training.callbacks import StepRecord

WINDOW = 50
"""Steps over which losses and speed are smoothed."""
_STEPS_FOR_ETA = 3
_REDRAW_SECONDS = 0.1
_BAR_WIDTHS = (10, 40)


class TrainingProgress:
    """A sink that shows the figures of training on stderr; nothing goes to stdout.

    On a terminal there is a bar with name, stage, steps, time left (ETA), learning rate, images per second and
    peak memory, and below it the loss and its terms; both lines fit the terminal, the least important figures
    giving way first. Elsewhere the same figures come as one plain line every few seconds.

    Losses are means and the speed is the median of the last `WINDOW` steps. ETA is told from the fourth step
    of this process, or of a stage, on: the first one is not counted, because it does what is only done once.
    It takes the later stages to be as fast as the present one and is marked with ">" while there are any.

    Nothing is shown before the first record. Use it as a context manager, or call `close`, so that the bar is
    finished also when training is interrupted.

    Args:
        name: what is being trained.
        stages: how many stages the run has; a single one is not mentioned.
        every: seconds between plain lines.
    """

    def __init__(self, name: str, *, stages: int = 1, every: float = 10.0) -> None:
        self.name, self.stages, self.every = name, stages, every
        self._view: _View | None = None
        self._given_up = self._is_shown = False
        self._record: StepRecord | None = None
        self._recent: deque[StepRecord] = deque(maxlen=WINDOW)
        self._started = 0.0
        self._stage_began = (0, 0.0)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, record: StepRecord) -> None:
        """Take the figures of a step."""
        now = perf_counter()
        if self._record is None:
            self._started = now - record.seconds
        if self._record is None or record.stage != self._record.stage:
            self._stage_began = (record.step, now)
            self._recent.clear()
        self._record = record
        self._recent.append(record)
        self._is_shown = False
        if self._view is None:
            self._view = _open_view(self.every)
        if self._view.is_due(now) or record.step >= record.total:
            self._show(now)

    def meanwhile(self, what: str, done: int, total: int) -> None:
        """Tell how far something is that training waits for, such as a validation, until the next record."""
        now = perf_counter()
        if self._view is None or self._given_up or not self._view.is_due(now):
            return
        try:
            self._view.aside(f"{what} {done}/{total}", now)
        except (OSError, ValueError, SystemExit):
            self._give_up()

    def close(self) -> None:
        """Show the last step, and leave the terminal as it was."""
        if self._view is None or self._given_up:
            return
        if not self._is_shown:
            self._show(perf_counter())
        try:
            self._view.close()
        except (OSError, ValueError, SystemExit):
            self._give_up()
        self._view = None

    def _show(self, now: float) -> None:
        if self._view is None or self._record is None or self._given_up:
            return
        self._is_shown = True
        figures = self._figures(self._record, now)
        try:
            self._view.show(figures, now)
        except (OSError, ValueError, SystemExit):  # the last one is how rich answers a closed pipe
            self._give_up()

    def _give_up(self) -> None:
        """Stderr is gone, with a terminal that was closed for example: training goes on without a word."""
        self._given_up = True
        if self._view is not None:
            with suppress(OSError, ValueError, SystemExit):
                self._view.close()

    # ------------------------------------------------------------------------------------------- the figures

    def _figures(self, record: StepRecord, now: float) -> _Figures:
        steps, stage = f"{record.step}/{record.total}", f"{record.stage + 1}/{self.stages}"
        is_done = record.step >= record.total
        time = f"took {duration(now - self._started)}" if is_done else f"ETA {self._eta(record, now)}"
        rate = f"lr {record.lr:.1e}"
        speed = three_digits(median(past.images_per_second for past in self._recent))
        memory = binary_size(record.peak_memory)
        head = [
            _Figure(self.name, self.name, rank=7),
            _Figure(f"stage {stage}", f"s{stage}", rank=5),
        ]
        tail = [
            _Figure(steps, steps, rank=0),
            _Figure(time, time, rank=1),
            _Figure(rate, rate, rank=4),
            _Figure(f"{speed} images/s", f"{speed} img/s", rank=3),
            _Figure(f"peak {memory}", memory, rank=6),
        ]
        head = head if self.stages > 1 else head[:1]
        return _Figures(record.step, record.total, head, tail, self._losses(record))

    def _eta(self, record: StepRecord, now: float) -> str:
        step, began = self._stage_began
        done = record.step - step
        if done < _STEPS_FOR_ETA:
            return "-:--"
        left = (now - began) / done * (record.total - record.step)
        return f"{'>' if record.stage + 1 < self.stages else ''}{duration(left)}"

    def _losses(self, record: StepRecord) -> dict[str, float]:
        """Means of the last steps, the whole loss first; a loss that is no number just now is told as it is."""
        means: dict[str, float] = {}
        for name, value in sorted(record.losses.items(), key=lambda item: item[0] != "loss"):
            past = [earlier.losses.get(name, math.nan) for earlier in self._recent]
            means[name] = fmean(v for v in past if math.isfinite(v)) if math.isfinite(value) else value
        return means


def duration(seconds: float) -> str:
    """Such as 0:42, 12:03, 1:02:03 or 2d 03h."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}:{minutes:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}"


def three_digits(value: float) -> str:
    """Such as 0.0123, 1.23, 12.3 or 1234."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:.3g}"


def binary_size(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point, such as 812 MiB or 12.3 GiB."""
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while count >= 999.5 and (larger := next(units, None)):
        count, unit = count / 1024, larger
    return f"{three_digits(count)} {unit}"


# ------------------------------------------------------------------------------------------------- showing them


@dataclass(frozen=True)
class _Figure:
    """A text, a shorter one for narrow terminals, and how soon it gives way: the higher `rank`, the sooner."""

    long: str
    short: str
    rank: int


@dataclass(frozen=True)
class _Figures:
    step: int
    total: int
    head: list[_Figure]
    tail: list[_Figure]
    losses: dict[str, float]


class _View(Protocol):
    def is_due(self, now: float) -> bool: ...
    def show(self, figures: _Figures, now: float) -> None: ...
    def aside(self, text: str, now: float) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """A plain line of all figures every few seconds."""

    def __init__(self, every: float) -> None:
        self.every, self._last = every, perf_counter()

    def is_due(self, now: float) -> bool:
        return now - self._last >= self.every

    def show(self, figures: _Figures, now: float) -> None:
        losses = [f"{name} {value:.3f}" for name, value in figures.losses.items()]
        texts = [figure.long for figure in (*figures.head, *figures.tail)]
        place = len(figures.head) + 2
        self.aside("  ".join([*texts[:place], *losses, *texts[place:]]), now)

    def aside(self, text: str, now: float) -> None:
        self._last = now
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """There is nothing to leave as it was."""


class _Bar:
    """Two lines at the bottom of the terminal; what others print meanwhile appears above them."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self._drawn = -math.inf
        self._figures: _Figures | None = None
        self._aside: str | None = None
        # Drawn by those who have news, never by a thread: the processes that prepare batches are forked from
        # this one and could be left with a lock that a thread of ours held at that moment.
        self._live = Live(
            self,
            console=console,
            auto_refresh=False,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._live.start()

    def is_due(self, now: float) -> bool:
        return now - self._drawn >= _REDRAW_SECONDS

    def show(self, figures: _Figures, now: float) -> None:
        self._figures, self._aside, self._drawn = figures, None, now
        self._live.refresh()

    def aside(self, text: str, now: float) -> None:
        self._aside, self._drawn = text, now
        self._live.refresh()

    def close(self) -> None:
        self._aside = None
        self._live.stop()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        if self._figures is None:
            return

        def text(content: str, end: str = "", style: str = "") -> Text:
            return Text(content, style=style, end=end, no_wrap=True, overflow="crop")

        # The last column stays free: some terminals wrap as soon as it is written.
        width = options.max_width - 1
        left, bar, right = fit_bar(self._figures, width)
        yield text(left)
        if bar:
            yield ProgressBar(total=self._figures.total, completed=self._figures.step, width=bar)
        yield text(right)
        if self._aside is not None:
            yield text("\n" + self._aside[:width], style="dim")
        elif self._figures.losses:
            yield text("\n" + fit_losses(self._figures.losses, width), style="dim")


def fit_bar(figures: _Figures, width: int) -> tuple[str, int, str]:
    """What stands left of the bar, the bar's width (0 for none), and what stands right of it.

    First the figures are abbreviated, then they are dropped one by one; the bar goes when only the steps are left.
    """
    least, most = _BAR_WIDTHS
    kept = sorted((*figures.head, *figures.tail), key=lambda figure: figure.rank)
    forms = [(len(kept), False)] + [(count, True) for count in range(len(kept), 0, -1)]
    for count, is_short in forms:
        gap = " " if is_short else "  "
        sides = []
        for side in (figures.head, figures.tail):
            shown = [figure for figure in side if figure in kept[:count]]
            sides.append(gap.join(figure.short if is_short else figure.long for figure in shown))
        left, right = sides[0] + gap if sides[0] else "", gap + sides[1]
        room = width - len(left) - len(right)
        if room >= least:
            return left, min(room, most), right
    return "", 0, right.strip()[: max(width, 0)]


def fit_losses(losses: dict[str, float], width: int) -> str:
    """The losses in one line: with three digits, else with two, else as many of the first ones as there is room.

    Terms with a common beginning, like coarse_bce and coarse_dice, name it once.
    """
    for digits, gap in ((3, "  "), (2, " ")):
        line = gap.join(_grouped(losses, digits))
        if len(line) <= width:
            return line
    names = list(losses)
    while names and len(line) > width:
        names.pop()
        line = gap.join(_grouped({name: losses[name] for name in names}, digits))
    return line


def _grouped(losses: dict[str, float], digits: int) -> Iterable[str]:
    groups: list[tuple[str, list[str]]] = []
    for name, value in losses.items():
        group, _, rest = name.rpartition("_")
        if not (group and groups and groups[-1][0] == group):
            groups.append((group, [group] if group else []))
        groups[-1][1].append(f"{rest} {value:.{digits}f}")
    return [" ".join(texts) for _, texts in groups]


def _open_view(every: float) -> _View:
    """A bar where stderr is a terminal on which a line can be drawn again."""
    if sys.stderr is None or not sys.stderr.isatty():
        return _Lines(every)
    from rich.console import Console

    class PlainConsole(Console):
        """Never hides the cursor: a process that is killed could not bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    console = PlainConsole(stderr=True, highlight=False, markup=False, emoji=False)
    return _Bar(console) if console.is_interactive else _Lines(every)
