"""Image + expression -> tensors, and masks back to the image's own size: one path for every use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from promptris.errors import InputError
from promptris.images import MAX_PIXELS, ImageLike, load_image
from promptris.ops.resizing import resize_logits
from promptris.structures import ExpressionBatch, ImageBatch

__all__ = [
    "CLIP_MEAN",
    "CLIP_RESAMPLING",
    "CLIP_STD",
    "MASK_THRESHOLD",
    "MAX_PIXELS",
    "SAM_MEAN",
    "SAM_RESAMPLING",
    "SAM_STD",
    "ImageLike",
    "Processor",
    "check_expression",
    "load_image",
    "normalise",
    "normalised",
    "stretch",
]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_RESAMPLING: Literal["bicubic"] = "bicubic"
SAM_RESAMPLING: Literal["bilinear"] = "bilinear"
MASK_THRESHOLD = 0.5
"""A pixel belongs to the mask when its probability is above this, unless told otherwise."""


class Processor:
    """Prepares images and expressions for one model.

    Images are stretched to a square for each tower (bicubic for CLIP, bilinear for SAM, both antialiased), so
    the two grids stay aligned; nothing is flipped or cropped.

    Args:
        tokenizer: a transformers CLIPTokenizer.
        clip_size: side of CLIP's square, in pixels.
        sam_size: side of SAM's square, in pixels.
        context_length: longest expression in tokens, [SOS] and [EOS] included.
    """

    def __init__(self, tokenizer: Any, clip_size: int, sam_size: int, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.clip_size, self.sam_size = clip_size, sam_size
        self.context_length = context_length

    def images(self, images: Sequence[ImageLike], with_sam: bool = True) -> ImageBatch:
        """I images as uint8 squares, in channels-last memory; `normalised` makes them what the towers take.

        They stay uint8 until they are on the model's device: a quarter of the memory to fill and to move.

        Args:
            images: paths, bytes, PIL images or H x W x 3 uint8 RGB arrays.
            with_sam: whether to make SAM's squares too.

        Raises:
            InputError: one cannot be read; the message names it.
        """
        clip = torch.empty(len(images), self.clip_size, self.clip_size, 3, dtype=torch.uint8)
        sam = (
            torch.empty(len(images), self.sam_size, self.sam_size, 3, dtype=torch.uint8) if with_sam else None
        )
        for row, image in enumerate(images):
            pixels = load_image(image)
            clip[row] = stretch(pixels, self.clip_size, CLIP_RESAMPLING)
            if sam is not None:
                sam[row] = stretch(pixels, self.sam_size, SAM_RESAMPLING)
        return ImageBatch(clip.permute(0, 3, 1, 2), None if sam is None else sam.permute(0, 3, 1, 2))

    def enough(self, with_sam: bool = True) -> int:
        """Sides that `images` needs not exceed: for `load_image(..., at_least=...)` in training.

        Pixels of a photograph that was decoded no larger than needed are not quite the same, so prediction and
        evaluation decode in full.
        """
        return max(self.clip_size, self.sam_size if with_sam else 0)

    def expressions(
        self, expressions: Sequence[str], image_index: Sequence[int] | None = None
    ) -> ExpressionBatch:
        """B expressions as token ids.

        Args:
            expressions: the users' texts; one that is longer than the context is cut, with a warning.
            image_index: the image each is about; all about image 0 when not given. Whether they say anything
                is for the caller to check (`check_expression`): benchmarks hold a few empty sentences.
        """
        encoded = self.tokenizer(list(expressions), add_special_tokens=True, verbose=False)["input_ids"]
        longest = max((len(ids) for ids in encoded), default=2)
        if longest > self.context_length:
            which = next(e for e, ids in zip(expressions, encoded, strict=True) if len(ids) == longest)
            warnings.warn(
                f"expression {which[:60]!r} has {longest - 2} tokens; the model reads the first "
                f"{self.context_length - 2}",
                stacklevel=2,
            )
            last = self.tokenizer.eos_token_id
            encoded = [
                ids if len(ids) <= self.context_length else [*ids[: self.context_length - 1], last]
                for ids in encoded
            ]
            longest = self.context_length
        padding = self.tokenizer.pad_token_id
        padded = [ids + [padding] * (longest - len(ids)) for ids in encoded]
        input_ids = torch.tensor(padded, dtype=torch.long)
        lengths = torch.tensor([len(ids) for ids in encoded], dtype=torch.long)
        word_mask = torch.arange(longest) < lengths[:, None]
        index = [0] * len(encoded) if image_index is None else list(image_index)
        return ExpressionBatch(input_ids, word_mask, torch.tensor(index, dtype=torch.long))

    @staticmethod
    def restore(logits: Float[Tensor, "B h w"], size: tuple[int, int]) -> Float[Tensor, "B H W"]:
        """float32 logits at an image's own (height, width), undoing the stretch to a square."""
        return resize_logits(logits.float(), size)


def stretch(
    pixels: NDArray[np.uint8], side: int, how: Literal["bilinear", "bicubic"]
) -> UInt8[Tensor, "side side 3"]:
    """An image [H, W, 3] stretched to a square, antialiased.

    Fixed-point arithmetic on uint8 as in Pillow's `Image.resize`, but four to ten times as fast. The result
    differs from Pillow's by at most one level (of 255) on photographs and two on noise; only bicubic on
    images a hundred times as tall as wide differs more, as Pillow then shrinks along the other axis first.
    """
    if not (pixels.flags.c_contiguous and pixels.flags.writeable):  # which torch cannot share
        pixels = pixels.copy()
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    square = F.interpolate(image, size=(side, side), mode=how, antialias=True, align_corners=False)
    return square[0].permute(1, 2, 0)


def normalised(images: ImageBatch, dtype: torch.dtype = torch.float32) -> ImageBatch:
    """The batch as the towers take it, on the device where it is; floats count as normalised and are only cast."""
    clip, sam = images.clip_pixels, images.sam_pixels
    if clip.dtype == torch.uint8:
        clip = normalise(clip, CLIP_MEAN, CLIP_STD)
    if sam is not None and sam.dtype == torch.uint8:
        sam = normalise(sam, SAM_MEAN, SAM_STD)
    known = images.sam_embeddings
    return ImageBatch(
        clip.to(dtype), None if sam is None else sam.to(dtype), None if known is None else known.to(dtype)
    )


def normalise(
    pixels: UInt8[Tensor, "I 3 h w"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "I 3 h w"]:
    """(value / 255 - mean) / std per channel, float32, in channels-last memory."""
    rows = pixels.permute(0, 2, 3, 1).contiguous()
    # Whole rows at once: arithmetic over an innermost axis of three is several times slower.
    values = rows.view(*rows.shape[:2], -1).float()
    # Constants are filled in where they are needed: a GPU would have to wait for a copy.
    centre, spread = (
        torch.stack([torch.full((), x, device=values.device) for x in v]).repeat(rows.shape[2])
        for v in (mean, std)
    )
    torch.addcmul(-centre / spread, values, 1 / (255 * spread), out=values)
    return values.view(rows.shape).permute(0, 3, 1, 2)


def check_expression(expression: str) -> str:
    """The expression itself.

    Raises:
        InputError: when it is not text, holds no word, or is not valid Unicode.
    """
    if not isinstance(expression, str):
        raise InputError(f"an expression must be text, not {type(expression).__name__}")
    try:
        expression.encode()
    except UnicodeEncodeError:
        raise InputError(f"the expression {ascii(expression)[:60]} is not valid Unicode text") from None
    if not expression.strip():
        raise InputError("the expression is empty: describe what to segment, for example 'the red circle'")
    return expression
