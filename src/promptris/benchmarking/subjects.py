"""What is measured: the model, and the other ways to an answer that a user has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptris.modeling.build import build_random
from promptris.modeling.plain import PlainPromptRIS
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.onednn import inference
from promptris.placement import place
from promptris.predictor import Predictor
from promptris.processing import Processor


def load_subject(model: str, random: bool, device: str, dtype: str) -> PromptRIS:
    """A model by name; with `random`, a preset's sizes with random weights."""
    return place(build_random(model) if random else PromptRIS.from_pretrained(model), device, dtype)


def plain_answer(
    plain: PlainPromptRIS, processor: Processor, image: NDArray[np.uint8], texts: Sequence[str], shared: bool
) -> list[Tensor]:
    """Masks by the plain way: the image encoded once for all texts, or again for each (the naive way)."""
    size = (image.shape[0], image.shape[1])
    device = next(plain.model.parameters()).device
    masks: list[Tensor] = []
    with torch.inference_mode():
        for group in [list(texts)] if shared else [[text] for text in texts]:
            features = plain.encode_image(processor.images([image]).to(device))
            for text in group:
                output = plain(features, processor.expressions([text]).to(device))
                assert output.mask_logits is not None
                masks.append(processor.restore(output.mask_logits, size)[0].sigmoid() > 0.5)
    return masks


def our_answer(predictor: Predictor, image: NDArray[np.uint8], texts: Sequence[str]) -> list[Any]:
    """The image set and every text answered."""
    return list(predictor.set_image(image).predict(list(texts)))


def image_tower(model: PromptRIS, pixels: Tensor, prompts: Tensor) -> Callable[[], Tensor]:
    """CLIP's image tower with prompts [1, n, D_IC] at every step, our way."""

    def run() -> Tensor:
        with inference():
            tokens = model.clip.embed_image(pixels)
            for step in range(model.clip.depth):
                tokens = model.clip.image_step(step, tokens, prompts)
            return model.clip.finish_image(tokens)

    return run


def plain_image_tower(plain: PlainPromptRIS, pixels: Tensor, prompts: Tensor) -> Callable[[], Tensor]:
    """The same by transformers' layers."""

    def run() -> Tensor:
        with torch.inference_mode():
            tokens = plain.model.clip.embed_image(pixels)
            for step in range(plain.model.clip.depth):
                tokens = plain.image_step(step, tokens, prompts)
            return plain.model.clip.finish_image(tokens)

    return run


def clipseg(device: torch.device, image_size: int = 352) -> Callable[[NDArray[np.uint8], int], Tensor]:
    """CLIPSeg at its own size (random weights; rates do not depend on them): an image and so many texts -> logits.

    It takes no image once for several texts, so each text brings the image along.
    """
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig()
    config.vision_config.image_size = image_size
    config.vision_config.patch_size = 16
    config.extract_layers = [3, 6, 9]
    model = CLIPSegForImageSegmentation(config).eval().to(device)

    def run(image: NDArray[np.uint8], texts: int) -> Tensor:
        with torch.inference_mode():
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
            square = torch.nn.functional.interpolate(pixels.float() / 255, (image_size, image_size))
            ids = torch.randint(1, 400, (texts, 9), device=device)
            ids[:, 0], ids[:, -1] = 49406, 49407
            logits: Tensor = model(input_ids=ids, pixel_values=square.repeat(texts, 1, 1, 1)).logits
            return logits

    return run
