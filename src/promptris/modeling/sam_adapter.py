"""SAM with prompts of our own making. The only file that knows transformers' SAM from inside.

Coordinates given to this file are fractions of the image in [0, 1], the frame of SAM's position embedding: a
click at pixel (x, y) of SAM's own prompt encoder is ((x + 0.5) / size, (y + 0.5) / size) here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamModel
from transformers.models.sam.modeling_sam import (
    SamAttention,
    SamMaskDecoder,
    SamMaskEmbedding,
    SamTwoWayAttentionBlock,
)

from promptris.modeling.recomputation import maybe_recomputed
from promptris.modeling.sam_encoder import encode_image, encode_images, encode_on_gpu, fits_gpu
from promptris.ops.patches import embed_patches
from promptris.ops.plain import plain_wanted

BACKGROUND, FOREGROUND = 0, 1
"""Labels of a click, as SAM numbers them."""
BOX_CORNERS = (2, 3)
"""The same of a box's top-left and bottom-right corner."""
TOGETHER = 8
"""Images that a GPU encodes at once."""
ABSENT = -1
"""Label of a click that is not there: where expressions of one batch have different numbers of them."""


class SamAdapter(nn.Module):
    """SAM's parts as functions of tensors, gradients flowing through all of them.

    Its mask decoder runs with a mask over the prompt tokens, which transformers' own does not offer: prompts
    that a sample does not have leave no trace in its result.

    Args:
        sam: transformers' model; used as it is, not copied.

    Attributes:
        recompute: keep only what goes into each layer of the mask decoder for the backward pass, and compute its
            inside again there.
    """

    def __init__(self, sam: SamModel) -> None:
        super().__init__()
        self.sam = sam
        self.recompute = False
        self._encode_on_gpu, self._embed_mask = encode_on_gpu, _embed_mask
        self._two_way_block, self._final_attention, self._first_mask = (
            _two_way_block,
            _final_attention,
            _first_mask,
        )
        self._grid_cache: tuple[tuple[object, ...], Tensor] | None = None

    @property
    def dim(self) -> int:
        """D_S."""
        return self.sam.config.prompt_encoder_config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Type of the decoder's weights."""
        return self.sam.mask_decoder.iou_token.weight.dtype

    @contextmanager
    def exact_positions(self) -> Iterator[None]:
        """Whatever type the model is converted to within, the position matrix keeps its own.

        Its products are angles of many turns, and coordinates rounded to half precision are cells off.
        """
        owners = (self.sam.shared_image_embedding, self.sam.prompt_encoder.shared_embedding)
        before = [owner.positional_embedding.detach().clone() for owner in owners]
        try:
            yield
        finally:
            for owner, matrix in zip(owners, before, strict=True):
                owner.positional_embedding.data = matrix.to(owner.positional_embedding.device)

    @property
    def image_size(self) -> int:
        """Side of the square image SAM sees, in pixels."""
        return self.sam.config.vision_config.image_size

    @property
    def grid_size(self) -> int:
        """H_S = W_S."""
        return self.image_size // self.sam.config.vision_config.patch_size

    @property
    def mask_size(self) -> int:
        """Side of mask prompts and of predicted masks: 4·H_S."""
        return 4 * self.grid_size

    def compile_encoder(self, **options: Any) -> None:
        """Let `torch.compile` have the image encoder, with its options; the first image then takes long."""
        self._encode_on_gpu = torch.compile(encode_on_gpu, **options)
        self.sam.vision_encoder.compile(**options)

    def compile_decoder(self, **options: Any) -> None:
        """Let `torch.compile` have the mask prompt and the mask decoder, with its options."""
        self._embed_mask = torch.compile(_embed_mask, **options)
        self._two_way_block = torch.compile(_two_way_block, **options)
        self._final_attention = torch.compile(_final_attention, **options)
        self._first_mask = torch.compile(_first_mask, **options)

    def encode_image(self, pixels: Float[Tensor, "I 3 s s"]) -> Float[Tensor, "I D_S H_S W_S"]:
        """Image features F_IS; they do not depend on any prompt, nor on the other images."""
        encoder = self.sam.vision_encoder
        if torch.is_grad_enabled() and next(encoder.parameters()).requires_grad:
            return self._encode_to_train(pixels)
        if plain_wanted():
            return encode_images(encoder, pixels)
        if pixels.is_cuda:
            encode = self._encode_on_gpu if fits_gpu(encoder, pixels) else encode_images
            return torch.cat([encode(encoder, some) for some in pixels.split(TOGETHER)])
        # After `compile_encoder()`, what was compiled.
        if encoder._compiled_call_impl is not None:
            return torch.cat([encoder(image).last_hidden_state for image in pixels.split(1)])
        # One after the other: several at once take more memory, and a CPU is not faster for it.
        return torch.cat([encode_image(encoder, image) for image in pixels.split(1)])

    def _encode_to_train(self, pixels: Tensor) -> Tensor:
        """The same by transformers' own layers, with gradients."""
        encoder = self.sam.vision_encoder
        state = encoder.patch_embed(pixels)
        if encoder.pos_embed is not None:
            state = state + encoder.pos_embed
        for layer in encoder.layers:
            state = maybe_recomputed(self.recompute, layer, state)
        features: Tensor = encoder.neck(state)
        return features

    def image_code(self) -> Float[Tensor, "1 D_S H_S W_S"]:
        """Position embedding of the image features' grid."""
        return self.sam.get_image_wide_positional_embeddings().to(self.dtype)

    def embed_position(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n D_S"]:
        """Position embedding of (x, y) fractions of the image."""
        # The products are angles: half precision would blur neighbouring cells into each other.
        with torch.autocast(points.device.type, enabled=False):
            return self.sam.prompt_encoder.shared_embedding(points).to(self.dtype)

    def cell_centres(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n 2"]:
        """Centres, as (x, y) fractions, of cells of the flattened 4H_S x 4W_S grid."""
        size = self.mask_size
        return (torch.stack([index % size, index // size], dim=-1) + 0.5) / size

    def position_grid(self) -> Float[Tensor, "P D_S"]:
        """E of Eq. 3: position embedding of every cell of the 4H_S x 4W_S grid, row by row.

        Computed when first needed and kept until SAM's position matrix changes or moves.
        """
        matrix = self.sam.prompt_encoder.shared_embedding.positional_embedding
        key = (matrix.data_ptr(), matrix._version, matrix.device, matrix.dtype)
        if self._grid_cache is None or self._grid_cache[0] != key:
            # Outside inference mode: the kept tensor may serve training later.
            with torch.inference_mode(False), torch.no_grad():
                index = torch.arange(self.mask_size**2, device=matrix.device)
                self._grid_cache = (key, self.embed_position(self.cell_centres(index)))
        return self._grid_cache[1]

    def click_embeddings(
        self, position: Float[Tensor, "B M D_S"], label: Int[Tensor, "B M"]
    ) -> Float[Tensor, "B M D_S"]:
        """Point prompts from position embeddings and labels: foreground, background, or a corner of a box.

        What an absent one gives means nothing, and must be masked by the reader.
        """
        labels = (BACKGROUND, FOREGROUND, *BOX_CORNERS)
        table = torch.cat([self.sam.prompt_encoder.point_embed[i].weight for i in labels])
        return position + table[label.clamp(min=0)]

    def box_embeddings(self, boxes: Float[Tensor, "B 2 2"]) -> Float[Tensor, "B 2 D_S"]:
        """Box prompts from their top-left and bottom-right corners, (x, y) fractions of the image."""
        corners = torch.cat([self.sam.prompt_encoder.point_embed[i].weight for i in BOX_CORNERS])
        return self.embed_position(boxes) + corners

    def padding_point(self) -> Float[Tensor, "1 D_S"]:
        """The token SAM appends to points when there is no box."""
        return self.sam.prompt_encoder.not_a_point_embed.weight

    def embed_mask(self, logits: Float[Tensor, "B H W"]) -> Float[Tensor, "B D_S H_S W_S"]:
        """Dense prompt from mask logits of side 4·H_S."""
        return self._embed_mask(self.sam.prompt_encoder.mask_embed, logits)

    def no_mask(self) -> Float[Tensor, "1 D_S 1 1"]:
        """Dense prompt that stands for "no mask given"."""
        return self.sam.prompt_encoder.no_mask_embed.weight[:, :, None, None]

    def knows_several_masks(self) -> bool:
        """Whether SAM was taught its three masks for an ambiguous point, and not the single one alone.

        What is behind the other mask tokens starts with biases of exactly 0, and keeps them when it is never used.
        """
        heads = list(self.sam.mask_decoder.output_hypernetworks_mlps)[1:]
        return any(bool(head.proj_out.bias.any()) for head in heads)

    def decode(
        self,
        image_embeddings: Float[Tensor, "B D_S H_S W_S"],
        dense_prompt: Float[Tensor, "B D_S H_S W_S"],
        sparse_prompt: Float[Tensor, "B S D_S"],
        sparse_mask: Bool[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B H W"], Float[Tensor, " B"]]:
        """Masks from prompts (Eq. 4), mask token 0 only, as `multimask_output=False`.

        Args:
            image_embeddings: F_IS of each expression's image.
            dense_prompt: P_mask, or the no-mask embedding.
            sparse_prompt: point, padding point and text tokens.
            sparse_mask: [B, S] false for tokens that are not there.

        Returns:
            mask logits [B, 4H_S, 4W_S] and predicted IoU [B].
        """
        decoder = self.sam.mask_decoder
        batch, _, *grid = image_embeddings.shape
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse_prompt], dim=1)
        present = F.pad(sparse_mask, (len(output_tokens), 0), value=True)

        image = (image_embeddings + dense_prompt).flatten(2).transpose(1, 2)
        code = self.image_code().flatten(2).transpose(1, 2).expand(batch, -1, -1)
        queries = tokens
        for block in decoder.transformer.layers:
            queries, image = maybe_recomputed(
                self.recompute, self._two_way_block, block, queries, image, tokens, code, present
            )
        queries = maybe_recomputed(
            self.recompute, self._final_attention, decoder, queries, image, tokens, code
        )
        mask_logits = maybe_recomputed(self.recompute, self._first_mask, decoder, queries[:, 1], image, grid)
        predicted_iou = decoder.iou_prediction_head(queries[:, 0])[:, 0]
        return mask_logits, predicted_iou


def _embed_mask(embed: SamMaskEmbedding, logits: Tensor) -> Tensor:
    """SAM's own layers; on a GPU with channels last, where all but the last of them are thin."""
    if not logits.is_cuda:
        return embed(logits[:, None])
    state = logits[:, None]
    for layer, norm in ((embed.conv1, embed.layer_norm1), (embed.conv2, embed.layer_norm2)):
        patches = embed_patches(layer, state)
        normed = F.layer_norm(patches, patches.shape[-1:], norm.weight, norm.bias, norm.eps)
        state = embed.activation(normed).permute(0, 3, 1, 2)
    return embed_patches(embed.conv3, state).permute(0, 3, 1, 2)


def _attend(
    attention: SamAttention, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """SAM's attention [B, Q, D] with padding keys masked out."""
    heads = attention.num_attention_heads
    q, k, v = (
        projection(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection, x in (
            (attention.q_proj, query),
            (attention.k_proj, key),
            (attention.v_proj, value),
        )
    )
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return attention.out_proj(
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    )


def _two_way_block(
    block: SamTwoWayAttentionBlock,
    queries: Tensor,
    image: Tensor,
    tokens: Tensor,
    code: Tensor,
    present: Tensor,
) -> tuple[Tensor, Tensor]:
    """One block of SAM's two-way transformer: tokens to tokens, tokens to image, image to tokens."""
    if block.skip_first_layer_pe:
        queries = _attend(block.self_attn, queries, queries, queries, present)
    else:
        coded = queries + tokens
        queries = queries + _attend(block.self_attn, coded, coded, queries, present)
    queries = block.layer_norm1(queries)

    attended = _attend(block.cross_attn_token_to_image, queries + tokens, image + code, image)
    queries = block.layer_norm2(queries + attended)
    queries = block.layer_norm3(queries + block.mlp(queries))

    attended = _attend(block.cross_attn_image_to_token, image + code, queries + tokens, queries, present)
    return queries, block.layer_norm4(image + attended)


def _final_attention(
    decoder: SamMaskDecoder, queries: Tensor, image: Tensor, tokens: Tensor, code: Tensor
) -> Tensor:
    """The tokens read the image once more."""
    final = decoder.transformer.final_attn_token_to_image
    queries = queries + _attend(final, queries + tokens, image + code, image)
    return decoder.transformer.layer_norm_final_attn(queries)


def _first_mask(decoder: SamMaskDecoder, token: Tensor, image: Tensor, grid: Sequence[int]) -> Tensor:
    """Mask logits [B, 4H_S, 4W_S] of the first mask token on the image features, upsampled four times."""
    features = image.transpose(1, 2).unflatten(2, grid)
    features = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(features)))
    features = decoder.activation(decoder.upscale_conv2(features))
    return torch.einsum("bc,bchw->bhw", decoder.output_hypernetworks_mlps[0](token), features)
