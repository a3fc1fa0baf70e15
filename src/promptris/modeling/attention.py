"""Multi-head cross-attention and feed-forward blocks shared by the learned parts."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from promptris.errors import InputError
from promptris.ops.attention import attend


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context of another width.

    Args:
        query_dim: width of the queries.
        context_dim: width of the context, which gives keys and values.
        out_dim: width of the result.
        inner_dim: width of all heads together; a multiple of `heads`.
        heads: number of heads.

    Raises:
        InputError: when the heads do not divide the width.
    """

    def __init__(self, query_dim: int, context_dim: int, out_dim: int, inner_dim: int, heads: int) -> None:
        super().__init__()
        if inner_dim % heads:
            raise InputError(f"attention width {inner_dim} is not a multiple of {heads} heads")
        self.heads = heads
        self.q_proj = nn.Linear(query_dim, inner_dim)
        self.k_proj = nn.Linear(context_dim, inner_dim)
        self.v_proj = nn.Linear(context_dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, out_dim)

    def forward(
        self,
        queries: Float[Tensor, "B Q D_q"],
        context: Float[Tensor, "B K D_k"],
        context_mask: Bool[Tensor, "B K"] | None = None,
        context_code: Float[Tensor, "K D_k"] | None = None,
    ) -> Float[Tensor, "B Q D_o"]:
        """Attend.

        Args:
            queries: [B, Q, D_q].
            context: [B, K, D_k].
            context_mask: [B, K] false where the context is padding.
            context_code: [K, D_k] added to the keys only.
        """
        keys = context if context_code is None else context + context_code
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(queries), self.k_proj(keys), self.v_proj(context))
        )
        mask = None if context_mask is None else context_mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def attend_with_few(
        self,
        queries: Float[Tensor, "Q D_q"],
        context: Float[Tensor, "B K D_k"],
        context_mask: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q D_o"]:
        """As `forward` for queries that are the same in every sample, with less to compute where they are few.

        A query's product with a projected key is that of the query, projected back, with the key itself; and the
        mean of projected values is the projected mean. So the context, which is long, is never projected. The keys'
        bias adds the same to all of a query's products and leaves the attention as it is.
        """
        q = self.q_proj(queries).unflatten(-1, (self.heads, -1))
        weight = self.k_proj.weight.unflatten(0, (self.heads, -1))
        folded = torch.einsum("qhe,hed->hqd", q, weight).flatten(0, 1)
        mask = None if context_mask is None else context_mask[:, None, None, :]
        # As one wide head: attention in three dimensions has no ONNX translation.
        rows, keys, scale = folded.expand(context.shape[0], 1, -1, -1), context[:, None], q.shape[-1] ** -0.5
        if mask is None:
            pooled = attend(rows, keys, keys, scale)
        else:
            pooled = F.scaled_dot_product_attention(rows, keys, keys, attn_mask=mask, scale=scale)
        pooled = pooled[:, 0].unflatten(1, (self.heads, -1))
        values = self.v_proj.weight.unflatten(0, (self.heads, -1))
        attended = torch.einsum("bhqd,hed->bqhe", pooled, values).flatten(2)
        # The keys' bias adds nothing, and takes part so that its gradient is 0 as in `forward`, and not missing.
        return self.out_proj(attended + (self.v_proj.bias + 0 * self.k_proj.bias))


class FeedForward(nn.Module):
    """Two-layer perceptron with GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """The block's contribution, to be added to the stream."""
        return self.out_proj(F.gelu(self.in_proj(x)))
