"""Choosing one position of a response map, with and without gradients (Eq. 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

PLATEAU = 1e-5
"""Logits this close to the highest one, as a share of the map's range, count as equally high."""


def gumbel_noise(
    samples: int, positions: int, device: torch.device | str, generator: torch.Generator | None = None
) -> Float[Tensor, "B P"]:
    """[B, P] standard Gumbel noise, float32; `generator` None draws from the global one."""
    exponential = torch.empty(samples, positions, device=device).exponential_(generator=generator)
    # A draw of exactly 0 would give infinite noise.
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()


def gumbel_one_hot(
    logits: Float[Tensor, "B P"],
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    noise: Float[Tensor, "B P"] | None = None,
) -> Float[Tensor, "B P"]:
    """A one-hot sample from softmax(logits), with the soft sample's gradient (Eq. 3, straight-through).

    Args:
        logits: [B, P].
        temperature: of the soft sample whose gradient is used.
        generator: source of the noise; None uses the global one.
        noise: Gumbel noise that was drawn already, see `gumbel_noise`.

    Returns:
        [B, P] exactly one-hot in the forward pass; backward it is softmax((logits + noise) / temperature).
    """
    if noise is None:
        noise = gumbel_noise(logits.shape[0], logits.shape[1], logits.device, generator)
    soft = ((logits.float() + noise) / temperature).softmax(dim=-1)
    index = soft.argmax(dim=-1, keepdim=True)
    hard = torch.zeros_like(soft).scatter_(-1, index, 1.0)
    return straight_through(hard, soft).to(logits.dtype)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def highest_position(logits: Float[Tensor, "B P"]) -> Int[Tensor, " B"]:
    """[B] index of the highest logit, the point taken at inference; of equally high ones the first.

    Upsampling leaves plateaus, at image borders above all, whose cells differ by rounding alone. Counting
    them as equal keeps the point the same in any batch and on any device.
    """
    highest, lowest = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)
    return (logits >= highest - PLATEAU * (highest - lowest)).int().argmax(dim=-1)
