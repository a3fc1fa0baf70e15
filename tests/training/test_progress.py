"""What stands on a terminal while a run goes on, and what is printed where there is none."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable

import pytest

from promptris.training.callbacks import StepRecord
from promptris.training.progress import (
    TrainingProgress,
    _Figure,
    _Figures,
    binary_size,
    duration,
    fit_bar,
    fit_losses,
    three_digits,
)

TERMS = {
    "coarse_bce": 0.3,
    "coarse_dice": 0.456,
    "coarse_icl": 0.0123,
    "final_bce": 0.3,
    "final_dice": 0.456,
    "final_icl": 0.0123,
}


class Screen:
    """As much of a terminal as a progress bar needs."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.cursor_visible, self.widest = True, 0

    def feed(self, text: str) -> Screen:
        for code, character in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|([\s\S])", text):
            if code:
                self._control(code)
            elif character == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif character == "\r":
                self.column = 0
            else:
                self._put(character)
        return self

    def _control(self, code: str) -> None:
        number = int(code[2:-1]) if code[2:-1].isdigit() else 1
        if code.endswith("A"):
            self.row -= number
        elif code == "\x1b[2K":
            self.lines[self.row] = ""
        elif code in ("\x1b[?25l", "\x1b[?25h"):
            self.cursor_visible = code.endswith("h")
        else:
            assert code.endswith("m"), f"the screen does not know {code!r}"

    def _put(self, character: str) -> None:
        assert self.column < self.columns, f"{self.lines[self.row]!r} is too long"
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1
        self.widest = max(self.widest, self.column)


RUN = """
import logging, sys, time, warnings
from types import SimpleNamespace
from promptris.training.progress import TrainingProgress

def record(step, total=40):
    losses = {"coarse_bce": 0.3, "coarse_dice": 0.456, "coarse_icl": 0.0123, "loss": 1.234}
    if step > 20:
        losses |= {"final_bce": 0.3, "final_dice": 0.456, "final_icl": 0.0123}
    return SimpleNamespace(
        step=step, total=total, stage=int(step > 20), losses=losses, lr=1e-4, seconds=0.01, images=4,
        images_per_second=12.34, peak_memory=3 * 2**30,
    )
"""

WHOLE_RUN = """
with TrainingProgress("prompts", stages=2) as progress:
    for step in range(1, 41):
        progress(record(step))
        time.sleep(0.01)
"""


def run_on_terminal(code: str, columns: int = 80, **options: object) -> tuple[str, int]:
    """What a program writes to a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **options.pop("env", {})}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs} | options
    process = subprocess.Popen([sys.executable, "-c", RUN + code], env=environment, **streams)
    os.close(theirs)
    output = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux tells that nobody holds the other end any more
            break
        if not part:
            break
        output += part
    os.close(ours)
    return output.decode().replace("\r\n", "\n\r"), process.wait(timeout=20)


def test_bar_on_80_columns() -> None:
    output, code = run_on_terminal(WHOLE_RUN)
    screen = Screen(80).feed(output)
    assert code == 0 and screen.cursor_visible
    first, second = [line.rstrip() for line in screen.lines if line.strip()]
    assert re.fullmatch(r"prompts s2/2 ━+ 40/40 took 0:0\d lr 1.0e-04 12.3 img/s 3 GiB", first)
    assert second == "loss 1.23 coarse bce 0.30 dice 0.46 icl 0.01 final bce 0.30 dice 0.46 icl 0.01"
    assert screen.widest == 79
    # On the way there: no ETA at first, then one that leaves out what the second stage costs more.
    assert re.search(r"1/40 ETA -:-- ", output) and re.search(r"\d/40 ETA >0:0\d ", output)
    assert "loss 1.234  coarse bce 0.300 dice 0.456 icl 0.012" in output


def test_a_wide_terminal_shows_everything_and_a_narrow_one_what_matters() -> None:
    def last_lines(columns: int) -> list[str]:
        screen = Screen(columns).feed(run_on_terminal(WHOLE_RUN, columns)[0])
        return [line.rstrip() for line in screen.lines if line.strip()]

    wide = last_lines(160)
    assert wide[0].startswith("prompts  stage 2/2  ━") and wide[0].endswith("12.3 images/s  peak 3 GiB")
    assert wide[1].endswith("final bce 0.300 dice 0.456 icl 0.012")
    narrow = last_lines(36)
    assert re.fullmatch(r"━+ 40/40 took 0:0\d", narrow[0])
    assert narrow[1] == "loss 1.23 coarse bce 0.30 dice 0.46"


def test_other_output_is_kept_above_the_bar() -> None:
    output, _ = run_on_terminal("""
with TrainingProgress("prompts") as progress:
    for step in range(1, 41):
        progress(record(step))
        if step == 10:
            warnings.warn("a warning")
            print("to stdout")
            print("to stderr", file=sys.stderr)
            logging.getLogger().addHandler(logging.StreamHandler())
            logging.error("a log message")
        time.sleep(0.01)
print("afterwards")
""")
    lines = [line.rstrip() for line in Screen(80).feed(output).lines if line.strip()]
    assert "UserWarning: a warning" in lines[0]
    at = lines.index("to stdout")
    assert lines[at : at + 3] == ["to stdout", "to stderr", "a log message"]
    assert "40/40" in lines[at + 3] and lines[at + 4].startswith("loss") and lines[at + 5 :] == ["afterwards"]


def test_interruption_leaves_a_finished_bar_and_a_usable_terminal() -> None:
    output, code = run_on_terminal("""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with TrainingProgress("prompts") as progress:
    for step in range(1, 41):
        progress(record(step))
        if step == 17:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
""")
    screen = Screen(80).feed(output)
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    assert code != 0 and screen.cursor_visible
    assert "17/40" in lines[0] and lines[1].startswith("loss")  # steps that came too fast to be drawn, too
    assert lines[2].startswith("Traceback") and lines[-1] == "KeyboardInterrupt"


def test_cursor_is_never_hidden() -> None:
    # Nothing could bring it back after SIGKILL.
    output, code = run_on_terminal("""
import os, signal
progress = TrainingProgress("prompts")
progress(record(1))
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert code == -9 and "1/40" in output
    assert Screen(80).feed(output).cursor_visible


def test_stdout_stays_free_for_results() -> None:
    read, write = os.pipe()
    output, code = run_on_terminal(WHOLE_RUN + 'print("result")', stdout=write)
    os.close(write)
    with os.fdopen(read) as results:
        assert results.read() == "result\n"
    assert code == 0 and "40/40" in output


def test_terminal_without_cursor_control_gets_lines() -> None:
    output, _ = run_on_terminal(WHOLE_RUN, env={"TERM": "dumb"})
    assert "\x1b" not in output and output.count("40/40") == 1 and "━" not in output


def test_what_training_waits_for_is_told_in_the_second_line() -> None:
    output, _ = run_on_terminal("""
with TrainingProgress("prompts") as progress:
    progress(record(1))
    for done in range(1, 4):
        time.sleep(0.11)
        progress.meanwhile("validation", done, 3)
    time.sleep(0.11)
    sys.stderr.flush()
    progress(record(2))
""")
    assert "validation 1/3" in output and "validation 3/3" in output
    lines = [line.rstrip() for line in Screen(80).feed(output).lines if line.strip()]
    assert "2/40" in lines[0] and lines[1].startswith("loss")


# ----------------------------------------------------------------------------------------- without a terminal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("promptris.training.progress.perf_counter", clock)
    return clock


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    def read() -> list[str]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()

    return read


def record(step: int, total: int = 100, stage: int = 0, seconds: float = 2.0, **losses: float) -> StepRecord:
    return StepRecord(step, total, stage, losses or {"loss": 1.0}, 5e-5, seconds, 16, 2**29)


def test_lines_come_every_ten_seconds_and_at_the_end(clock: Clock, lines: Callable[[], list[str]]) -> None:
    progress = TrainingProgress("prompts", stages=2)
    for step in range(1, 12):
        progress(record(step, total=11, loss=float(step), coarse_bce=0.5))
        clock.now += 2
    progress.close()
    # Shown at 110 s and 120 s: after steps 6 and 11. 5 of 10 intervals of 2 s are left then.
    assert lines() == [
        "prompts  stage 1/2  6/11  ETA >0:10  loss 3.500  coarse_bce 0.500  lr 5.0e-05  8 images/s  peak 512 MiB",
        "prompts  stage 1/2  11/11  took 0:22  loss 6.000  coarse_bce 0.500  lr 5.0e-05  8 images/s  peak 512 MiB",
    ]


def test_time_left_counts_from_the_resumed_step(clock: Clock, lines: Callable[[], list[str]]) -> None:
    progress = TrainingProgress("prompts", every=0)
    clock.now += 500  # what a resumed run does first is not training
    for step in (61, 62, 63, 64):
        progress(record(step))
        clock.now += 3
    shown = lines()
    assert [re.search(r"ETA (\S+)", line)[1] for line in shown] == [
        "-:--",
        "-:--",
        "-:--",
        "1:48",
    ]  # 36 * 3 s


def test_a_new_stage_has_a_time_and_losses_of_its_own(clock: Clock, lines: Callable[[], list[str]]) -> None:
    progress = TrainingProgress("prompts", stages=2, every=0)
    for step in range(1, 11):
        progress(record(step, loss=1.0))
        clock.now += 1
    for step in range(11, 15):
        progress(record(step, stage=1, loss=5.0, final_bce=2.0))
        clock.now += 10
    shown = lines()
    assert "10/100  ETA >1:30  loss 1.000  lr" in shown[9]
    assert "11/100  ETA -:--  loss 5.000  final_bce 2.000" in shown[10]
    assert "14/100  ETA 14:20  " in shown[13]  # 86 steps of 10 s


def test_speed_does_not_count_a_single_slow_step(clock: Clock, lines: Callable[[], list[str]]) -> None:
    progress = TrainingProgress("prompts", every=0)
    for step, seconds in enumerate((2.0, 2.0, 600.0), start=1):
        progress(record(step, seconds=seconds))
    assert "  8 images/s  " in lines()[-1]


def test_a_loss_that_is_no_number_is_seen_and_forgotten(clock: Clock, lines: Callable[[], list[str]]) -> None:
    progress = TrainingProgress("prompts", every=0)
    for step, loss in enumerate((1.0, math.nan, 3.0), start=1):
        progress(record(step, loss=loss))
    assert [re.search(r"loss (\S+)", line)[1] for line in lines()] == ["1.000", "nan", "2.000"]


def test_what_was_not_shown_yet_is_shown_when_stopped(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with pytest.raises(KeyboardInterrupt), TrainingProgress("prompts") as progress:
        progress(record(1))
        progress.meanwhile("validation", 1, 2)
        progress(record(2))
        raise KeyboardInterrupt
    assert len(shown := lines()) == 1 and shown[0].startswith("prompts  2/100  ETA -:--")
    progress.close()
    assert lines() == []


def test_nothing_is_shown_before_the_first_step(lines: Callable[[], list[str]]) -> None:
    with TrainingProgress("prompts", every=0) as progress:
        progress.meanwhile("validation", 1, 2)
    assert lines() == []


def test_training_goes_on_when_stderr_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise BrokenPipeError

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    with TrainingProgress("prompts", every=0) as progress:
        for step in range(1, 4):
            progress(record(step))
    assert gone.writes == 1


# -------------------------------------------------------------------------------------------------- small things


def test_figures_give_way_in_the_order_of_their_rank() -> None:
    head = [_Figure("name", "name", 2)]
    tail = [_Figure("5/10", "5/10", 0), _Figure("ETA 0:42", "0:42", 1)]
    figures = _Figures(5, 10, head, tail, {})
    # "name  " + bar + "  5/10  ETA 0:42" are 22 columns beside the bar, which has 10 to 40.
    assert fit_bar(figures, 80) == ("name  ", 40, "  5/10  ETA 0:42")
    assert fit_bar(figures, 32) == ("name  ", 10, "  5/10  ETA 0:42")
    assert fit_bar(figures, 31) == ("name ", 16, " 5/10 0:42")
    assert fit_bar(figures, 24) == ("", 14, " 5/10 0:42")
    assert fit_bar(figures, 19) == ("", 14, " 5/10")
    assert fit_bar(figures, 14) == ("", 0, "5/10")
    assert fit_bar(figures, 3) == ("", 0, "5/1")


def test_losses_lose_digits_before_they_are_dropped() -> None:
    losses = {"loss": 1.2345, "coarse_bce": 0.25, "coarse_dice": 0.125, "accuracy": 1.0}
    assert fit_losses(losses, 80) == "loss 1.234  coarse bce 0.250 dice 0.125  accuracy 1.000"
    assert fit_losses(losses, 54) == "loss 1.23 coarse bce 0.25 dice 0.12 accuracy 1.00"
    assert fit_losses(losses, 48) == "loss 1.23 coarse bce 0.25 dice 0.12"
    assert fit_losses(losses, 34) == "loss 1.23 coarse bce 0.25"
    assert fit_losses(losses, 5) == ""
    assert len(fit_losses({"loss": 1.234, **TERMS}, 79)) == 78  # the usual ones fit the usual terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (42.4, "0:42"),
        (59.6, "1:00"),
        (723, "12:03"),
        (3723, "1:02:03"),
        (183600, "2d 03h"),
        (-1, "0:00"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (812 * 2**20, "812 MiB"),
        (1000 * 2**20, "0.977 GiB"),
        (12.34 * 2**30, "12.3 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_binary_size(count: float, text: str) -> None:
    assert binary_size(count) == text


def test_three_digits() -> None:
    assert [three_digits(x) for x in (0.01234, 1.234, 999.4, 999.6, 123456)] == [
        "0.0123",
        "1.23",
        "999",
        "1000",
        "123456",
    ]
