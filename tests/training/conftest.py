"""Towers that were pretrained for a few steps, and a recipe around them that runs in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.training.config import PretrainingConfig, Recipe, TowersConfig
from promptris.training.recipes import load_recipe
from promptris.training.towers import pretrain_tower

FEW_STEPS = PretrainingConfig(steps=3, scenes=4, warmup=1, gate_scenes=4)


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with clip/ and sam/."""
    folder = tmp_path_factory.mktemp("towers")
    config = TowersConfig(clip_pretraining=FEW_STEPS, sam_pretraining=FEW_STEPS)
    for name in ("clip", "sam"):
        pretrain_tower(name, config, folder, seed=0, resume=False)
    return folder


@pytest.fixture
def recipe(towers: Path) -> Recipe:
    """Three steps without and three with SAM."""
    overrides = {
        "towers.clip": towers / "clip",
        "towers.sam": towers / "sam",
        "data.generate.train": 12,
        "data.generate.val": 2,
        "train.images_per_step": 4,
        "engine.checkpoint_seconds": 0,
    }
    return load_recipe("refshapes-smoke", [f"--{key}={value}" for key, value in overrides.items()])
