"""The towers inside a model folder that holds them, to build other models around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from promptris.errors import InputError, WeightsError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def is_model_config(content: object) -> bool:
    """Whether the content of a config.json is that of this package's models."""
    return isinstance(content, dict) and content.get("format") == "promptris"


def saved_with_towers(folder: Path) -> bool:
    """Whether this is a model folder of this package.

    Raises:
        InputError: when it is one that holds the learned parts alone.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    if not is_model_config(config):
        return False
    if not config.get("full"):
        raise InputError(f"{folder} is a model without its towers: give the CLIP and the SAM that it names")
    return True


def read_tower(folder: Path, kind: str) -> nn.Module:
    """One tower, "clip" or "sam", of a folder that `saved_with_towers`: float32, in evaluation mode.

    Raises:
        WeightsError: when weights are missing or do not fit.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPConfig, CLIPModel, SamConfig, SamModel

    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())[f"{kind}_config"]
    tower: nn.Module = CLIPModel(CLIPConfig(**config)) if kind == "clip" else SamModel(SamConfig(**config))
    state = tower.state_dict()
    prefix = f"{kind}.{kind}."
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file, torch.no_grad():
            names = {name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
            filled = {state[name].data_ptr() for name in names if name in state}
            # A matrix that two modules share is stored once.
            missing = [name for name, value in state.items() if value.data_ptr() not in filled]
            if missing or names - state.keys():
                raise WeightsError(f"{folder} does not hold exactly the {kind.upper()} of its config")
            for name in names:
                state[name].copy_(file.get_tensor(prefix + name))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"{folder / WEIGHTS_FILE} is damaged or does not fit its config: {error}"
        ) from error
    return tower.eval()
