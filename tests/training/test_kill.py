"""A run whose process is killed outright goes on as if nothing had happened. Each test starts the real command."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 20
OPTIONS = (
    *("--data.generate.train", "40", "--data.generate.val", "2", "--train.images_per_step", "4"),
    *("--train.expressions_per_image", "2", "--engine.checkpoint_seconds", "0", "--device", "cpu"),
)


def start(towers: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`promptris train` with ten steps without and ten with SAM, a checkpoint after each."""
    command = [sys.executable, "-m", "promptris", "train", "refshapes-smoke", *OPTIONS, "--out", str(out)]
    sources = ("--towers.clip", str(towers / "clip"), "--towers.sam", str(towers / "sam"))
    return subprocess.Popen(
        [*command, *sources, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]


def table(out: Path) -> list[dict[str, str]]:
    """The steps as they were written, without the columns that the machine decides."""
    path = out / "metrics.csv"
    if not path.exists():
        return []
    machine = ("seconds", "images_per_second", "memory_mb")
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in machine} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, towers: Path) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(start(towers, out))
    return out


def stop_after(
    process: subprocess.Popen[str], out: Path, steps: int, number: int, timeout: float = 120
) -> None:
    """Send a signal once so many steps are in the metrics file."""
    end = time.monotonic() + timeout
    while len(table(out)) < steps:
        assert process.poll() is None and time.monotonic() < end, "the run ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(number)


@pytest.mark.parametrize("steps", [4, 14])
def test_a_killed_run_resumes_to_the_same_steps_and_scores(
    towers: Path, whole: Path, tmp_path: Path, steps: int
) -> None:
    """Killed in the middle of the first stage, and of the second."""
    out = tmp_path / "out"
    process = start(towers, out)
    stop_after(process, out, steps, signal.SIGKILL)
    process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert len(table(out)) < STEPS and not (out / "result.json").exists()
    finish(start(towers, out, "--resume"))
    assert table(out) == table(whole)
    ours, expected = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (out, whole))
    assert ours == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_loses_no_step(
    towers: Path, whole: Path, tmp_path: Path, number: int, code: int
) -> None:
    """With no checkpoint due for an hour, only the one that the signal asks for can be there."""
    out = tmp_path / "out"
    process = start(towers, out, "--engine.checkpoint_seconds", "3600")
    stop_after(process, out, 6, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err[-2000:]
    assert "Traceback" not in err
    done = len(table(out))
    assert 6 <= done < STEPS
    process = start(towers, out, "--resume", "--engine.checkpoint_seconds", "3600")
    finish(process)
    assert table(out) == table(whole)


@pytest.mark.slow
def test_a_recipe_from_nothing_killed_five_times_ends_as_the_one_left_alone(tmp_path: Path) -> None:
    """`refshapes-tiny` from zero; killed twice while the towers are pretrained, then in stages 1, 1 and 2."""

    def begin(out: Path, *options: str) -> subprocess.Popen[str]:
        command = ["promptris", "train", "refshapes-tiny", "--out", str(out), "--device", "cpu", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-m", *command, "--engine.checkpoint_seconds", "5"], **quiet)

    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole).wait(timeout=3600) == 0
    kills = (("towers/clip.partial", 150), ("towers/sam.partial", 250), ("", 100), ("", 250), ("", 400))
    for number, (folder, steps) in enumerate(kills):
        process = begin(out, *(["--resume"] if number else []))
        stop_after(process, out / folder, steps, signal.SIGKILL, timeout=1800)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert begin(out, "--resume").wait(timeout=3600) == 0

    assert table(out) == table(whole) and len(table(whole)) == 480
    ours, expected = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    assert ours["metrics"] == expected["metrics"]
    assert (out / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()
