"""Signals: the running step is finished, saved, and told by the exit code; on one process and on two."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny_run
import torch
from tiny_run import Steps, Tiny, fit

from promptris.errors import InputError
from promptris.training.checkpoints import StepCheckpoint, read_checkpoint
from promptris.training.guard import BadLossGuard
from promptris.training.stopping import SIGNALS, Interrupted, StopOnSignal, ignore_interrupts


@dataclass
class Program:
    """A training in a process group of its own.

    Attributes:
        folder: where it works.
        process: the process.
        rank: among those of its run.
    """

    folder: Path
    process: subprocess.Popen[str]
    rank: int = 0

    @classmethod
    def start(cls, folder: Path, *options: str, rank: int = 0, **environment: str) -> Program:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, tiny_run.__file__, str(folder), "--rank", str(rank), *options]
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )
        return cls(folder, process, rank)

    def steps(self) -> list[int]:
        """Numbers of the steps that are done."""
        file = self.folder / f"steps-{self.rank}.txt"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def wait_for_steps(self, number: int) -> None:
        while len(self.steps()) < number:
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.02)


@dataclass
class Ended:
    """What an interrupted program leaves."""

    exit_code: int
    stderr: str
    steps: list[int]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Ended]]]:
    """Programs that were interrupted after some steps: all at once, because most of their time is their start."""
    folder = tmp_path_factory.mktemp("programs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    team = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    team |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    programs = {
        "SIGTERM": Program.start(folder / "term", "--workers", "1"),
        "SIGINT": Program.start(folder / "int", "--workers", "1"),
    }
    for rank in (0, 1):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        programs[f"rank {rank}"] = Program.start(
            folder / "team", "--processes", "2", rank=rank, **team, **own
        )
    try:
        for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
            programs[name].wait_for_steps(5)
            # The whole group, workers too, as a terminal and SLURM do.
            os.killpg(programs[name].process.pid, number)
        programs["rank 1"].wait_for_steps(5)
        programs["rank 1"].process.send_signal(signal.SIGTERM)
        results = {}
        for name, program in programs.items():
            stderr = program.process.communicate(timeout=60)[1]
            results[name] = Ended(program.process.returncode, stderr, program.steps())
        yield folder, results
    finally:
        for program in programs.values():
            if program.process.poll() is None:
                program.process.kill()
                program.process.communicate()


@pytest.mark.parametrize(("name", "folder", "code"), [("SIGTERM", "term", 143), ("SIGINT", "int", 130)])
def test_a_signal_saves_the_very_last_step_and_gives_its_exit_code(
    ended: tuple[Path, dict[str, Ended]], name: str, folder: str, code: int
):
    where, results = ended
    program = results[name]
    assert program.exit_code == code
    assert 5 <= program.steps[-1] < 1000
    assert read_checkpoint(where / folder / "last.ckpt")["global_step"] == program.steps[-1]
    assert f"stopped by {name} after step {program.steps[-1]}" in program.stderr
    # Nothing else: no worker says how it died.
    assert len(program.stderr.strip().splitlines()) == 2, program.stderr


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(ended: tuple[Path, dict[str, Ended]]):
    where, results = ended
    total = results["SIGTERM"].steps[-1] + 3
    checkpoint = StepCheckpoint(where / "term" / "last.ckpt", 3600.0)
    resumed = fit(total, [BadLossGuard(1), checkpoint], checkpoint=checkpoint)
    assert torch.equal(resumed.layer.weight, fit(total, []).layer.weight)


def test_a_signal_to_one_process_stops_all_after_the_same_step(ended: tuple[Path, dict[str, Ended]]):
    where, results = ended
    first, second = results["rank 0"], results["rank 1"]
    assert first.exit_code == second.exit_code == 143, first.stderr + second.stderr
    assert first.steps == second.steps
    assert read_checkpoint(where / "team" / "last.ckpt")["global_step"] == first.steps[-1]
    assert sorted(file.name for file in (where / "team").iterdir()) == [
        "last.ckpt",
        "steps-0.txt",
        "steps-1.txt",
    ]


def test_a_bad_loss_of_one_process_is_left_out_by_all(ended: tuple[Path, dict[str, Ended]]):
    """Data of the second process had one; the first one tells of it, once."""
    where, results = ended
    saved = read_checkpoint(where / "team" / "last.ckpt")
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())
    assert saved["callbacks"]["BadLossGuard"]["skipped"] == 1
    assert "the loss of step 3 is nan (images 10020, 10021)" in results["rank 0"].stderr
    assert "the loss of step" not in results["rank 1"].stderr


# ----------------------------------------------------------------------------------------- one process, seen inside


def stopped(
    folder: Path, callbacks: list[L.Callback], **options: Any
) -> tuple[Interrupted | None, Tiny | None]:
    """Train for six steps with a checkpoint at the end only; how that ended."""
    checkpoint = StepCheckpoint(folder / "last.ckpt", 3600.0)
    stop = StopOnSignal(checkpoint)
    module = None
    try:
        with stop.as_interruption():
            module = fit(6, [*callbacks, checkpoint, stop], **options)
    except Interrupted as interruption:
        return interruption, None
    return None, module


class Raise(L.Callback):
    """Sends a signal to this process at one of Lightning's hooks."""

    def __init__(self, number: int, batch: int | None = None) -> None:
        self.number, self.batch = number, batch

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.batch is None:
            signal.raise_signal(self.number)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_is_finished_first_however_many_passes_it_has(tmp_path: Path, number: int):
    interruption, _ = stopped(tmp_path, [Raise(number, batch=7)], accumulate=3)  # in the third step
    assert interruption is not None and interruption.signal == number
    assert interruption.exit_code == 128 + number
    checkpoint = StepCheckpoint(tmp_path / "last.ckpt", 3600.0)
    assert checkpoint.saved_step() == 3
    resumed = fit(5, [checkpoint], checkpoint=checkpoint, accumulate=3)
    assert torch.equal(resumed.layer.weight, fit(5, [], accumulate=3).layer.weight)


def test_sigterm_while_lightning_gets_ready_is_not_lost(tmp_path: Path):
    interruption, _ = stopped(tmp_path, [Raise(signal.SIGTERM)])
    assert interruption is not None and interruption.signal == signal.SIGTERM
    assert StepCheckpoint(tmp_path / "last.ckpt").saved_step() == 1


def test_a_signal_in_the_last_step_is_told_too(tmp_path: Path):
    interruption, _ = stopped(tmp_path, [Raise(signal.SIGTERM, batch=5)])
    assert interruption is not None and "after step 6" in str(interruption)
    assert StepCheckpoint(tmp_path / "last.ckpt").saved_step() == 6


def test_without_a_signal_nothing_happens(tmp_path: Path):
    interruption, module = stopped(tmp_path, [])
    assert interruption is None and module is not None


def test_an_interruption_is_a_keyboard_interrupt():
    assert isinstance(Interrupted(signal.SIGTERM), KeyboardInterrupt)
    assert (Interrupted(signal.SIGINT).exit_code, Interrupted(signal.SIGTERM).exit_code) == (130, 143)


def test_a_stop_that_cannot_be_saved_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match="step 2 cannot be saved"):
        stopped(tmp_path, [Raise(signal.SIGINT, batch=1)])


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_only_there_while_steps_are_run(tmp_path: Path, fails: bool):
    before = [signal.getsignal(number) for number in SIGNALS]
    during: list[Any] = []

    def look(step: int, trainer: L.Trainer) -> None:
        during[:] = [signal.getsignal(number) for number in SIGNALS]
        if fails:
            raise RuntimeError("something else")

    if fails:
        with pytest.raises(RuntimeError, match="something else"):
            stopped(tmp_path, [Steps(look)])
    else:
        stopped(tmp_path, [Steps(look)])
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_than_the_main_one_can_train(tmp_path: Path):
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(stopped(tmp_path, [])))
    thread.start()
    thread.join()
    assert results and results[0][1] is not None


def hang_in_a_step(folder: Path) -> None:
    """Train; the fourth step takes a minute."""

    def long(step: int, trainer: L.Trainer) -> None:
        if step == 3:
            (folder / "hanging").touch()
            time.sleep(60)

    checkpoint = StepCheckpoint(folder / "last.ckpt", 0.0)
    stop = StopOnSignal(checkpoint)
    try:
        with stop.as_interruption():
            fit(6, [checkpoint, Steps(long), stop])
    except Interrupted as interruption:
        sys.exit(interruption.exit_code)


def test_a_second_ctrl_c_stops_at_once_but_the_same_one_twice_does_not(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=hang_in_a_step, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + 30
    while not (tmp_path / "hanging").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)  # as a launcher that passes it on
    process.join(1.0)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(10.0)
    assert process.exitcode == 130
    assert StepCheckpoint(tmp_path / "last.ckpt").saved_step() == 3


# --------------------------------------------------------------------------------------------------------- workers


def work_for_ever(ready: Any) -> None:
    ignore_interrupts(0)
    ready.set()
    while True:
        time.sleep(1)


def test_workers_ignore_what_is_meant_for_the_group_but_can_be_ended():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=work_for_ever, args=(ready,))
    process.start()
    assert ready.wait(30) and process.pid is not None
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    process.join(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM
