"""Cross-modal decoder (Eq. 1) and the coarse response map (Eq. 2)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPModel

from promptris.errors import InputError
from promptris.modeling.attention import CrossAttention, FeedForward


class CrossModalDecoderLayer(nn.Module):
    """One layer each way: image tokens read the words while the words read the image, then feed-forward.

    Args:
        dim: D_C.
        heads: attention heads.
        ffn_dim: hidden width of the feed-forward blocks.
        self_attention: image tokens also attend to each other first.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, self_attention: bool) -> None:
        super().__init__()
        self.image_self_norm = nn.LayerNorm(dim) if self_attention else None
        self.image_self = CrossAttention(dim, dim, dim, dim, heads) if self_attention else None
        self.image_norm, self.text_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.image_to_text = CrossAttention(dim, dim, dim, dim, heads)
        self.text_to_image = CrossAttention(dim, dim, dim, dim, heads)
        self.image_ffn_norm, self.text_ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.image_ffn, self.text_ffn = FeedForward(dim, ffn_dim), FeedForward(dim, ffn_dim)

    def forward(
        self,
        image: Float[Tensor, "B N_C D_C"],
        text: Float[Tensor, "B T D_C"],
        word_mask: Bool[Tensor, "B T"],
        code: Float[Tensor, "_ D_C"],
    ) -> tuple[Float[Tensor, "B N_C D_C"], Float[Tensor, "B T D_C"]]:
        """The updated streams; `code` is added to the image tokens wherever they are read."""
        if self.image_self is not None and self.image_self_norm is not None:
            normed = self.image_self_norm(image) + code
            image = image + self.image_self(normed, normed)
        image_normed, text_normed = self.image_norm(image) + code, self.text_norm(text)
        image = image + self.image_to_text(image_normed, text_normed, word_mask)
        text = text + self.text_to_image(text_normed, image_normed)
        image = image + self.image_ffn(self.image_ffn_norm(image) + code)
        text = text + self.text_ffn(self.text_ffn_norm(text))
        return image, text

    def residual_outputs(self) -> list[nn.Linear]:
        """The layers that write into the residual streams."""
        blocks = [self.image_to_text, self.text_to_image, self.image_self, self.image_ffn, self.text_ffn]
        return [block.out_proj for block in blocks if block is not None]


class CrossModalDecoder(nn.Module):
    """Fuses CLIP's image and text tokens and answers with a response map per expression.

    Args:
        image_dim: D_IC.
        text_dim: D_T.
        dim: D_C.
        layers: layers in each direction.
        heads: attention heads.
        ffn_ratio: feed-forward width over `dim`.
        self_attention: see `CrossModalDecoderLayer`.
        position_signal: every block reads the image tokens with a 2-D sine-cosine code added; the tokens
            themselves stay without it, so the response map does too.
        initial_bias: initial value of the map's bias.

    Raises:
        InputError: when `dim` does not fit the heads or the position signal.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        dim: int,
        layers: int,
        heads: int,
        ffn_ratio: int = 4,
        self_attention: bool = False,
        position_signal: bool = False,
        initial_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if position_signal and dim % 4:
            raise InputError(
                f"decoder.position_signal needs a decoder.dim that is a multiple of 4, not {dim}"
            )
        self.dim = dim
        self.position_signal = position_signal
        self.image_proj = nn.Linear(image_dim, dim)
        self.text_proj = nn.Linear(text_dim, dim)
        self.layers = nn.ModuleList(
            CrossModalDecoderLayer(dim, heads, ffn_ratio * dim, self_attention) for _ in range(layers)
        )
        self.bias = nn.Parameter(torch.tensor(float(initial_bias)))

    def forward(
        self,
        image_tokens: Float[Tensor, "B N_C D_IC"],
        text_tokens: Float[Tensor, "B T D_T"],
        word_mask: Bool[Tensor, "B T"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "B H_C W_C"]:
        """Coarse logits S'_C (Eq. 1 and 2).

        Args:
            image_tokens: [B, N_C, D_IC] patch tokens after CLIP's last norm.
            text_tokens: [B, T, D_T] word tokens after CLIP's last norm.
            word_mask: [B, T]; the last true position of a row is its [EOS].
            grid: (H_C, W_C), with H_C·W_C = N_C.
        """
        image, text = self.image_proj(image_tokens), self.text_proj(text_tokens)
        code = (
            sine_cosine_code(grid, self.dim, image) if self.position_signal else image.new_zeros(1, self.dim)
        )
        for layer in self.layers:
            image, text = layer(image, text, word_mask, code)
        sentence = text[torch.arange(text.shape[0], device=text.device), last_word(word_mask)]
        response = torch.einsum("bnd,bd->bn", image, sentence) / math.sqrt(self.dim) + self.bias
        return response.unflatten(1, grid)

    @torch.no_grad()
    def start_from_clip(self, clip: CLIPModel, residual_scale: float = 0.05) -> None:
        """Begin as CLIP's own similarity map: its projections, with quiet residual branches.

        The projections are scaled so that the map starts at CLIP's temperature: token norms are estimated
        from the last norms' weights, which needs no data.

        Raises:
            InputError: when CLIP's projection width is not this decoder's.
        """
        if clip.config.projection_dim != self.dim:
            raise InputError(
                f"start_from_clip needs decoder.dim = CLIP's projection width {clip.config.projection_dim}, "
                f"not {self.dim}"
            )
        wanted = (math.exp(clip.logit_scale.item()) * math.sqrt(self.dim)) ** 0.5
        towers = (
            (self.image_proj, clip.visual_projection, clip.vision_model.post_layernorm),
            (self.text_proj, clip.text_projection, clip.text_model.final_layer_norm),
        )
        for linear, projection, norm in towers:
            spread = (projection.weight * norm.weight).square().sum()
            typical_norm = (spread + (projection.weight @ norm.bias).square().sum()).sqrt()
            linear.weight.copy_(projection.weight * (wanted / typical_norm))
            linear.bias.zero_()
        for layer in self.layers:
            assert isinstance(layer, CrossModalDecoderLayer)
            for writer in layer.residual_outputs():
                writer.weight.mul_(residual_scale)
                writer.bias.mul_(residual_scale)


def last_word(word_mask: Bool[Tensor, "B T"]) -> Tensor:
    """[B] position of each row's last true entry: [EOS]."""
    positions = torch.arange(word_mask.shape[1], device=word_mask.device)
    return (positions * word_mask).argmax(dim=1)


def sine_cosine_code(grid: tuple[int, int], dim: int, like: Tensor) -> Float[Tensor, "N D"]:
    """2-D sine-cosine position code of a grid, [H·W, dim], each value in [-1, 1].

    A quarter of the width each for sine and cosine of y and of x; `dim` must be a multiple of 4.
    """
    # Frequencies from a quarter of a turn over the image up to one turn per two cells, geometric between.
    count = dim // 4
    highest = max(grid) / 2
    exponents = torch.arange(count, device=like.device, dtype=torch.float32) / max(count - 1, 1)
    frequencies = 0.25 * (highest / 0.25) ** exponents * 2 * math.pi
    ys, xs = (
        (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) / side * 2 - 1 for side in grid
    )
    codes = [(axis[:, None] * frequencies / 2) for axis in (ys, xs)]
    rows = torch.cat([codes[0].sin(), codes[0].cos()], dim=1)[:, None].expand(-1, grid[1], -1)
    columns = torch.cat([codes[1].sin(), codes[1].cos()], dim=1)[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(like.dtype)
