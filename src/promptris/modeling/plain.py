"""The same model computed the plain way: the reference that every faster path is held against."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamVisionEncoder

from promptris.config import PromptName
from promptris.modeling.clip_towers import causal_mask
from promptris.modeling.cross_modal_prompting import PromptGenerator
from promptris.modeling.prompt_ris import PromptRIS
from promptris.processing import normalised
from promptris.structures import ExpressionBatch, ImageBatch, ImageFeatures, PromptRISOutput

Attention = Literal["eager", "sdpa"]


class PlainPromptRIS:
    """A model with its towers computed by transformers' own layers, prompts by whole attentions, nothing shared.

    Weights are the model's own. Decoders are too: they have no faster path but that of their linear layers, which
    `promptris.ops.onednn.inference` takes.

    Args:
        model: whose weights these are.
        attention: transformers' implementation: "eager" writes every score down, "sdpa" is torch's fused one.
    """

    def __init__(self, model: PromptRIS, attention: Attention = "sdpa") -> None:
        self.model, self.attention = model, attention
        self.sam_encoder = plain_sam_encoder(model.sam.sam, attention)

    def encode_image(self, images: ImageBatch) -> ImageFeatures:
        """What `PromptRIS.encode_image` is."""
        ready = normalised(images, next(self.model.parameters()).dtype)
        embeddings = None
        if ready.sam_pixels is not None:
            embeddings = self.sam_encoder(ready.sam_pixels).last_hidden_state
        tokens = self.model.clip.embed_image(ready.clip_pixels)
        for step in range(self.model.prompting.first_step):
            tokens = self.image_step(step, tokens, tokens[:, :0])
        return ImageFeatures(tokens, embeddings)

    def __call__(
        self,
        features: ImageFeatures,
        expressions: ExpressionBatch,
        prompts: tuple[PromptName, ...] | None = None,
    ) -> PromptRISOutput:
        """What `PromptRIS.forward` is."""
        patch_tokens, words = self.encode_expressions(features.clip_tokens, expressions)
        return self.model.answer(patch_tokens, words, features, expressions, prompts)

    def encode_expressions(
        self, clip_tokens: Float[Tensor, "I tokens D_IC"], expressions: ExpressionBatch
    ) -> tuple[Float[Tensor, "B N_C D_IC"], Float[Tensor, "B T D_T"]]:
        """What `PromptRIS.encode_expressions` is (Eq. 5 and 6), one row per expression throughout."""
        clip, prompting = self.model.clip, self.model.prompting
        image, words = clip_tokens[expressions.image_index], clip.embed_text(expressions.input_ids)
        for step in range(clip.depth):
            to_text, to_image = words[:, :0], image[:, :0]
            if step >= prompting.first_step:
                to_text = _prompts(prompting.v2l[step], image[:, 1:], None)
                to_image = _prompts(prompting.l2v[step], words, expressions.word_mask)
                image = self.image_step(step, image, to_image)
            words = self.text_step(step, words, to_text)
        return clip.finish_image(image[:, 1:]), clip.finish_text(words)

    def image_step(self, step: int, tokens: Tensor, prompts: Tensor) -> Tensor:
        """What `ClipTowers.image_step` is."""
        tower, per_step = self.model.clip.clip.vision_model, self.model.clip.image_layers_per_step
        return self._advance(tower, step * per_step, per_step, tokens, prompts, None)

    def text_step(self, step: int, tokens: Tensor, prompts: Tensor) -> Tensor:
        """What `ClipTowers.text_step` is."""
        tower, per_step = self.model.clip.clip.text_model, self.model.clip.text_layers_per_step
        mask = causal_mask(prompts.shape[1] + tokens.shape[1], tokens)
        return self._advance(tower, step * per_step, per_step, tokens, prompts, mask)

    def _advance(
        self, tower: Any, first: int, count: int, tokens: Tensor, prompts: Tensor, mask: Tensor | None
    ) -> Tensor:
        before = tower.config._attn_implementation
        tower.config._attn_implementation = self.attention
        try:
            state = torch.cat([prompts, tokens], dim=1)
            for layer in tower.encoder.layers[first : first + count]:
                state = layer(state, mask)
        finally:
            tower.config._attn_implementation = before
        return state[:, prompts.shape[1] :]


def plain_sam_encoder(sam: SamModel, attention: Attention) -> SamVisionEncoder:
    """transformers' image encoder with another implementation of attention, around the same weights."""
    config = type(sam.config.vision_config)(**sam.config.vision_config.to_dict())
    config._attn_implementation = attention
    with torch.device("meta"):
        encoder = SamVisionEncoder(config)
    encoder.load_state_dict(sam.vision_encoder.state_dict(), assign=True)
    return encoder.eval()


def _prompts(generator: torch.nn.Module, context: Tensor, mask: Tensor | None) -> Tensor:
    if not isinstance(generator, PromptGenerator):
        prompts: Tensor = generator(context, mask)
        return prompts
    attention = generator.attention
    normed = generator.context_norm(context)
    q, k, v = (
        x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for x in (
            attention.q_proj(generator.tokens).expand(len(context), -1, -1),
            attention.k_proj(normed),
            attention.v_proj(normed),
        )
    )
    allowed = None if mask is None else mask[:, None, None, :]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    answer: Tensor = attention.out_proj(attended.transpose(1, 2).flatten(2))
    return answer
