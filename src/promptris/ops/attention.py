"""Softmax attention on a CPU from oneDNN's products, a few rows of scores at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from promptris.ops.onednn import fits_onednn, onednn_product

SCORES = 2_097_152
"""Scores that are held at once: about what fits a processor's cache (8 MiB in float32)."""
WORTH_IT = 160_000
"""From so many scores per group on, single products of a group were faster than torch's fused kernel."""

AddBias = Callable[[Tensor, int, slice], None]
"""Adds a bias to the scores [rows, K] of a group's queries in a slice, in place."""


def attend(
    q: Float[Tensor, "*b Q D"], k: Float[Tensor, "*b K D"], v: Float[Tensor, "*b K D"]
) -> Float[Tensor, "*b Q D"]:
    """softmax(q k^T / sqrt(D)) v, by whichever way is faster; differentiable where gradients are on."""
    large = q.shape[-2] * k.shape[-2] >= WORTH_IT
    if torch.is_grad_enabled() or not large or not fits_onednn(q) or torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v)
    batch = q.shape[:-2]
    groups, keys, values = (x.flatten(0, -3) for x in (q, k, v))
    return attend_by_rows(groups, keys, values).unflatten(0, batch)


def attend_by_rows(
    q: Float[Tensor, "G Q D"],
    k: Float[Tensor, "G K D"],
    v: Float[Tensor, "G K D"],
    add_bias: AddBias | None = None,
) -> Float[Tensor, "G Q D"]:
    """The same with a bias that is made as it is needed, for tensors that `fits_onednn` is true of.

    Scores stay in the processor's cache, and torch's own products are slower on some processors.
    """
    groups, count, width = q.shape
    keys = k.shape[1]
    rows = max(1, min(count, SCORES // keys))
    out = torch.empty_like(q)
    weights = q.new_empty(rows, keys)
    for group in range(groups):
        scaled, values = k[group] * width**-0.5, v[group].t().contiguous()
        for row in range(0, count, rows):
            part = slice(row, row + rows)
            scores = onednn_product(q[group, part], scaled)
            if add_bias is not None:
                add_bias(scores, group, part)
            here = weights[: len(scores)]
            torch.softmax(scores, dim=-1, out=here)
            out[group, part] = onednn_product(here, values)
    return out
