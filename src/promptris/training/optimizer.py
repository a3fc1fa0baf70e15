"""What AdamW is told about parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def decay_matrices(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters: decay on matrices, none on norms, biases and scalars."""
    trainable = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
