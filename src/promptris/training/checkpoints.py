"""Checkpoints that survive: written whole or not at all, the last ones and the best kept, damage noticed."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from promptris.errors import InputError

FACTS = "promptris"
"""Where in a checkpoint stands what it was trained with."""


class StepCheckpoint(L.Callback):
    """Saves the whole training state every few minutes and at the end; keeps the last ones and the best.

    The newest state is always `path`; the ones before it stay beside it as `step-00001234.ckpt`, and the one with
    the highest score as `best.ckpt`. Each appears in one move, after its bytes are on the disk: whatever stops
    the run, the files that are there are whole. A save that fails during training leaves the earlier ones alone
    and is tried again at the next turn.

    Args:
        path: the file.
        every_seconds: time between saves.
        keep_last: how many of the last states are kept.
        facts: what the run consists of, as plain JSON values, stored with every state. Under "towers", each
            frozen tower's name stands for a mapping with its "source" and "sha256".

    Attributes:
        best_score: highest score so far; None before the first one.
        best_step: the step that had it.
    """

    def __init__(
        self,
        path: Path,
        every_seconds: float = 120.0,
        keep_last: int = 1,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if keep_last < 1:
            raise InputError(f"{keep_last} checkpoints to keep are too few: keep at least 1")
        self.path, self.every_seconds, self.keep_last = path, every_seconds, keep_last
        self.facts: dict[str, Any] = json.loads(json.dumps(facts or {}))
        self.best_score: float | None = None
        self.best_step = 0
        self._writer = _Writer()
        self._last = time.monotonic()
        self._seen_step = -1
        self._newest_step: int | None = None
        """Step of the state in `path`; None when there is none, or none that can be read."""
        self._found: Path | None = None
        self._warned = False

    @property
    def best_path(self) -> Path:
        """Where the state with the highest score is."""
        return self.path.with_name("best.ckpt")

    def saved_step(self) -> int:
        """Optimiser steps done by the newest state that can be read; 0 when there is none at all.

        Raises:
            InputError: when none of several can be read, or it was trained with other towers.
        """
        state = self._newest()
        return 0 if state is None else int(state["global_step"])

    def resume_path(self) -> Path | None:
        """The newest checkpoint that can be read; None when there is none at all.

        Raises:
            InputError: see `saved_step`.
        """
        if self._found is None or not self._found.exists():
            self._newest()
        return self._found

    def load_weights(self, module: L.LightningModule) -> None:
        """Put the newest weights that can be read into a module; nothing may be missing or left over.

        Raises:
            InputError: when there are none, and see `saved_step`.
        """
        state = self._newest()
        if state is None:
            raise InputError(f"there is no checkpoint {self.path}")
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])

    def save(self, trainer: L.Trainer) -> None:
        """Save now, unless the state after this step is saved already; all processes have to ask.

        Raises:
            InputError: when it cannot be written; what was saved before is still there.
        """
        saved = self._newest_step == trainer.global_step and self.path.exists()
        if highest(trainer, int(saved and trainer.is_global_zero)):
            return
        problem = self._write(trainer)
        if problem:
            raise InputError(f"{problem}: free some space and resume the run")

    def save_best(self, trainer: L.Trainer, score: float) -> bool:
        """Save now, as `best.ckpt` too, if a score is the highest so far; all processes have to ask.

        Args:
            trainer: of the run.
            score: higher is better; the same in every process.

        Returns:
            whether it was the highest and is saved.
        """
        score = float(score)
        higher = math.isfinite(score) and (self.best_score is None or score > self.best_score)
        if not highest(trainer, int(higher and trainer.is_global_zero)):
            return False
        before = self.best_score, self.best_step
        self.best_score, self.best_step = score, trainer.global_step
        problem = self._write(trainer, best=True)
        if problem:
            self.best_score, self.best_step = before
            self._warn(problem)
        return not problem

    # ------------------------------------------------------------------------------------------------ Lightning's

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if stage != "fit":
            return
        problem = ""
        if trainer.is_global_zero:
            there = sum(file.exists() for file in self._candidates())
            trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
            try:
                check_space(self.path.parent, trainable, max(1, self.keep_last + 1 - there))
            except InputError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise InputError(problem)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._last = time.monotonic()
        self._seen_step = trainer.global_step
        lost = self.best_score is not None and not self.best_path.exists()
        if highest(trainer, int(lost and trainer.is_global_zero)):
            rank_zero_warn(
                f"{self.best_path} is gone, which had the best score so far ({self.best_score:.4f} at step "
                f"{self.best_step}): the next score counts as the first",
                category=UserWarning,
            )
            self.best_score, self.best_step = None, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:
            return  # gradients are still being accumulated, and a checkpoint would lose them
        self._seen_step = trainer.global_step
        saved = self._newest_step == trainer.global_step
        # Clocks differ, so the first process decides when it is time.
        due = trainer.is_global_zero and not saved and time.monotonic() - self._last >= self.every_seconds
        if highest(trainer, int(due)):
            problem = self._write(trainer)
            if problem:
                self._warn(problem)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        # After an early stop Lightning counts a whole epoch as done: the state of the stop itself is the one to
        # keep, and `save` does not write over it.
        self.save(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[FACTS] = self.facts

    # -------------------------------------------------------------------------------------------------- the files

    def _older(self) -> dict[Path, int]:
        """Files of the states before the newest, with their steps, latest first."""
        steps = {
            file: int(file.stem.removeprefix("step-"))
            for file in self.path.parent.glob("step-*.ckpt")
            if file.stem.removeprefix("step-").isdecimal()
        }
        return dict(sorted(steps.items(), key=lambda item: -item[1]))

    def _candidates(self) -> list[Path]:
        """Files to resume from, in the order in which they are tried."""
        return [self.path, *self._older(), self.best_path]

    def _newest(self) -> dict[str, Any] | None:
        """The newest state that can be read; a sentence tells of those before it that cannot."""
        problems: list[str] = []
        files = [file for file in self._candidates() if file.exists()]
        if files and files[0] != self.path:
            problems.append(f"{self.path} is missing")
        for file in files:
            try:
                state = read_checkpoint(file)
            except InputError as error:
                problems.append(str(error))
                continue
            check_facts(state.get(FACTS, {}), self.facts, file)
            if problems and self._found != file:
                rank_zero_warn(
                    f"{', '.join(problems)}: going on from step {state['global_step']} in {file.name}",
                    category=UserWarning,
                )
            self._found = file
            self._newest_step = int(state["global_step"]) if file == self.path else None
            return state
        if files:
            raise InputError(
                f"no checkpoint is left to go on from ({', '.join(problems)}): put a copy back, or move these files "
                "away to begin again at the first step"
            )
        self._found = self._newest_step = None
        return None

    def _write(self, trainer: L.Trainer, best: bool = False) -> str:
        """Save, all processes together; returns why that failed, or nothing."""
        partial = _partial(self.path)
        trainer.strategy.checkpoint_io = self._writer
        self._writer.error = None
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero and self._writer.error is None:
            try:
                self._put_in_place(partial, trainer.global_step, best)
            except OSError as error:
                partial.unlink(missing_ok=True)
                self._writer.error = error
        self._last = time.monotonic()
        failed = self._writer.error
        if highest(trainer, int(failed is not None)):
            why = "see the first process" if failed is None else failed.strerror or str(failed)
            return f"step {trainer.global_step} cannot be saved in {self.path} ({why})"
        self._newest_step, self._found, self._warned = trainer.global_step, self.path, False
        return ""

    def _put_in_place(self, partial: Path, step: int, best: bool) -> None:
        # The best goes first: if the run dies in between, the state before this one is evaluated once more.
        if best:
            _link(partial, self.best_path)
        before = self._newest_step
        if self.keep_last > 1 and before is not None and before < step and self.path.exists():
            _link(self.path, self.path.with_name(f"step-{before:08d}.ckpt"))
        _sync_folder(self.path.parent)
        partial.replace(self.path)
        _sync_folder(self.path.parent)
        # States of later steps are left over from before the run went back to an older one.
        kept = [file for file, number in self._older().items() if number < step][: self.keep_last - 1]
        for file in self._older():
            if file not in kept:
                file.unlink()

    def _warn(self, problem: str) -> None:
        if not self._warned:
            earlier = "nothing is saved so far"
            if self._newest_step is not None:
                earlier = f"step {self._newest_step} stays the last one that is saved"
            rank_zero_warn(f"{problem}: {earlier}, and it is tried again later", category=UserWarning)
        self._warned = True


class _Writer(TorchCheckpointIO):
    """Lightning's way to the disk. A write that fails is remembered, not raised: other processes wait for it."""

    error: OSError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        try:
            _write_whole(checkpoint, Path(path))
        except OSError as error:
            self.error = error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        InputError: when it cannot be read, is damaged, cut off, or no checkpoint.
    """
    try:
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        state = torch.load(path, map_location="cpu", weights_only=True) if whole else {}
        if {"global_step", "state_dict"} <= state.keys():
            return state
    except MemoryError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damage shows as any kind of error, wherever it strikes
        raise InputError(f"{path} is damaged or cut off") from error
    raise InputError(f"{path} is damaged or no checkpoint")


def check_facts(saved: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> None:
    """Compare the frozen towers that a checkpoint was trained with to those of this run.

    Args:
        saved: facts in the checkpoint (see `StepCheckpoint`).
        facts: facts of the run; a tower that only one of them knows is not compared.
        path: of the checkpoint.

    Raises:
        InputError: when a tower's weights differ.
    """
    before, now = saved.get("towers", {}), facts.get("towers", {})
    for name in sorted(before.keys() & now.keys()):
        if before[name]["sha256"] != now[name]["sha256"]:
            was, has = (
                f"{tower['source']}, content hash {tower['sha256'][:12]}"
                for tower in (before[name], now[name])
            )
            raise InputError(
                f"{path} was trained with another {name.upper()} ({was}) than this run has ({has}): give the same one"
            )


def check_space(folder: Path, parameters: int, checkpoints: int = 2) -> None:
    """Find out before the first step whether checkpoints can be written.

    Args:
        folder: where they go; made if it is not there.
        parameters: number of trainable parameters; each is a float32 with two moments of AdamW.
        checkpoints: how many have to fit.

    Raises:
        InputError: when the folder cannot be written to, or has too little room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-") as file:
            file.write(b"x")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    need = checkpoints * parameters * 4 * 3
    if free < need:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB free, too little for the {need / 1e6:,.0f} MB of this run's "
            "checkpoints: free some space or choose another folder"
        )


def highest(trainer: L.Trainer, value: int) -> int:
    """The highest of a small number over all processes, which all have to ask together."""
    if trainer.world_size == 1:
        return value
    number = torch.tensor(value, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number.item())


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write_whole(state: dict[str, Any], path: Path) -> None:
    """Write a file and wait until it is on the disk; nothing is left of one that fails."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        # torch's writer stumbles over the gap that a failed write leaves, and hides it behind an error of its own.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror) from error
        raise


def _link(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`, in one move; a copy where the file system has no second names."""
    partial = _partial(target)
    partial.unlink(missing_ok=True)
    try:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(target)
    finally:
        # Still there after an error, and when both were names of one file already.
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Wait until new names in a folder are on the disk."""
    if os.name == "nt":
        return  # Windows opens no folders
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
