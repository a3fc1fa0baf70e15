"""Pretraining of the small towers on RefShapes: what both have in common."""

from __future__ import annotations

import json
import shutil
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptris.data.refshapes import Scene, WorldOptions, sample_scene
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.config import PretrainingConfig
from promptris.training.optimizer import decay_matrices
from promptris.training.trainer import METRICS_FILE, fit_steps

PRETRAINING_SEED = 1_000_003
"""World seed of pretraining scenes, far from the seeds people give to data sets."""
HELD_OUT_SEED = 2_000_003
"""World seed of the scenes on which the gates are measured."""


class TowerPretraining(L.LightningModule, ABC):
    """AdamW with warm-up and cosine; subclasses give the loss.

    Args:
        config: optimisation.
    """

    loss_terms: tuple[str, ...] = ()

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named terms, `loss` among them."""

    @abstractmethod
    def gate(self) -> dict[str, float]:
        """Held-out measurements that say whether the tower is good enough to be frozen."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tower as a transformers folder."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One optimiser step's loss."""
        return self.losses(batch)

    def configure_optimizers(self) -> Any:
        """Decay on matrices only."""
        config = self.config
        groups = decay_matrices(self.parameters(), config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SceneBatches(Dataset[Any]):
    """Item k is the batch of step k, made from scenes of all categories that no other step sees.

    Args:
        config: scenes per step, and their levels.
        world_seed: which world.
        image_size: of the scenes.
    """

    def __init__(self, config: PretrainingConfig, world_seed: int, image_size: int) -> None:
        self.config, self.world_seed = config, world_seed
        self.options = [WorldOptions(image_size, level, "all") for level in config.levels]

    def __len__(self) -> int:
        return self.config.steps

    def scenes(self, step: int) -> list[Scene]:
        """A step's scenes."""
        indices = range(step * self.config.scenes, (step + 1) * self.config.scenes)
        return [
            sample_scene(self.world_seed, index, self.options[index % len(self.options)]) for index in indices
        ]


def pretrain(
    module: TowerPretraining, batches: SceneBatches, folder: Path, name: str, seed: int, resume: bool
) -> dict[str, float]:
    """Train a tower, measure its gate, write it to `folder`; returns the gate's figures.

    The folder appears whole or not at all: it is written under another name and renamed. What is needed to
    resume lies beside it until then.
    """
    config = module.config
    work = folder.with_name(folder.name + ".partial")
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = StepCheckpoint(work / "last.ckpt", every_seconds=60.0)
    started = time.perf_counter()
    module.train()
    fit_steps(
        module,
        lambda rank, world_size: batches,
        config.steps,
        work,
        name,
        seed,
        checkpoint,
        resume,
        gradient_clip=1.0,
    )
    seconds = time.perf_counter() - started
    module.eval()
    with torch.inference_mode():
        gate = module.gate()
    module.save(work / "tower")
    report = {"gate": gate, "seed": seed, "seconds": round(seconds, 1), "config": asdict(config)}
    (work / "tower" / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    shutil.copyfile(work / METRICS_FILE, work / "tower" / METRICS_FILE)
    (work / "tower").rename(folder)
    figures = "  ".join(f"{figure} {value:.3f}" for figure, value in gate.items())
    print(f"{name} pretrained in {seconds / 60:.1f} min  {figures}", file=sys.stderr, flush=True)
    shutil.rmtree(work)
    return gate
