"""Cross-modal prompting (CMP): each CLIP tower is prompted from the other one's state, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from promptris.modeling.attention import CrossAttention
from promptris.modeling.recomputation import maybe_recomputed


class PromptGenerator(nn.Module):
    """n learnable tokens that query one modality and become prompts for the other (Eq. 5, Eq. 6).

    Args:
        num_prompts: n.
        context_dim: width of the modality that is read; the learnable tokens have it too.
        out_dim: width of the tower that is prompted.
        inner_dim: attention width.
        heads: attention heads.
    """

    def __init__(self, num_prompts: int, context_dim: int, out_dim: int, inner_dim: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_prompts, context_dim))
        self.context_norm = nn.LayerNorm(context_dim)
        self.attention = CrossAttention(context_dim, context_dim, out_dim, inner_dim, heads)

    def forward(
        self, context: Float[Tensor, "B N D_k"], context_mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B n D_o"]:
        """Prompts from the context's tokens; masked tokens have no influence."""
        return self.attention.attend_with_few(self.tokens, self.context_norm(context), context_mask)


class NoPrompts(nn.Module):
    """A direction that is switched off: zero prompts of the right width."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def forward(
        self, context: Float[Tensor, "B N D_k"], context_mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B n D_o"]:
        """[B, 0, D_o]."""
        return context.new_zeros(context.shape[0], 0, self.out_dim)


class CrossModalPrompting(nn.Module):
    """Prompt generators of all steps, in both directions.

    Args:
        depth: lock steps K of the two towers.
        image_dim: D_IC.
        text_dim: D_T.
        v2l_prompts: vision-to-language prompts per step; 0 switches the direction off.
        l2v_prompts: language-to-vision prompts per step; 0 switches the direction off.
        heads: attention heads.
        first_step: steps before it have no prompts.

    Attributes:
        recompute: keep only the states that are read for the backward pass, not what is made of them.
    """

    def __init__(
        self,
        depth: int,
        image_dim: int,
        text_dim: int,
        v2l_prompts: int,
        l2v_prompts: int,
        heads: int,
        first_step: int = 0,
    ) -> None:
        super().__init__()
        self.recompute = False
        self._generate = _generate

        def generator(step: int, num_prompts: int, context_dim: int, out_dim: int) -> nn.Module:
            if num_prompts == 0 or step < first_step:
                return NoPrompts(out_dim)
            return PromptGenerator(num_prompts, context_dim, out_dim, inner_dim=text_dim, heads=heads)

        self.first_step = first_step
        self.v2l = nn.ModuleList(generator(step, v2l_prompts, image_dim, text_dim) for step in range(depth))
        self.l2v = nn.ModuleList(generator(step, l2v_prompts, text_dim, image_dim) for step in range(depth))

    def text_prompts(self, step: int, patch_tokens: Float[Tensor, "B N_C D_IC"]) -> Float[Tensor, "B n D_T"]:
        """T_V2L of a step from the image's patch tokens, [CLS] left out (Eq. 5)."""
        return maybe_recomputed(self.recompute, self._generate, self.v2l[step], patch_tokens)

    def image_prompts(
        self, step: int, words: Float[Tensor, "B T D_T"], word_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B n D_IC"]:
        """T_L2V of a step from the words, padding masked out (Eq. 6)."""
        return maybe_recomputed(self.recompute, self._generate, self.l2v[step], words, word_mask)

    def compile_generators(self, **options: Any) -> None:
        """Let `torch.compile` have the generators, with its options; what it compiles serves all steps."""
        self._generate = torch.compile(_generate, **options)


def _generate(generator: nn.Module, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
    prompts: Tensor = generator(context, context_mask)
    return prompts
