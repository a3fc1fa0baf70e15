"""Where figures come from: the sources' commit, the machine, and the content of weights and data."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptris.builtin_models import builtin_folder
from promptris.data.dataset import ReferDataset
from promptris.training.model_card import hardware

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def provenance() -> dict[str, Any]:
    """Commit, machine and torch of what is computed now."""
    return {"commit": commit(), "hardware": hardware(), "torch": torch.__version__}


@cache
def commit() -> str:
    """The commit of the sources, "-dirty" behind it when they have changed since; else the package's version."""
    import promptris

    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return f"release {promptris.__version__}"


def weights_stamp(source: str | Path) -> str:
    """What the weights of a file or folder are known by: a hash of their bytes; of anything else, its name."""
    path = builtin_folder(source) or Path(source)
    if path.is_dir():
        files = sorted(found for pattern in _WEIGHTS for found in path.glob(pattern))
    else:
        files = [path] if path.is_file() else []
    if not files:
        return str(source)
    return hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def data_stamp(dataset: ReferDataset, split: str) -> str:
    """What the expressions and masks of a split are known by."""
    columns = dataset.columns
    digest = hashlib.sha256(np.ascontiguousarray(dataset.rows[split]).tobytes())
    for array in (columns.sent_id, columns.sent_text, columns.ref_target, columns.target_rle):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
