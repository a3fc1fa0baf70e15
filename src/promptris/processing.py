"""Image + expression -> tensors, and masks back to the image's own size: one path for every use."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from promptris.errors import InputError
from promptris.ops.masks import resize_logits
from promptris.structures import ExpressionBatch, ImageBatch

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""


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
        """I images as normalised tensors; SAM's are left out where SAM is not run."""
        loaded = [Image.fromarray(load_image(image)) for image in images]
        clip = [self._square(image, self.clip_size, Image.Resampling.BICUBIC) for image in loaded]
        clip_pixels = normalise(torch.stack(clip), CLIP_MEAN, CLIP_STD)
        if not with_sam:
            return ImageBatch(clip_pixels)
        sam = [self._square(image, self.sam_size, Image.Resampling.BILINEAR) for image in loaded]
        return ImageBatch(clip_pixels, normalise(torch.stack(sam), SAM_MEAN, SAM_STD))

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
        input_ids = torch.full((len(encoded), longest), padding, dtype=torch.long)
        word_mask = torch.zeros(len(encoded), longest, dtype=torch.bool)
        for row, ids in enumerate(encoded):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            word_mask[row, : len(ids)] = True
        index = [0] * len(encoded) if image_index is None else list(image_index)
        return ExpressionBatch(input_ids, word_mask, torch.tensor(index, dtype=torch.long))

    @staticmethod
    def restore(logits: Float[Tensor, "B h w"], size: tuple[int, int]) -> Float[Tensor, "B H W"]:
        """float32 logits at an image's own (height, width), undoing the stretch to a square."""
        return resize_logits(logits.float(), size)

    @staticmethod
    def _square(image: Image.Image, side: int, how: Image.Resampling) -> Tensor:
        return torch.from_numpy(np.array(image.resize((side, side), how)))


def normalise(
    pixels: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "I 3 h w"]:
    """uint8 [I, h, w, 3] -> float32 [I, 3, h, w], (value / 255 - mean) / std per channel."""
    scaled = pixels.permute(0, 3, 1, 2).float()
    centre = torch.tensor(mean)[:, None, None] * 255
    return (scaled - centre) / (torch.tensor(std)[:, None, None] * 255)


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


def load_image(image: ImageLike) -> NDArray[np.uint8]:
    """Any supported image as RGB uint8 [H, W, 3].

    EXIF orientation is applied; transparency is laid on white; grey, palette, CMYK and 16-bit images are
    converted. Arrays must already be H x W x 3 uint8 RGB.

    Raises:
        InputError: when it cannot be read, names the file.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"an image array must be H x W x 3 uint8 RGB, not {image.dtype} of shape {tuple(image.shape)}"
            )
        return image
    if isinstance(image, Image.Image):
        return _to_rgb(image, "the image")
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), "the given bytes")
    if not isinstance(image, str | Path):
        raise InputError(
            f"an image must be a path, a PIL image, bytes or an H x W x 3 uint8 array, not {type(image).__name__}"
        )
    path = Path(image)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not an image")
        with path.open("rb") as file:
            return _decode(file, str(path))
    except FileNotFoundError:
        raise InputError(f"there is no image at {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {str(path)[:200]!r}: {reason}") from error


def _decode(file: Any, name: str) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file)
        if opened.width * opened.height > MAX_PIXELS:
            raise InputError(
                f"{name} has {opened.width} x {opened.height} pixels, more than the {MAX_PIXELS:,} that are "
                "accepted: make it smaller first"
            )
        opened.load()
    except Image.DecompressionBombError:
        raise InputError(
            f"{name} has more than the {MAX_PIXELS:,} pixels that are accepted: make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that can be read (JPEG, PNG, WebP ...)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{name} is damaged or cut off: {error}") from error
    return _to_rgb(opened, name)


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips 16-bit grey to 8 bits when it converts; the values are scaled instead.
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
        image = Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.array(image.convert("RGB"))
