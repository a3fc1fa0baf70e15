"""Ctrl-C and SIGTERM: the running step is finished and saved before a run ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lightning as L

from promptris.training.checkpoints import StepCheckpoint, highest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = 1.0
"""Ctrl-C reaches a process from its terminal, and once more from a launcher that passes it on."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a run.

    Args:
        number: of the signal.
        message: what became of the run.

    Attributes:
        signal: the signal.
    """

    def __init__(self, number: int, message: str = "") -> None:
        self.signal = signal.Signals(number)
        super().__init__(message or f"stopped by {self.signal.name}")

    @property
    def exit_code(self) -> int:
        """What a shell shows for a program that this signal has ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal


class StopOnSignal(L.Callback):
    """After SIGINT or SIGTERM finishes the running step, saves it, and ends the run; a second SIGINT ends it at once.

    Wrap the training in `as_interruption`, which raises `Interrupted` once it is over. A signal to one of several
    processes stops all of them after the same step. Handlers are only installed in the main thread, while steps
    are being run, in place of Lightning's.

    Args:
        checkpoint: saves the step.
    """

    def __init__(self, checkpoint: StepCheckpoint) -> None:
        self.checkpoint = checkpoint
        self._received = self._agreed = 0
        self._received_at = 0.0
        self._saved = False
        self._step = self._rank = 0
        self._handlers: dict[int, Any] = {}

    @contextmanager
    def as_interruption(self) -> Iterator[None]:
        """Raises Interrupted at the end of the block when a signal has ended the training in it."""
        self._received, self._agreed, self._saved = 0, 0, False
        try:
            yield
        except SystemExit as end:
            # How Lightning answers a KeyboardInterrupt, and a SIGTERM that came before the first step.
            if not self._saved:
                raise Interrupted(self._received or signal.SIGINT) from end
        if self._agreed:
            raise Interrupted(
                self._agreed,
                f"stopped by {signal.Signals(self._agreed).name} after step {self._step}, which is saved in "
                f"{self.checkpoint.path}: resume the run to go on",
            )

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._step, self._rank = trainer.global_step, trainer.global_rank
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        if trainer.received_sigterm:  # while Lightning was getting ready
            self._received = signal.SIGTERM

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        self._agreed = highest(trainer, self._received)
        if self._agreed:
            trainer.should_stop = True
            self.checkpoint.save(trainer)
            self._saved = True

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._restore()
        self._agreed = highest(trainer, self._received)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self._restore()

    def _receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
            if self._rank == 0:
                name = signal.Signals(number).name
                with suppress(OSError):  # stderr may be closed
                    # Unlike print, this may come in the middle of another print.
                    os.write(2, f"{name}: saving after this step; Ctrl-C once more stops at once\n".encode())
        elif number == signal.SIGINT and now - self._received_at > SAME_SIGNAL_SECONDS:
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            # Lightning shuts its own ears to further Ctrl-C when it goes down with an error.
            if signal.getsignal(number) == self._receive:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}


def ignore_interrupts(worker_id: int) -> None:
    """Start a data loader's worker so that a signal to the whole group of processes leaves it working.

    The main process needs it for the step that it still finishes, and ends it afterwards; a worker whose main
    process is gone ends by itself.

    Args:
        worker_id: number of the worker, which changes nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _only_once)


def _only_once(number: int, frame: Any) -> None:
    """The second SIGTERM is meant: a worker that does not answer is ended so by its main process."""
    signal.signal(number, signal.SIG_DFL)
