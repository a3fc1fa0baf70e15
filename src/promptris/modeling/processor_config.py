"""What images go through on their way to the towers and back, beside the weights that were trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptris.errors import InputError, WeightsError
from promptris.modeling.prompt_ris import PromptRIS
from promptris.processing import (
    CLIP_MEAN,
    CLIP_RESAMPLING,
    CLIP_STD,
    MASK_THRESHOLD,
    SAM_MEAN,
    SAM_RESAMPLING,
    SAM_STD,
)

PROCESSOR_FILE = "preprocessor_config.json"


def processor_config(model: PromptRIS) -> dict[str, Any]:
    """What this package does with images and expressions for a model, in plain containers."""
    processor = model.processor()
    return {
        "processor": "promptris",
        "clip": _square(processor.clip_size, CLIP_RESAMPLING, CLIP_MEAN, CLIP_STD),
        "sam": _square(processor.sam_size, SAM_RESAMPLING, SAM_MEAN, SAM_STD),
        "max_tokens": processor.context_length,
        "mask_size": model.sam.mask_size,
        "mask_threshold": MASK_THRESHOLD,
    }


def write_processor(model: PromptRIS, folder: Path) -> None:
    """Write the model's `preprocessor_config.json`."""
    (folder / PROCESSOR_FILE).write_text(json.dumps(processor_config(model), indent=2) + "\n")


def check_processor(model: PromptRIS, folder: Path) -> None:
    """Compare what a folder says with what would be done; a folder from before there was such a file passes.

    Raises:
        InputError: when the file is not valid JSON.
        WeightsError: when the two differ; the message names the first value that does.
    """
    path = folder / PROCESSOR_FILE
    if not path.exists():
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    ours = dict(_leaves(processor_config(model)))
    theirs = dict(_leaves(said))
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            raise WeightsError(
                f"{path} says {name} = {theirs.get(name, 'nothing')}, but this model and this version of promptris "
                f"use {ours.get(name, 'nothing')}: get the original folder, or the version that wrote it"
            )


def _square(
    side: int, resampling: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> dict[str, Any]:
    return {
        "size": {"height": side, "width": side},
        "resample": resampling,
        "antialias": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested containers with its path, such as clip.size.height."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))
