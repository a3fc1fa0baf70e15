"""`promptris info` and `promptris doctor`: what a model is made of, and what this machine offers."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from promptris.builtin_models import ASSETS, BUILT_IN_MODELS
from promptris.errors import InputError
from promptris.interfaces.models import ModelChoice, preset_skeleton
from promptris.interfaces.options import extras, installed_version, missing_packages
from promptris.interfaces.terminal import new_table, print_table

if TYPE_CHECKING:
    from promptris.modeling.prompt_ris import PromptRIS

_CORE = ("torch", "transformers", "numpy", "pillow", "pycocotools", "safetensors", "tokenizers", "typer")


def show_info(choice: ModelChoice, preset: str | None, as_json: bool) -> None:
    """Print parameter counts, input sizes and the origin of the weights.

    Raises:
        InputError: when both a model and a preset are named, or the one named does not exist.
    """
    if preset is not None:
        if choice.name is not None:
            raise InputError(f"--model {choice.name} and --preset {preset} are both given: name one of them")
        facts = describe(preset_skeleton(preset), f"preset {preset}", {"all": "no weights: sizes only"})
    else:
        model = choice.load().model
        facts = describe(model, choice.shown_name, _origins(model))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = new_table("part", "trainable", "frozen")
    *parts, total = facts["parameters"]
    for part in parts:
        table.add_row(part["part"], f"{part['trainable']:,}", f"{part['frozen']:,}")
    table.add_section()
    table.add_row("total", f"{total['trainable']:,}", f"{total['frozen']:,}")
    print_table(table, facts["model"])
    print()
    details = new_table("", "", words=2)
    for name, value in (
        *facts["input"].items(),
        *((f"weights, {k}", v) for k, v in facts["weights"].items()),
    ):
        details.add_row(name.replace("_", " "), str(value))
    details.show_header = False
    print_table(details)


def describe(model: PromptRIS, name: str, weights: dict[str, str]) -> dict[str, Any]:
    """A model's figures as plain containers; `weights` tells where they come from."""
    from promptris.modeling.build import count_parameters

    config = model.config
    longest = model.clip.context_length
    return {
        "model": name,
        "parameters": [asdict(count) for count in count_parameters(model)],
        "input": {
            "clip_image_size": config.clip_image_size,
            "clip_grid": model.coarse_grid,
            "sam_image_size": model.sam.image_size,
            "mask_size": model.sam.mask_size,
            "longest_expression_tokens": min(longest, config.max_words) if config.max_words else longest,
            "cross_modal_prompts": config.prompting.direction,
            "sam_prompts": ", ".join(config.sam_prompts.enabled)
            if config.sam_prompts.refine
            else "none: the coarse mask is the answer",
        },
        "weights": weights,
    }


def _origins(model: PromptRIS) -> dict[str, str]:
    if not model.sources:
        return {"all": "in the model's own folder"}
    return {
        tower: f"{origin['source']} ({origin['format']}, sha256 {origin['sha256'][:12]})"
        for tower, origin in model.sources.items()
    }


def show_doctor() -> None:
    """Print versions, devices, threads, extras and the built-in model; what is missing is said, not raised."""
    table = new_table("", "", words=2)
    table.show_header = False
    table.add_row("promptris", installed_version("promptris") or "not installed as a package")
    table.add_row("python", f"{platform.python_version()} ({sys.executable})")
    table.add_row("system", platform.platform())
    for package in _CORE:
        table.add_row(package, installed_version(package) or "missing")
    for name, value in _torch_facts().items():
        table.add_row(name, value)
    for extra in extras():
        missing = missing_packages(extra)
        state = "installed"
        if missing:
            state = f"needs {', '.join(missing)}: pip install 'promptris[{extra}]'"
        table.add_row(f"extra {extra}", state)
    for name, state in _built_in_models().items():
        table.add_row(f"model {name}", state)
    print_table(table)


def _torch_facts() -> dict[str, str]:
    facts = {"cpu cores": str(os.cpu_count())}
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that torch needs is not there
        return {**facts, "devices": f"unknown, torch cannot be imported: {error}"}
    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append(f"cuda:{number} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {**facts, "torch threads": str(torch.get_num_threads()), "devices": "; ".join([*devices, "cpu"])}


def _built_in_models() -> dict[str, str]:
    states = {}
    for name in BUILT_IN_MODELS:
        weights = ASSETS / name / "model.safetensors"
        there = weights.is_file()
        states[name] = f"there, {weights.stat().st_size / 1e6:.1f} MB" if there else f"missing from {ASSETS}"
    return states
