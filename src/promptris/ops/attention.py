"""Softmax attention on a CPU from oneDNN's products, a few rows of scores at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from promptris.ops.onednn import BLOCK, MANY, fits_onednn, onednn_product

SCORES = 2_097_152
"""Scores that are held at once: about what fits a processor's cache (4 MiB in bfloat16)."""
WORTH_IT = 160_000
"""From so many scores per group on, single products of a group were faster than torch's fused kernel."""

WIDE = 256
"""From this width of a head on, they were faster for any number of scores."""

SCORES_IN_FLOAT32 = 524_288
"""The same in float32 (2 MiB): every product there gets new memory, which costs more the larger it is."""

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
    count = q.shape[-2]
    if count >= MANY:
        groups = F.pad(groups, (0, 0, 0, -count % BLOCK))
    return attend_by_rows(groups, keys, values, scale=scale)[:, :count].unflatten(0, batch)


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
    out = torch.empty_like(q)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    if q.dtype == torch.bfloat16:
        _in_half_precision(q, k * factor, v, make_bias, out)
    else:
        _in_single_precision(q, k, v, make_bias, factor, out)
    return out


def _in_single_precision(
    q: Tensor, k: Tensor, v: Tensor, make_bias: MakeBias | None, factor: float, out: Tensor
) -> None:
    (groups, count, _), keys = q.shape, k.shape[1]
    parts = -(-count * keys // min(SCORES, SCORES_IN_FLOAT32))
    rows = max(1, -(-count // parts))
    rows += -rows % BLOCK if rows >= MANY else 0
    biases = None if make_bias is None else q.new_empty(rows, keys)
    for group in range(groups):
        scaled, values = (k[group] * factor).contiguous(), v[group].t().contiguous()
        for row in range(0, count, rows):
            part = slice(row, row + rows)
            queries = q[group, part]
            scores = onednn_product(queries, scaled)
            if make_bias is not None and biases is not None:
                bias = biases[: len(queries)]
                make_bias(bias, group, part)
                scores += bias
            torch.softmax(scores, dim=-1, out=scores)
            out[group, part] = onednn_product(scores, values)


def _in_half_precision(q: Tensor, k: Tensor, v: Tensor, make_bias: MakeBias | None, out: Tensor) -> None:
    """torch's own products, which are oneDNN's here: several groups at once, into memory that is there."""
    (groups, count, _), keys = q.shape, k.shape[1]
    if make_bias is None and count * keys <= SCORES:
        together = max(1, min(groups, SCORES // (count * keys)))
        scores, weights = (q.new_empty(together, count, keys) for _ in range(2))
        for group in range(0, groups, together):
            some = slice(group, group + together)
            number = len(q[some])
            torch.bmm(q[some], k[some].transpose(1, 2), out=scores[:number])
            torch.softmax(scores[:number], dim=-1, out=weights[:number])
            torch.bmm(weights[:number], v[some], out=out[some])
        return
    rows = max(1, min(count, SCORES // keys))
    scores, weights = (q.new_empty(rows, keys) for _ in range(2))
    for group in range(groups):
        for row in range(0, count, rows):
            part = slice(row, row + rows)
            queries = q[group, part]
            here, result = scores[: len(queries)], weights[: len(queries)]
            if make_bias is None:
                torch.mm(queries, k[group].t(), out=here)
            else:  # the sum of product and bias is rounded once
                make_bias(here, group, part)
                torch.addmm(here, queries, k[group].t(), out=here)
            torch.softmax(here, dim=-1, out=result)
            torch.mm(result, v[group], out=out[group, part])
