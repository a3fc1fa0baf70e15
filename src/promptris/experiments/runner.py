"""Runs tasks in processes of their own, several at a time."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from promptris.experiments.work import Task

GRACE_SECONDS = 600.0
"""How long an interrupted run may take to save its last step: it may be in the middle of an evaluation."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended: its exit code (0 is well) and how long it took."""

    task: Task
    code: int
    seconds: float

    @property
    def log(self) -> Path:
        """What the task printed."""
        return self.task.folder / "log.txt"


class Runner:
    """Runs tasks.

    Args:
        parallel: how many at a time. With GPUs and more than one at a time, each task sees one that is free;
            otherwise the CPU's cores are divided, unless OMP_NUM_THREADS says how many each may use.
        notify: told how the tasks are getting on, in sentences.
    """

    def __init__(self, parallel: int = 1, notify: Callable[[str], None] = print) -> None:
        self.parallel, self.notify = max(1, parallel), notify
        self._places: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for place in _places(self.parallel):
            self._places.put(place)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Do all tasks that have something to do; one that fails does not stop the others.

        When this is interrupted, running tasks are asked to save and stop, and go on from there the next time.
        """
        open_tasks = [task for task in tasks if task.missing]
        if len(open_tasks) < len(tasks):
            self.notify(f"{len(tasks) - len(open_tasks)} of {len(tasks)} runs are there already")
        outcomes: list[Outcome] = []
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(self._one, task) for task in open_tasks]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    outcome = future.result()
                    outcomes.append(outcome)
                    how = "done" if outcome.code == 0 else f"failed, see {outcome.log}"
                    took = f"{outcome.seconds / 60:.1f} min"
                    self.notify(f"run {done} of {len(open_tasks)}: {outcome.task.name} {how} ({took})")
            except BaseException:
                self._stop()
                raise
        return outcomes

    def _one(self, task: Task) -> Outcome:
        place = self._places.get()
        try:
            return self._run_at(task, place)
        finally:
            self._places.put(place)

    def _run_at(self, task: Task, place: dict[str, str]) -> Outcome:
        started = time.perf_counter()
        task.folder.mkdir(parents=True, exist_ok=True)
        task_file = task.folder / "task.json"
        task.save(task_file)
        with self._lock:
            if self._stopped:
                return Outcome(task, -1, 0.0)
            self.notify(f"{task.name} started, its log is {task.folder / 'log.txt'}")
            with (task.folder / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "promptris.experiments.work", str(task_file)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **place},
                    # Ctrl-C is for this process, which then asks the others to save and stop, once.
                    start_new_session=True,
                )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return Outcome(task, code, time.perf_counter() - started)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        if running:
            self.notify(
                f"{len(running)} runs save their last step and stop; the same command goes on with them"
            )
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _places(parallel: int) -> list[dict[str, str]]:
    """What tells each of several processes beside each other which part of the machine is its own."""
    gpus = torch.cuda.device_count()
    if gpus and parallel > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = (
            [name for name in named.split(",") if name] if named else [str(index) for index in range(gpus)]
        )
        return [{"CUDA_VISIBLE_DEVICES": names[k % len(names)]} for k in range(parallel)]
    if gpus or "OMP_NUM_THREADS" in os.environ:
        return [{}] * parallel
    return [{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}] * parallel
