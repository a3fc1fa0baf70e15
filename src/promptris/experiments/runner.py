"""Runs tasks in processes of their own, several at a time."""

from __future__ import annotations

import os
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

GRACE_SECONDS = 60.0
"""How long an interrupted run may take to save its last step."""


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
        parallel: how many at a time. On a machine with GPUs each task sees one of them, in turn; otherwise the
            CPU's cores are divided.
        notify: told how the tasks are getting on, in sentences.
    """

    def __init__(self, parallel: int = 1, notify: Callable[[str], None] = print) -> None:
        self.parallel, self.notify = max(1, parallel), notify
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
            futures = [pool.submit(self._one, task, number) for number, task in enumerate(open_tasks)]
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

    def _one(self, task: Task, number: int) -> Outcome:
        started = time.perf_counter()
        task.folder.mkdir(parents=True, exist_ok=True)
        task_file = task.folder / "task.json"
        task.save(task_file)
        with self._lock:
            if self._stopped:
                return Outcome(task, -1, 0.0)
            with (task.folder / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "promptris.experiments.work", str(task_file)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(number),
                    # Ctrl-C is for this process, which then asks the others to save and stop, once.
                    start_new_session=True,
                )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return Outcome(task, code, time.perf_counter() - started)

    def _environment(self, number: int) -> dict[str, str]:
        environment = dict(os.environ)
        gpus = torch.cuda.device_count()
        if gpus and self.parallel > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        elif not gpus:
            threads = max(1, (os.cpu_count() or 1) // self.parallel)
            environment["OMP_NUM_THREADS"] = str(threads)
        return environment

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
