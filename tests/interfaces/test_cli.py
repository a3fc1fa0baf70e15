"""The command as a whole: help, exit codes, errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import promptris as package
from promptris.interfaces import cli
from promptris.interfaces.terminal import print_record, report

Command = Callable[..., Any]
COMMANDS = (
    *("segment", "refshapes", "train", "evaluate", "figure", "gallery", "curves", "ablate"),
    *("data", "info", "doctor", "demo", "bench", "batch", "export", "push", "serve"),
)


def spawn(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "promptris", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_help_names_every_command(promptris: Command) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        run = promptris(*arguments)
        assert (run.code, run.err) == (0, "")
        assert set(re.findall(r"^  (\w+)  ", run.out, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(promptris: Command, command: str) -> None:
    run = promptris(command, "--help")
    assert run.code == 0
    assert run.out.startswith(f"Usage: promptris {command}")


def test_version(promptris: Command) -> None:
    run = promptris("--version")
    assert (run.code, run.out) == (0, f"promptris {package.__version__}\n")


def test_help_and_version_are_instant() -> None:
    code = (
        "import sys\n"
        "from promptris.interfaces.cli import main\n"
        "main(['--help']); main(['segment', '--help']); main(['--version'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'lightning', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    started = time.perf_counter()
    assert spawn("--help").returncode == 0
    assert time.perf_counter() - started < 3  # about 0.1 s on an idle machine


def test_process_refuses_without_traceback() -> None:
    done = spawn("segment", "nowhere.png", "ring")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "promptris: there is no image, folder or glob 'nowhere.png'\n"


@pytest.mark.parametrize("argument", ["--help", "--version"])  # written at once, and left in the buffer
def test_reader_that_goes_away_is_no_error(argument: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "promptris", argument],
            stdout=nobody,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["doctor", "extra"], "extra"),
        (["demo", "--scenes", "four"], "--scenes"),
        (["evaluate", "--split", "val"], "--dataset"),
        (["segment", "x.png", "ring", "--out"], "--out"),
    ],
)
def test_usage_errors_are_one_line(promptris: Command, arguments: list[str], words: str) -> None:
    run = promptris(*arguments)
    run.refused(words)
    assert "--help)" in run.err


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def test_unexpected_errors_are_one_sentence(promptris: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptris.interfaces.info.show_doctor", _raise(ZeroDivisionError("x\nsecond line")))
    promptris("doctor").refused("unexpected ZeroDivisionError: x; run again with --debug")


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_debug_shows_tracebacks(promptris: Command, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr("promptris.interfaces.info.show_doctor", _raise(package.InputError("a sentence")))
    if where == "environment":
        monkeypatch.setenv("PROMPTRIS_DEBUG", "1")
    arguments = {"before": ["--debug", "doctor"], "after": ["doctor", "--debug"], "environment": ["doctor"]}
    run = promptris(*arguments[where])
    assert run.code == 2
    assert run.err.startswith("Traceback") and run.err.endswith("\npromptris: a sentence\n")


def test_debug_after_two_dashes_is_an_expression() -> None:
    assert cli._without_debug(["segment", "x", "--", "--debug"]) == (["segment", "x", "--", "--debug"], False)
    assert cli._without_debug(["segment", "--debug", "x"]) == (["segment", "x"], True)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(32, "pipe"), 1)])
def test_interruptions(
    promptris: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    # typer puts a wrapper in the place of these two when a pipe breaks.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr("promptris.interfaces.info.show_doctor", _raise(error))
    run = promptris("doctor")
    assert run.code == code
    assert "Traceback" not in run.err


def test_warnings_are_one_line(promptris: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> None:
        warnings.warn("take\ncare", stacklevel=1)
        warnings.warn("for developers", FutureWarning, stacklevel=1)

    monkeypatch.setattr("promptris.interfaces.info.show_doctor", warn)
    assert promptris("doctor").err == "promptris: warning: take care\n"


def test_report_names_the_input_once(capsys: pytest.CaptureFixture[str]) -> None:
    report(package.InputError("x.png is damaged"), debug=False, about="x.png")
    report(package.InputError("damaged"), debug=False, about="x.png")
    report(ValueError(), debug=False)
    assert capsys.readouterr().err.splitlines() == [
        "promptris: x.png is damaged",
        "promptris: x.png: damaged",
        "promptris: unexpected ValueError; run again with --debug for the traceback",
    ]


@pytest.mark.parametrize(("encoding", "line"), [("utf-8", '{"a": "狗"}'), ("ascii", '{"a": "\\u72d7"}')])
def test_records_suit_the_encoding_of_stdout(tmp_path: Path, encoding: str, line: str) -> None:
    code = "from promptris.interfaces.terminal import print_record; print_record({'a': '\\u72d7'})"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.decode(encoding) == line + "\n"


def test_records_hold_names_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"image": "broken \udcff.png"})
    assert capsys.readouterr().out == '{"image": "broken \\udcff.png"}\n'
