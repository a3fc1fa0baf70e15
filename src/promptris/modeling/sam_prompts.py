"""What CLIP tells SAM: text prompts, and the choice of which prompts a sample has (Eq. 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from promptris.modeling.attention import CrossAttention, FeedForward
from promptris.modeling.sam_adapter import ABSENT, BOX_CORNERS, SamAdapter
from promptris.ops.points import gumbel_one_hot, highest_position


@dataclass
class Corrections:
    """What a person adds to the automatic prompts.

    Attributes:
        points: [B, M, 2] clicks, (x, y) as fractions of the image.
        labels: [B, M] 1 foreground, 0 background, -1 not there; a box may also be given as two of the points,
            labelled 2 (top left) and 3 (bottom right).
        boxes: [B, 2, 2] top-left and bottom-right corners, (x, y) as fractions of the image; or None.
    """

    points: Float[Tensor, "B M 2"]
    labels: Int[Tensor, "B M"]
    boxes: Float[Tensor, "B 2 2"] | None = None


class TextPromptBlock(nn.Module):
    """Self-attention over words, cross-attention to SAM's image features, feed-forward; pre-norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.ffn_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = CrossAttention(dim, dim, dim, dim, heads)
        self.cross_attention = CrossAttention(dim, dim, dim, dim, heads)
        self.ffn = FeedForward(dim, 4 * dim)

    def forward(
        self,
        words: Float[Tensor, "B T D_S"],
        word_mask: Bool[Tensor, "B T"],
        image: Float[Tensor, "B N_S D_S"],
        image_code: Float[Tensor, "N_S D_S"],
    ) -> Float[Tensor, "B T D_S"]:
        """The updated words."""
        normed = self.self_norm(words)
        words = words + self.self_attention(normed, normed, word_mask)
        words = words + self.cross_attention(self.cross_norm(words), image, context_code=image_code)
        return words + self.ffn(self.ffn_norm(words))


class TextPrompter(nn.Module):
    """P_text: CLIP's words turned into SAM prompt tokens, conditioned on SAM's image features.

    Args:
        text_dim: D_T.
        dim: D_S.
        layers: number of blocks.
        heads: attention heads.
    """

    def __init__(self, text_dim: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(text_dim, dim)
        self.blocks = nn.ModuleList(TextPromptBlock(dim, heads) for _ in range(layers))
        self.output_norm = nn.LayerNorm(dim)

    def forward(
        self,
        text_tokens: Float[Tensor, "B T D_T"],
        word_mask: Bool[Tensor, "B T"],
        sam_embeddings: Float[Tensor, "B D_S H_S W_S"],
        image_code: Float[Tensor, "1 D_S H_S W_S"],
    ) -> Float[Tensor, "B T D_S"]:
        """[B, T, D_S]; rows of padding words carry no meaning and must be masked by the reader."""
        image = sam_embeddings.flatten(2).transpose(1, 2)
        code = image_code[0].flatten(1).transpose(0, 1)
        words = self.input_proj(text_tokens)
        for block in self.blocks:
            words = block(words, word_mask, image, code)
        return self.output_norm(words)


def point_position(
    sam: SamAdapter,
    logits: Float[Tensor, "B H W"],
    sample: bool | Float[Tensor, "B P"],
    temperature: float,
) -> tuple[Float[Tensor, "B D_S"], Int[Tensor, " B"]]:
    """e_p of Eq. 3 and the index of the chosen position.

    Args:
        sam: gives the position embeddings E.
        logits: S_C, [B, 4H_S, 4W_S].
        sample: Gumbel-Softmax with a straight-through gradient (training) instead of the highest position; a
            tensor is the Gumbel noise to use.
        temperature: of the Gumbel-Softmax.
    """
    flat = logits.flatten(1)
    if sample is not False:
        one_hot = gumbel_one_hot(flat, temperature, noise=None if sample is True else sample)
        return one_hot @ sam.position_grid().to(one_hot.dtype), one_hot.argmax(dim=1)
    index = highest_position(flat)
    return sam.embed_position(sam.cell_centres(index)).to(flat.dtype), index


def sparse_prompts(
    sam: SamAdapter,
    position: Float[Tensor, "B D_S"],
    text: Float[Tensor, "B T D_S"],
    word_mask: Bool[Tensor, "B T"],
    keep: Bool[Tensor, "B 3"],
    corrections: Corrections | None,
) -> tuple[Float[Tensor, "B S D_S"], Bool[Tensor, "B S"]]:
    """[point; clicks; padding point or box; words] and which of them each sample has.

    Args:
        sam: gives label embeddings and the padding point.
        position: e_p.
        text: P_text.
        word_mask: [B, T] real words.
        keep: [B, 3] which of mask, point and text prompt each sample has.
        corrections: a person's, or None.
    """
    batch = position.shape[0]
    foreground = torch.ones(batch, 1, dtype=torch.long, device=position.device)
    points = [sam.click_embeddings(position[:, None], foreground)]
    present = [keep[:, 1:2]]
    if corrections is not None:
        points.append(sam.click_embeddings(sam.embed_position(corrections.points), corrections.labels))
        present.append(corrections.labels != ABSENT)
    if corrections is not None and corrections.boxes is not None:
        points.append(sam.box_embeddings(corrections.boxes))
        present.append(torch.ones(batch, 2, dtype=torch.bool, device=position.device))
    else:
        points.append(sam.padding_point().expand(batch, 1, -1))
        padded = torch.cat(present, dim=1).any(dim=1, keepdim=True)
        if corrections is not None:
            # The first column keeps the axis from being empty, of which runtimes disagree whether any is true.
            corner = F.pad(corrections.labels >= BOX_CORNERS[0], (1, 0), value=False)
            padded = padded & ~corner.any(dim=1, keepdim=True)
        present.append(padded)
    return torch.cat([*points, text], dim=1), torch.cat([*present, keep[:, 2:3] & word_mask], dim=1)
