"""Named tensors out of one file of weights, safetensors or torch's, without running what is in it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptris.errors import InputError
from promptris.modeling import openai_clip

_LFS_HEAD = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path) -> None:
    """Raises InputError if the file is the stub that git leaves when the real one was not fetched."""
    with path.open("rb") as stream:
        if stream.read(len(_LFS_HEAD)) == _LFS_HEAD:
            raise InputError(
                f"{path} is only a Git LFS pointer, not the file itself: run  git lfs pull  or download it"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, a TorchScript archive or a plain torch file; no code is run.

    Raises:
        InputError: the file is empty, a Git LFS pointer, damaged, not a checkpoint, or more than tensors.
    """
    refuse_lfs_pointer(path)
    with path.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise InputError(f"{path} is empty: get the file again")
    if head[8:] == b"{":  # eight bytes of length, then JSON
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{path} is a damaged safetensors file ({first_sentence(error)}): get it again"
            ) from error
    if openai_clip.is_script_archive(path):
        return openai_clip.read_script_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            openai_clip.refuse_global(path, asked[1])
        raise InputError(
            f"{path} is not a file of weights that torch can read: get the original file again"
        ) from error
    except Exception as error:  # a file of any other kind can fail in any way
        fault = (
            "truncated or damaged" if head.startswith(b"PK") else "not a file of weights, or a damaged one"
        )
        raise InputError(
            f"{path} is {fault} ({first_sentence(error)}): get the original file again"
        ) from error
    return _state_dict(path, content)


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a loaded torch file; training checkpoints keep them one level down."""
    if isinstance(content, Mapping):
        nested = (content.get(key) for key in ("state_dict", "model", "model_state_dict"))
        content = next((inner for inner in nested if isinstance(inner, Mapping)), content)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        if tensors:
            return tensors
    raise InputError(
        f"{path} holds no named tensors ({type(content).__name__}): give a file of model weights"
    )


def first_sentence(error: Exception) -> str:
    """The kind of an error and the first sentence of what it says."""
    first = str(error).strip().partition("\n")[0].partition(". ")[0][:200].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
