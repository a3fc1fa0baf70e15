"""Several processes: the same steps as one, and the same scores. Each test starts the real command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = (
    *("--data.generate.train", "24", "--data.generate.val", "5", "--train.gradient_clip", "1.0"),
    *("--device", "cpu", "--engine.log", "[]"),
)


def train(towers: Path, out: Path, *options: str, launcher: tuple[str, ...] = ()) -> None:
    """`promptris train` with two steps and two steps, eight images each over all processes."""
    command = [*(launcher or (sys.executable,)), "-m", "promptris", "train", "refshapes-smoke"]
    towers_of = ("--towers.clip", str(towers / "clip"), "--towers.sam", str(towers / "sam"))
    done = subprocess.run(
        [*command, *towers_of, *SMALL, "--out", str(out), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("on refshapes val, in percent") == 1  # one process speaks


def losses(out: Path) -> list[dict[str, float]]:
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    machine = ("seconds", "images_per_second", "memory_mb")
    return [{k: float(v) for k, v in row.items() if v and k not in machine} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, towers: Path) -> Path:
    """One process that takes eight images per step."""
    out = tmp_path_factory.mktemp("alone") / "out"
    train(towers, out, "--train.images_per_step", "8")
    return out


def same(out: Path, alone: Path) -> None:
    ours, expected = losses(out), losses(alone)
    assert len(ours) == len(expected) == 6
    for step, reference in zip(ours, expected, strict=True):
        assert step == pytest.approx(reference, rel=1e-4, abs=1e-5)


def same_scores(out: Path, alone: Path) -> None:
    scores = [json.loads((folder / "result.json").read_text())["metrics"] for folder in (out, alone)]
    assert scores[0]["count"] == scores[1]["count"]
    assert scores[0]["mIoU"] == pytest.approx(scores[1]["mIoU"], abs=1e-3)
    files = [
        [json.loads(line) for line in (folder / "evaluation/predictions.jsonl").read_text().splitlines()]
        for folder in (out, alone)
    ]
    assert [(r["ref_id"], r["sent_id"]) for r in files[0]] == [(r["ref_id"], r["sent_id"]) for r in files[1]]


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(
    towers: Path, alone: Path, tmp_path: Path
) -> None:
    train(towers, tmp_path / "out", "--train.images_per_step", "4", "--engine.devices", "2")
    same(tmp_path / "out", alone)
    same_scores(tmp_path / "out", alone)


def test_accumulated_gradients_are_those_of_the_larger_batch(
    towers: Path, alone: Path, tmp_path: Path
) -> None:
    train(towers, tmp_path / "out", "--train.images_per_step", "4", "--train.accumulate", "2")
    same(tmp_path / "out", alone)


def test_torchrun_launches_the_same_run(towers: Path, alone: Path, tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    train(
        towers,
        tmp_path / "out",
        *("--train.images_per_step", "4", "--engine.devices", "2"),
        launcher=launcher,
    )
    same(tmp_path / "out", alone)
