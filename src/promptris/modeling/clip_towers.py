"""CLIP's two towers, opened up layer by layer. The only file that knows transformers' CLIP from inside."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPEncoderLayer

from promptris.errors import WeightsError
from promptris.modeling.recomputation import maybe_recomputed
from promptris.ops.attention import attend
from promptris.ops.onednn import by_whole_blocks, onednn_product, takes_layers_by_onednn
from promptris.ops.patches import embed_patches

QUICK_GELU = 1.702


class ClipTowers(nn.Module):
    """A CLIP whose towers advance in `depth` lock steps, with prompts put before the tokens of each step.

    When the towers are not equally deep, the deeper one takes several layers per step; prompts stay in the
    sequence for all layers of their step and are then thrown away. Without prompts each tower computes
    exactly what transformers' CLIP computes.

    Args:
        clip: transformers' model; used as it is, not copied.

    Attributes:
        recompute: keep only what goes into each layer for the backward pass, and compute its inside again there.

    Raises:
        WeightsError: when neither tower's depth divides the other's.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.recompute = False
        self._layer = _layer
        self._positions: tuple[tuple[object, ...], Tensor] | None = None
        image_depth = len(clip.vision_model.encoder.layers)
        text_depth = len(clip.text_model.encoder.layers)
        self.depth = min(image_depth, text_depth)
        if image_depth % self.depth or text_depth % self.depth:
            raise WeightsError(
                f"CLIP towers of {image_depth} image and {text_depth} text layers cannot advance in lock step: "
                "choose a CLIP whose depths are equal or multiples of each other"
            )
        self.image_layers_per_step = image_depth // self.depth
        self.text_layers_per_step = text_depth // self.depth

    @property
    def image_dim(self) -> int:
        """D_IC."""
        return self.clip.config.vision_config.hidden_size

    @property
    def text_dim(self) -> int:
        """D_T."""
        return self.clip.config.text_config.hidden_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.clip.config.vision_config.patch_size

    @property
    def context_length(self) -> int:
        """Longest expression in tokens, [SOS] and [EOS] included."""
        return self.clip.config.text_config.max_position_embeddings

    def compile_layers(self, **options: Any) -> None:
        """Let `torch.compile` have the layers, with its options; what it compiles serves all layers of a tower."""
        self._layer = torch.compile(_layer, **options)

    def embed_image(self, pixels: Float[Tensor, "I 3 h w"]) -> Float[Tensor, "I tokens D_IC"]:
        """[CLS] and patches with interpolated position embedding, after CLIP's first norm (F_IC^0)."""
        vision, embeddings = self.clip.vision_model, self.clip.vision_model.embeddings
        patches = embed_patches(
            embeddings.patch_embedding, pixels.to(embeddings.patch_embedding.weight.dtype)
        )
        first = embeddings.class_embedding.expand(pixels.shape[0], 1, -1)
        tokens = torch.cat([first, patches.flatten(1, 2)], dim=1)
        return vision.pre_layrnorm(tokens + self._positions_for(tokens, *pixels.shape[2:]))

    def _positions_for(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Position embedding [1, tokens, D_IC] for an image of this size, interpolated.

        Kept until its size or the weights change: on a GPU the interpolation takes longer than a layer.
        """
        weight = self.clip.vision_model.embeddings.position_embedding.weight
        interpolate = self.clip.vision_model.embeddings.interpolate_pos_encoding
        trained = torch.is_grad_enabled() and weight.requires_grad
        if trained or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return interpolate(tokens, height, width)
        version = None if weight.is_inference() else weight._version
        key = (weight.data_ptr(), version, weight.device, weight.dtype, height, width)
        kept = self._positions
        if kept is None or kept[0] != key:
            # Outside inference mode: what is kept may serve training later.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._positions = key, interpolate(tokens, height, width)
        return kept[1]

    def embed_text(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D_T"]:
        """Word and position embeddings (F_T^0)."""
        return self.clip.text_model.embeddings(input_ids=input_ids)

    def image_step(
        self,
        step: int,
        tokens: Float[Tensor, "I tokens D_IC"],
        prompts: Float[Tensor, "B n D_IC"],
        index: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B tokens D_IC"]:
        """One lock step of the image tower (Eq. 6); the prompts' own outputs are dropped.

        Args:
            step: which one.
            tokens: the state before it.
            prompts: put before the tokens.
            index: the image that each row of prompts goes with, where tokens are given once per image; None where
                they are given once per row.
        """
        per_step = self.image_layers_per_step
        layers = self.clip.vision_model.encoder.layers[step * per_step : (step + 1) * per_step]
        return self._advance(layers, prompts, tokens, None, index)

    def text_step(
        self, step: int, tokens: Float[Tensor, "B T D_T"], prompts: Float[Tensor, "B n D_T"]
    ) -> Float[Tensor, "B T D_T"]:
        """One lock step of the text tower (Eq. 5) under a causal mask in which every word sees every prompt."""
        per_step = self.text_layers_per_step
        layers = self.clip.text_model.encoder.layers[step * per_step : (step + 1) * per_step]
        return self._advance(layers, prompts, tokens, causal_mask(prompts.shape[1] + tokens.shape[1], tokens))

    def _advance(
        self,
        layers: nn.ModuleList,
        prompts: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The tokens after some layers in front of which the prompts were put."""
        last = len(layers) - 1
        for number, layer in enumerate(layers):
            prompts, tokens = maybe_recomputed(
                self.recompute,
                self._layer,
                layer,
                prompts,
                tokens,
                mask,
                index if number == 0 else None,
                number == last,
            )
        return tokens

    def finish_image(self, tokens: Float[Tensor, "B tokens D_IC"]) -> Float[Tensor, "B tokens D_IC"]:
        """CLIP's last norm, applied to every token."""
        return self.clip.vision_model.post_layernorm(tokens)

    def finish_text(self, tokens: Float[Tensor, "B T D_T"]) -> Float[Tensor, "B T D_T"]:
        """CLIP's last norm."""
        return self.clip.text_model.final_layer_norm(tokens)


def _layer(
    layer: CLIPEncoderLayer,
    prompts: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
    drop_prompts: bool,
) -> tuple[Tensor, Tensor]:
    """One layer over [prompts; tokens]: transformers' own, without what is thrown away or the same for several rows.

    Prompts whose outputs are dropped give keys and values only. Where tokens are given once per image, so are their
    queries, keys and values computed.
    """
    attention, count = layer.self_attn, prompts.shape[1]
    normed = layer.layer_norm1(tokens)
    q, k, v = by_whole_blocks(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    if index is not None:
        tokens, q, k, v = tokens[index], q[index], k[index], v[index]
    if count:
        normed = layer.layer_norm1(prompts)
        k = torch.cat([attention.k_proj(normed), k], dim=1)
        v = torch.cat([attention.v_proj(normed), v], dim=1)
        if not drop_prompts:
            q = torch.cat([attention.q_proj(normed), q], dim=1)
            tokens = torch.cat([prompts, tokens], dim=1)
        elif mask is not None:
            mask = mask[:, :, count:]
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    attended = attend(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    state = tokens + by_whole_blocks(attended.transpose(1, 2).flatten(2), attention.out_proj)[0]
    state = state + by_whole_blocks(layer.layer_norm2(state), partial(_feed_forward, layer.mlp))[0]
    if drop_prompts:
        return state[:, :0], state
    return state[:, :count], state[:, count:]


def _feed_forward(mlp: CLIPMLP, x: Tensor) -> Tensor:
    """The layer's perceptron; CLIP's x sigmoid(1.702 x) is silu(1.702 x) / 1.702, which is one operation.

    The scales are applied where the tensors are narrow.
    """
    if not isinstance(mlp.activation_fn, QuickGELUActivation):
        return mlp(x)
    scaled, bias = QUICK_GELU * x, QUICK_GELU * mlp.fc1.bias
    if takes_layers_by_onednn(x, mlp.fc1.weight):
        hidden = onednn_product(scaled, mlp.fc1.weight, bias, "swish")
    else:
        hidden = F.silu(F.linear(scaled, mlp.fc1.weight, bias))
    return F.linear(hidden, mlp.fc2.weight) / QUICK_GELU + mlp.fc2.bias


def causal_mask(length: int, like: Tensor) -> Float[Tensor, "1 1 length length"]:
    """Additive mask: 0 where a position may be seen, the dtype's lowest number elsewhere."""
    lowest = torch.finfo(like.dtype).min
    return torch.full((length, length), lowest, dtype=like.dtype, device=like.device).triu(1)[None, None]
