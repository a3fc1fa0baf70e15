"""Saved models: tuned parameters and where the frozen towers come from, or everything in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptris.builtin_models import builtin_folder
from promptris.config import PromptRISConfig
from promptris.errors import InputError, WeightsError
from promptris.modeling.base_weights import load_clip, load_sam
from promptris.modeling.build import build_from_configs, build_model, describe_source
from promptris.modeling.card import CARD_FILE, short_card
from promptris.modeling.hub import download_model, is_hub_id
from promptris.modeling.processor_config import check_processor, write_processor
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.saved_towers import CONFIG_FILE, WEIGHTS_FILE, is_model_config
from promptris.modeling.tokenizer import load_tokenizer

FORMAT_VERSION = 1
_KEYS = ("format_version", "full", "model", "clip_config", "sam_config", "sources")


def tuned_parameters(model: PromptRIS) -> dict[str, Tensor]:
    """The trainable parameters by name: all that training changes."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_pretrained(model: PromptRIS, folder: Path, full: bool, dtype: torch.dtype | None) -> None:
    """Write a model folder.

    Args:
        model: the model.
        folder: created if needed; files of the same names are replaced.
        full: also write the frozen towers, so that the folder needs nothing else.
        dtype: store floating-point weights in this type; loading gives float32 again.

    Raises:
        InputError: when the towers' origin is not known and `full` is not set.
    """
    if not full and not model.sources:
        raise InputError("this model's towers have no known source: save it with full=True")
    tensors = full_state(model) if full else tuned_parameters(model)
    config = {
        "format": "promptris",
        "format_version": FORMAT_VERSION,
        "full": full,
        "model": model.config.to_dict(),
        "clip_config": _plain_config(model.clip.clip),
        "sam_config": _plain_config(model.sam.sam),
        "sources": model.sources,
    }
    # Before its folder is written over, which may be this one.
    card = known_card(model) or short_card(
        config, sum(value.numel() for value in tuned_parameters(model).values())
    )
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (value.to(dtype) if dtype is not None and value.is_floating_point() else value)
        .contiguous()
        .cpu()
        for name, value in tensors.items()
    }
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(stored, partial, metadata={"format": "pt"})
    # safetensors gives its files to the owner alone; a model folder is meant to be shared.
    partial.chmod(0o644)
    partial.replace(folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    write_processor(model, folder)
    model.tokenizer.save_pretrained(folder)


def from_pretrained(
    name: str | Path, clip: str | Path | None, sam: str | Path | None, revision: str | None = None
) -> PromptRIS:
    """Read a model folder.

    Args:
        name: built-in name, folder or hub id.
        clip: where CLIP is now, when it is not where it was at training time; its content must be the same.
        sam: the same for SAM.
        revision: branch, tag or commit of a model on the hub; None means its main branch.

    Raises:
        InputError: when there is no such model or revision.
        WeightsError: when weights are missing, left over or differ from those trained with, or images are said to
            go through something else than what they go through here.
    """
    folder = _find_folder(name, revision)
    config = read_config(folder)
    model_config = PromptRISConfig.from_dict(config["model"])
    tokenizer = load_tokenizer(folder)
    if config["full"]:
        model = build_from_configs(config["clip_config"], config["sam_config"], model_config, tokenizer)
        model.sources = config["sources"]
        expected = full_state(model)
    else:
        sources = config["sources"]
        base_clip = load_clip(clip or sources["clip"]["source"])
        base_sam = load_sam(sam or sources["sam"]["source"])
        for tower, base in (("clip", base_clip), ("sam", base_sam)):
            if base.sha256 != sources[tower]["sha256"]:
                raise WeightsError(
                    f"{base.source} is not the {tower.upper()} that {name} was trained with (content hash "
                    f"{base.sha256[:12]}, expected {sources[tower]['sha256'][:12]}): give the original one"
                )
        model = build_model(base_clip.module, base_sam.module, model_config, tokenizer)
        model.sources = {"clip": describe_source(base_clip), "sam": describe_source(base_sam)}
        expected = tuned_parameters(model)
    check_processor(model, folder)
    _load_exactly(model, expected, folder / WEIGHTS_FILE)
    model.read_from = folder
    return model


def known_card(model: PromptRIS) -> str | None:
    """The card of the folder that the model was read from; None without one, or when weights have changed since."""
    if model.read_from is None:
        return None
    try:
        card = (model.read_from / CARD_FILE).read_text(encoding="utf-8")
        stored = load_file(model.read_from / WEIGHTS_FILE)
    except (OSError, UnicodeDecodeError, SafetensorError):
        return None
    tuned = tuned_parameters(model)
    same = all(name in stored and torch.equal(stored[name].to(p.dtype), p.cpu()) for name, p in tuned.items())
    return card if same else None


def full_state(model: PromptRIS) -> dict[str, Tensor]:
    """Every weight by name, each shared matrix once."""
    seen: set[int] = set()
    state = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            state[name] = value
    return state


def _load_exactly(model: PromptRIS, expected: dict[str, Tensor], path: Path) -> None:
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: it is not a complete promptris model") from None
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise WeightsError(
            f"{path} does not fit its config: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(extra)} are unknown {extra[:3]}"
        )
    for name, target in expected.items():
        if tensors[name].shape != target.shape:
            raise WeightsError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, the config asks for {tuple(target.shape)}"
            )
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[name])


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of a model folder's `config.json`; an `InputError` says what is wrong with it."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} has no {CONFIG_FILE}: it is not a promptris model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not is_model_config(config):
        raise InputError(f"{path} is not a promptris model's configuration")
    missing = [key for key in _KEYS if key not in config]
    if not missing and not config["full"]:
        missing = [f"sources.{tower}" for tower in ("clip", "sam") if tower not in config["sources"]]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: it is damaged, get the model again")
    if config["format_version"] > FORMAT_VERSION:
        raise InputError(f"{path} was written by a newer promptris: update the package to read it")
    return config


def _find_folder(name: str | Path, revision: str | None) -> Path:
    folder = builtin_folder(name) or Path(name)
    try:
        if folder.is_dir():
            if revision is not None:
                raise InputError(
                    f"{name} lies on this machine and has no revision {revision!r}: leave it out"
                )
            return folder
        is_file = folder.exists()
    except (OSError, ValueError) as error:  # no name that a file could have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"there can be no model folder {str(name)[:80]!r}: {reason}") from error
    if is_file:
        raise InputError(f"{name} is a file; a model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if not is_hub_id(str(name)):
        raise InputError(
            f"there is no model folder {name}: give a built-in name (tiny), a folder written by "
            "save_pretrained, or a hub id such as owner/name"
        )
    return download_model(str(name), revision)


def _plain_config(module: Any) -> dict[str, Any]:
    values = json.loads(module.config.to_json_string(use_diff=False))
    # Where it once lay on somebody's machine; `sources` tells what matters.
    return {name: value for name, value in values.items() if name != "_name_or_path"}
