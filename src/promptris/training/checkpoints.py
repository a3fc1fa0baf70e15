"""Checkpoints by step and time, written atomically."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch


class StepCheckpoint(L.Callback):
    """Saves the whole training state to one file every few minutes and at the end.

    Args:
        path: the file; it is replaced in one move, so an interrupted write leaves the previous one intact.
        every_seconds: time between saves.
    """

    def __init__(self, path: Path, every_seconds: float = 120.0) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self._last = time.monotonic()

    def saved_step(self) -> int:
        """Optimiser steps done by the saved state; 0 when there is none."""
        if not self.path.exists():
            return 0
        return int(torch.load(self.path, map_location="cpu", weights_only=True)["global_step"])

    def load_weights(self, module: L.LightningModule) -> None:
        """Put the saved weights into a module; nothing may be missing or left over."""
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])

    def save(self, trainer: L.Trainer) -> None:
        """Save now."""
        partial = self.path.with_name(self.path.name + ".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.path)
        self._last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last >= self.every_seconds:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.save(trainer)
