"""Softmax attention on a CPU from oneDNN's products, a few rows of scores at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from promptris.ops.onednn import fits_onednn, onednn_product, onednn_product_plus

SCORES = 2_097_152
"""Scores that are held at once: about what fits a processor's cache (8 MiB in float32)."""
WORTH_IT = 160_000
"""From so many scores per group on, single products of a group were faster than torch's fused kernel."""

WIDE = 256
"""From this width of a head on, they were faster for any number of scores."""

MakeBias = Callable[[Tensor, int, slice], None]
"""Writes the bias of the scores [rows, K] of a group's queries in a slice."""


def attend(
    q: Float[Tensor, "*b Q D"],
    k: Float[Tensor, "*b K D"],
    v: Float[Tensor, "*b K D"],
    scale: float | None = None,
) -> Float[Tensor, "*b Q D"]:
    """softmax(scale q k^T) v, by whichever way is faster; differentiable where gradients are on.

    `scale` is 1 / sqrt(D) unless given.
    """
    worth_it = q.shape[-2] * k.shape[-2] >= WORTH_IT or (q.shape[-1] >= WIDE and k.shape[-2] >= WIDE)
    if torch.is_grad_enabled() or not worth_it or not fits_onednn(q) or torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    batch = q.shape[:-2]
    groups, keys, values = (x.flatten(0, -3) for x in (q, k, v))
    return attend_by_rows(groups, keys, values, scale=scale).unflatten(0, batch)


def attend_by_rows(
    q: Float[Tensor, "G Q D"],
    k: Float[Tensor, "G K D"],
    v: Float[Tensor, "G K D"],
    make_bias: MakeBias | None = None,
    scale: float | None = None,
) -> Float[Tensor, "G Q D"]:
    """The same with a bias that is made as it is needed, for tensors that `fits_onednn` is true of.

    Scores stay in the processor's cache, and torch's own products are slower on some processors.
    """
    groups, count, width = q.shape
    keys = k.shape[1]
    rows = max(1, min(count, SCORES // keys))
    out = torch.empty_like(q)
    weights = q.new_empty(rows, keys)
    biases = weights if make_bias is None else torch.empty_like(weights)
    factor = width**-0.5 if scale is None else scale
    for group in range(groups):
        scaled, values = k[group] * factor, v[group].t().contiguous()
        for row in range(0, count, rows):
            part = slice(row, row + rows)
            queries = q[group, part]
            here = weights[: len(queries)]
            if make_bias is None:
                scores = onednn_product(queries, scaled)
            else:
                bias = biases[: len(queries)]
                make_bias(bias, group, part)
                scores = onednn_product_plus(queries, scaled, bias)
            torch.softmax(scores, dim=-1, out=here)
            out[group, part] = onednn_product(here, values)
    return out
