"""What a run is known by: hashes of its model and of everything its results depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from promptris.modeling.pretrained import full_state
from promptris.modeling.prompt_ris import PromptRIS


def model_hash(model: PromptRIS) -> str:
    """A hash of a model's weights, configuration and tokenizer; where it was loaded from does not matter."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    digest.update(json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode())
    for name, value in sorted(full_state(model).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint(stamp: dict[str, Any]) -> str:
    """A short hash of JSON values by name."""
    return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]
