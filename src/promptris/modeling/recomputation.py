"""Activation checkpointing: a layer's inside is computed a second time when gradients need it, not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from promptris.ops.onednn import same_again

Result = TypeVar("Result")


def maybe_recomputed(recompute: bool, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)`; with `recompute`, only its arguments are kept for the backward pass.

    The function must draw no random numbers. Results and gradients are bit for bit the same either way. Where no
    gradients are wanted this is a plain call.
    """
    if not (recompute and torch.is_grad_enabled()):
        return function(*arguments)
    return checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=same_again
    )
