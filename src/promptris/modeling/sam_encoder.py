"""SAM's image encoder computed leanly: the same layers and weights as transformers', less memory and time.

For frozen encoders: nothing here is differentiable.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.models.sam.modeling_sam import (
    SamMLPBlock,
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
)

from promptris.modeling.relative_attention import attend_with_relative_positions
from promptris.ops.onednn import onednn_product, takes_layers_by_onednn
from promptris.ops.patches import embed_patches
from promptris.ops.window_attention import attend_in_windows, fits_kernel

ROWS = 1024
"""Tokens that go through a perceptron at once."""


@torch.no_grad()
def encode_image(
    encoder: SamVisionEncoder, pixels: Float[Tensor, "1 3 s s"]
) -> Float[Tensor, "1 D_S H_S W_S"]:
    """What `encoder(pixels).last_hidden_state` is, for one image."""
    state = encoder.patch_embed(pixels).contiguous()
    state = state if encoder.pos_embed is None else state + encoder.pos_embed
    for layer in encoder.layers:
        state = _layer(layer, state[0])[None]
    features: Tensor = encoder.neck(state)
    return features


def encode_images(
    encoder: SamVisionEncoder, pixels: Float[Tensor, "I 3 s s"]
) -> Float[Tensor, "I D_S H_S W_S"]:
    """The same for any number of images at once, writing into nothing: for graphs that leave torch."""
    state = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        state = state + encoder.pos_embed
    for layer in encoder.layers:
        state = state + _attend_in_windows(layer.attn, layer.layer_norm1(state), layer.window_size)
        state = state + layer.mlp(layer.layer_norm2(state))
    features: Tensor = encoder.neck(state)
    return features


def fits_gpu(encoder: SamVisionEncoder, pixels: Float[Tensor, "I 3 s s"]) -> bool:
    """Whether `encode_on_gpu` takes this encoder and these images."""
    first = encoder.layers[0].attn
    dtype: torch.dtype = first.qkv.weight.dtype
    if pixels.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    grid = pixels.shape[2] // encoder.patch_embed.patch_size[0]
    head = first.qkv.weight.shape[1] // first.num_attention_heads
    if pixels.shape[2] != pixels.shape[3] or not fits_kernel(pixels.device, dtype, grid, head):
        return False
    return all(
        layer.attn.use_rel_pos
        and layer.attn.qkv.bias is not None
        and len(layer.attn.rel_pos_h) == len(layer.attn.rel_pos_w) == 2 * size - 1
        for layer in encoder.layers
        for size in (layer.window_size or grid,)
    )


@torch.no_grad()
def encode_on_gpu(
    encoder: SamVisionEncoder, pixels: Float[Tensor, "I 3 s s"]
) -> Float[Tensor, "I D_S H_S W_S"]:
    """The same for several images at once on a GPU, attention by one kernel."""
    state = embed_patches(encoder.patch_embed.projection, pixels)
    if encoder.pos_embed is not None:
        state = state + encoder.pos_embed
    for layer in encoder.layers:
        attention = layer.attn
        qkv = attention.qkv(layer.layer_norm1(state))
        size = layer.window_size or state.shape[1]
        attended = attend_in_windows(qkv, _places(attention, qkv), attention.qkv.bias.to(qkv.dtype), size)
        state = state + attention.proj(attended)
        state = state + layer.mlp(layer.layer_norm2(state))
    features: Tensor = encoder.neck(state)
    return features


def _places(attention: SamVisionAttention, qkv: Tensor) -> Tensor:
    """[heads, I, H, W, P] products of queries with the embeddings of all offsets, P filled up to a multiple of 8."""
    heads, tokens = attention.num_attention_heads, qkv.flatten(0, 2)
    queries = tokens[:, : qkv.shape[-1] // 3].unflatten(-1, (heads, -1)).transpose(0, 1)
    table = torch.cat([attention.rel_pos_h, attention.rel_pos_w]).to(qkv.dtype)
    table = F.pad(table, (0, 0, 0, -len(table) % 8)).T.expand(heads, -1, -1)
    # One product per head reads queries where they are; all at once, they would be copied.
    return torch.bmm(queries, table).unflatten(1, qkv.shape[:3])


def _attend_in_windows(attention: SamVisionAttention, state: Tensor, size: int) -> Tensor:
    """Attention [I, H, W, D] within windows of `size` x `size`, filled up with 0; a size of 0 means all of H x W."""
    height, width = state.shape[1:3]
    high, wide = (size, size) if size else (height, width)
    padded = F.pad(state, (0, 0, 0, -width % wide, 0, -height % high))
    rows, columns = padded.shape[1] // high, padded.shape[2] // wide
    windows = padded.unflatten(2, (columns, wide)).unflatten(1, (rows, high)).transpose(2, 3).flatten(0, 2)
    qkv = attention.qkv(windows)
    attended = attention.proj(_attend_all(attention, qkv, qkv)).unflatten(0, (-1, rows, columns))
    return attended.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _layer(layer: SamVisionLayer, state: Tensor) -> Tensor:
    """One layer on [H, W, D]; overwrites its input."""
    attention = layer.attn
    qkv = attention.qkv(layer.layer_norm1(state))
    attended = (
        _windowed(attention, qkv, layer.window_size) if layer.window_size else _attend(attention, qkv, qkv)
    )
    state += attention.proj(attended)
    # Some rows at a time: inside, the perceptron is four times as wide.
    for rows in state.flatten(0, 1).split(ROWS):
        rows += _perceptron(layer.mlp, layer.layer_norm2(rows))
    return state


def _perceptron(mlp: SamMLPBlock, x: Tensor) -> Tensor:
    if isinstance(mlp.act, GELUActivation) and takes_layers_by_onednn(x, mlp.lin1.weight):
        return mlp.lin2(onednn_product(x, mlp.lin1.weight, mlp.lin1.bias, "gelu"))
    return mlp(x)


def _windowed(attention: SamVisionAttention, qkv: Tensor, size: int) -> Tensor:
    """Attention [H, W, D] within windows of `size` x `size`, from projections [H, W, 3 D].

    Windows that stick out are filled up with tokens that are 0 before their projection: keys and values of those are
    its bias, and take part. Their queries would be thrown away, and are not computed.
    """
    height, width, channels = qkv.shape
    out = qkv.new_empty(height, width, channels // 3)
    for top, rows, high in _bands(height, size):
        for left, columns, wide in _bands(width, size):
            here = slice(top, top + rows * high), slice(left, left + columns * wide)
            # Windows one after the other: [rows x columns, high, wide, 3 D].
            queries = _cut(qkv[here], high, wide)
            keys = queries
            if (high, wide) != (size, size):
                empty = (
                    qkv.new_zeros(channels)
                    if attention.qkv.bias is None
                    else attention.qkv.bias.to(qkv.dtype)
                )
                keys = empty.expand(len(queries), size, size, -1).clone()
                keys[:, :high, :wide] = queries
            answers = _attend_all(attention, queries, keys)
            out[here] = _join(answers, rows, columns)
    return out


def _bands(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Start, count and extent of the windows along one side: the whole ones, and one that sticks out."""
    whole, rest = divmod(length, size)
    if whole:
        yield 0, whole, size
    if rest:
        yield whole * size, 1, rest


def _cut(block: Tensor, high: int, wide: int) -> Tensor:
    """[H, W, C] -> [windows, high, wide, C]."""
    return block.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).transpose(1, 2).flatten(0, 1)


def _join(windows: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of `_cut`."""
    return windows.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _attend(attention: SamVisionAttention, queries: Tensor, keys: Tensor) -> Tensor:
    return _attend_all(attention, queries[None], keys[None])[0]


def _attend_all(attention: SamVisionAttention, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention of windows [n, high, wide, 3 D] to windows [n, H, W, 3 D], both projected -> [n, high, wide, D]."""
    heads = attention.num_attention_heads
    windows, high, wide, _ = queries.shape
    grid = keys.shape[1:3]

    def part(projected: Tensor, which: int) -> Tensor:
        """[n x heads, tokens, D / heads]."""
        split = projected.unflatten(-1, (3, heads, -1))[..., which, :, :]
        return split.flatten(1, 2).transpose(1, 2).flatten(0, 1)

    q, k, v = part(queries, 0), part(keys, 1), part(keys, 2)
    if attention.use_rel_pos:
        on_grid = q.unflatten(1, (high, wide))
        tables = (
            attention.get_rel_pos(side, side, table)[:extent].to(q.dtype)
            for side, table, extent in zip(
                grid, (attention.rel_pos_h, attention.rel_pos_w), (high, wide), strict=True
            )
        )
        rel_h = torch.einsum("gyxd,yjd->gyxj", on_grid, next(tables)).flatten(1, 2)
        rel_w = torch.einsum("gyxd,xjd->gyxj", on_grid, next(tables)).flatten(1, 2)
        attended = attend_with_relative_positions(q, k, v, rel_h, rel_w)
    else:
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    return attended.unflatten(0, (windows, heads)).transpose(1, 2).unflatten(1, (high, wide)).flatten(3)
