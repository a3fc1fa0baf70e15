"""Picture files of a folder of one's own: their size without decoding, and masks that were painted."""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from promptris.errors import InputError
from promptris.images import MAX_PIXELS


@dataclass(frozen=True)
class Header:
    """Height and width of an upright picture, and whether its EXIF orientation turned it to be that."""

    size: tuple[int, int]
    turned: bool

    def __str__(self) -> str:
        note = ", after its EXIF orientation has been applied" if self.turned else ""
        return f"{self.size[1]} x {self.size[0]} pixels{note}"


def _open(path: Path) -> Image.Image:
    """A picture of which only the header has been read."""
    too_many = f"more than the {MAX_PIXELS:,} pixels that are accepted: make it smaller first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except Image.DecompressionBombError:
        raise InputError(f"{path} has {too_many}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that can be read (JPEG, PNG, WebP ...)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # An error with a number is the system's, not about what is in the file.
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        raise InputError(f"{path} is damaged or cut off: {error}") from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise InputError(f"{path} has {picture.width} x {picture.height} pixels, {too_many}")
    return picture


def read_header(path: Path) -> Header:
    """Size of a picture, the right way up, from its header; InputError naming the file if it is no picture."""
    with _open(path) as picture:
        width, height = picture.size
        # Pillow turns a TIFF's size by itself, and decodes a PNG to look for EXIF behind the pixels.
        if picture.format == "TIFF" or (picture.format == "PNG" and not _png_has_metadata(path)):
            return Header((height, width), False)
        try:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # damaged EXIF raises almost anything, and the picture is whole without it
            turned = False
    return Header((width, height) if turned else (height, width), turned)


def _png_has_metadata(path: Path) -> bool:
    """Whether any chunk of a PNG may tell an orientation."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            keyword = file.read(min(length, 22)) if kind in (b"iTXt", b"zTXt", b"tEXt") else b""
            if kind == b"eXIf" or keyword.startswith((b"XML:com.adobe.xmp", b"Raw profile type exif")):
                return True
            file.seek(length - len(keyword) + 4, os.SEEK_CUR)
    return False


def decode_mask(path: Path) -> Image.Image:
    """A mask picture, the right way up; InputError naming the file when it is damaged or a JPEG."""
    with _open(path) as picture:
        if picture.format in ("JPEG", "MPO"):
            raise InputError(f"mask {path} is a JPEG, which blurs the values of pixels; save masks as PNG")
        try:
            return ImageOps.exif_transpose(picture)
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise InputError(f"{path} is damaged or cut off: {error}") from error


def foreground(picture: Image.Image, value: int | None, path: Path) -> NDArray[np.bool_]:
    """bool [H, W] of the pixels that a mask picture marks.

    Args:
        picture: the decoded mask.
        value: mark the pixels that are equal to it, in a picture of one channel (a palette's are its entries);
            None marks all that are neither zero (black) nor transparent.
        path: its file, to name it.

    Raises:
        InputError: when no pixel is marked, or there is a value but more than one channel.
    """
    if value is not None:
        if len(picture.getbands()) > 1:
            raise InputError(
                f'mask {path} is {picture.mode}, but a "value" picks pixels of a grey or palette image'
            )
        values = np.asarray(picture).astype(np.int64)
        mask = values == value
        if not mask.any():
            there = np.unique(values).tolist()
            some = ", ".join(map(str, there[:10])) + (", ..." if len(there) > 10 else "")
            raise InputError(f"mask {path} has no pixel of value {value}; it has {some}")
        return mask
    mask = _marked(picture)
    if not mask.any():
        raise InputError(f"mask {path} is empty; where nothing is meant, give no mask")
    return mask


def _marked(picture: Image.Image) -> NDArray[np.bool_]:
    """Everything that is neither zero (black) nor transparent.

    A picture that is all black where it is visible marks what is visible. A palette's background is its
    entry 0, or its black where that is another one.
    """
    if "A" in picture.getbands() or (picture.mode == "P" and "transparency" in picture.info):
        rgba = np.asarray(picture.convert("RGBA"))
        coloured, visible = rgba[..., :3].any(axis=-1), rgba[..., 3] > 0
        if visible.all() or not visible.any():
            return np.asarray(coloured)
        both = coloured & visible
        return both if both.any() else visible
    pixels: NDArray[Any] = np.asarray(picture)
    if picture.mode == "P":
        palette = np.full((256, 3), 255)
        colours = np.array(picture.getpalette("RGB") or []).reshape(-1, 3)
        palette[: len(colours)] = colours
        black: NDArray[np.bool_] = palette.sum(axis=1) == 0
        if not black[0] and black[pixels].any():
            return np.asarray(~black[pixels])
    return np.asarray(pixels != 0 if pixels.ndim == 2 else pixels.any(axis=-1))
