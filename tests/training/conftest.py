"""A recipe around towers that were pretrained for a few steps, which runs in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.training.config import Recipe
from promptris.training.recipes import load_recipe


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
