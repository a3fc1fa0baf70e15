"""CLIP and SAM as they were published, side by side: all that mask classification needs."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from promptris.modeling.base_weights import load_clip, load_sam
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.sam_adapter import SamAdapter
from promptris.modeling.tokenizer import load_tokenizer
from promptris.processing import Processor


class FrozenTowers(nn.Module):
    """A CLIP and a SAM, in evaluation mode; they need not fit each other.

    Args:
        clip: transformers' CLIP; used as it is, not copied.
        sam: SAM.
        tokenizer: transformers' CLIPTokenizer that goes with `clip`.
    """

    def __init__(self, clip: CLIPModel, sam: SamAdapter, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.clip, self.sam, self.tokenizer = clip, sam, tokenizer
        self.eval()

    @classmethod
    def of(cls, model: PromptRIS) -> FrozenTowers:
        """Those that a model is built around, without anything it has learned."""
        return cls(model.clip.clip, model.sam, model.tokenizer)

    @classmethod
    def load(cls, clip: str | Path, sam: str | Path) -> FrozenTowers:
        """From base weights: transformers folders, hub ids or the original files.

        Raises:
            InputError: when there is no such source.
            WeightsError: when it holds something else.
        """
        return cls(load_clip(clip).module, SamAdapter(load_sam(sam).module), load_tokenizer(clip))

    def processor(self) -> Processor:
        """Prepares images and expressions; CLIP's square is the one it was trained at."""
        vision, text = self.clip.config.vision_config, self.clip.config.text_config
        return Processor(self.tokenizer, vision.image_size, self.sam.image_size, text.max_position_embeddings)
