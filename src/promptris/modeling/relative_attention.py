"""Attention with SAM's decomposed relative positions, without ever holding the bias of all pairs.

The bias of query i and key j is rel_h[i, row of j] + rel_w[i, column of j] (made from the unscaled query). At SAM's
full size it would be 12 x 4096 x 4096 numbers per layer; here it exists for a few rows of queries at a time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from promptris.ops import attention
from promptris.ops.attention import attend_by_rows
from promptris.ops.onednn import fits_onednn
from promptris.ops.plain import plain_wanted

PLAIN_ROWS = 1024
"""Queries whose scores a recorded graph holds at once: at SAM's full size 200 MB of them, not 800."""


def attend_with_relative_positions(
    q: Float[Tensor, "G Q D"],
    k: Float[Tensor, "G K D"],
    v: Float[Tensor, "G K D"],
    rel_h: Float[Tensor, "G Q h"],
    rel_w: Float[Tensor, "G Q w"],
) -> Float[Tensor, "G Q D"]:
    """softmax(q k^T / sqrt(D) + bias) v for G independent groups (heads, windows); K = h·w.

    Args:
        q: queries, not scaled.
        k: keys, row by row of the h x w grid.
        v: values.
        rel_h: bias of every query with each row of keys.
        rel_w: bias of every query with each column of keys.
    """
    if plain_wanted():
        return folded(q, k, v, rel_h, rel_w, rows=PLAIN_ROWS)
    if q.device.type != "cpu":
        return folded(q, k, v, rel_h, rel_w)
    groups, count, _ = q.shape
    keys = k.shape[1]
    exact_products = not torch.is_grad_enabled() and fits_onednn(q)
    if exact_products and count * keys > attention.SCORES // 2:
        return by_rows(q, k, v, rel_h, rel_w)
    out = torch.empty_like(q)
    # Whole groups at once where they are small, some queries of one where they are large.
    per_pass, rows = max(1, attention.SCORES // (count * keys)), max(1, attention.SCORES // keys)
    for group in range(0, groups, per_pass):
        some = slice(group, group + per_pass)
        if exact_products:
            queries, places = with_places(q[some], k[some], rel_h[some], rel_w[some])
            weights = torch.bmm(queries, places.transpose(1, 2)).softmax(dim=-1)
            torch.bmm(weights, v[some], out=out[some])
            continue
        for row in range(0, count, rows):
            part = slice(row, row + rows)
            bias = (rel_h[some, part, :, None] + rel_w[some, part, None, :]).flatten(2)
            out[some, part] = F.scaled_dot_product_attention(
                q[some, part][None], k[some][None], v[some][None], attn_mask=bias[None]
            )[0]
    return out


def folded(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, rows: int | None = None) -> Tensor:
    """With the bias as further channels. For GPUs' fused kernels.

    `rows`: how many queries at once, for runtimes whose attention holds all scores; None means all.
    """
    queries, keys = with_places(q, k, rel_h, rel_w)
    parts = [queries] if rows is None else queries.split(rows, dim=1)
    return torch.cat(
        [F.scaled_dot_product_attention(part[None], keys[None], v[None], scale=1.0)[0] for part in parts],
        dim=1,
    )


def with_places(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [G, *, D + h + w] whose products are the scores with their bias.

    The further channels of a query are its bias with every row and column, those of a key tell its row and column.
    """
    high, wide = rel_h.shape[2], rel_w.shape[2]
    row_of = torch.eye(high, dtype=k.dtype, device=k.device)[:, None].expand(-1, wide, -1)
    column_of = torch.eye(wide, dtype=k.dtype, device=k.device)[None].expand(high, -1, -1)
    places = torch.cat([row_of, column_of], dim=2).flatten(0, 1).expand(k.shape[0], -1, -1)
    return torch.cat([q * q.shape[2] ** -0.5, rel_h, rel_w], dim=2), torch.cat([k, places], dim=2)


def by_rows(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """On a CPU, with oneDNN's products."""

    def make_bias(bias: Tensor, group: int, part: slice) -> None:
        grid = bias.unflatten(1, (rel_h.shape[2], rel_w.shape[2]))
        torch.add(rel_h[group, part, :, None], rel_w[group, part, None, :], out=grid)

    return attend_by_rows(q, k, v, make_bias)
