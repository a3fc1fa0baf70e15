"""Reading images: any file, bytes or picture in memory becomes RGB pixels, the right way up.

JPEG is decoded by simplejpeg (libjpeg-turbo without detours) where that gives the very pixels that Pillow
gives, everything else by Pillow; without simplejpeg Pillow does it all, with the same result.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from promptris.errors import InputError

try:
    import simplejpeg
except ImportError:  # there is no wheel for every platform, and Pillow reads all that it reads
    simplejpeg = None

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8] | Tensor"

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""


class TooManyPixelsError(InputError):
    """An image that is larger than what is accepted; told by its header, before it is decoded."""


class NotAnImageError(InputError):
    """Something that no reader of images knows."""


_FORMATS = (
    *(
        "JPEG",
        "MPO",
        "PNG",
        "WEBP",
        "GIF",
        "BMP",
        "DIB",
        "TIFF",
        "AVIF",
        "JPEG2000",
        "PPM",
        "TGA",
        "ICO",
        "PCX",
    ),
    *("SGI", "QOI", "DDS", "PSD", "XBM", "SPIDER", "IM", "ICNS"),
)
"""Images that are read. Other readers of Pillow's start programs (EPS starts Ghostscript) or are of no use here."""

# What Pillow's readers raise, each in its own way, on a file that is not as it should be.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, struct.error)

_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG with more pictures behind it

# What a camera's EXIF orientation asks for, on [rows, columns].
_TURNS: dict[Any, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: stored.T[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: stored.T[::-1],
}


_one_at_a_time = Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: of large images, which are dealt with here, and of damaged EXIF.

    The filters belong to the whole process; threads that set and restore them across each other would leave them
    changed for good.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_image(image: ImageLike, at_least: int | None = None) -> NDArray[np.uint8]:
    """Any supported image as RGB uint8 [H, W, 3].

    EXIF orientation is applied; transparency is laid on white; grey, palette, CMYK and 16-bit images are
    converted. Arrays must already be H x W x 3 uint8 RGB; they are returned as they are. So must torch tensors be, or
    3 x H x W as torch's own picture tools have them.

    Args:
        image: path, bytes of a file, PIL image, array, or torch tensor.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, the smallest that divides both sides
            evenly and leaves them at least this many pixels: faster for photographs that will be shrunk
            anyway. Shrinking the result further then differs a little from shrinking the whole image. Arrays,
            PIL images and other formats are not affected.

    Raises:
        InputError: it cannot be read, is damaged or cut off, or has more than MAX_PIXELS pixels (which its
            header tells, before anything is decoded); the message names the file.
    """
    if type(image).__module__ == "torch" and hasattr(
        image, "permute"
    ):  # torch itself need not be imported here
        image = _from_tensor(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"an image array must be H x W x 3 uint8 RGB, not {image.dtype} of shape {tuple(image.shape)}"
            )
        return image
    if isinstance(image, Image.Image):
        return _from_pillow(image, "the image")
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), "the given bytes", at_least)
    if not isinstance(image, str | Path):
        raise InputError(
            f"an image must be a path, a PIL image, bytes, or an H x W x 3 uint8 array or tensor, "
            f"not {type(image).__name__}"
        )
    path = Path(image)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not an image")
        with path.open("rb") as file:
            return _decode(file, str(path), at_least)
    except FileNotFoundError:
        raise InputError(f"there is no image at {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {str(path)[:200]!r}: {reason}") from error


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """A file's bytes, from whoever sent them, as RGB uint8 [H, W, 3]; otherwise as `load_image`.

    Args:
        data: the whole file.
        name: what messages call it.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        TooManyPixelsError: for more pixels.
        NotAnImageError: for anything that is no image.
        InputError: when it is damaged or cut off.
    """
    return _decode(io.BytesIO(data), name, None, max_pixels)


def _from_tensor(image: Any) -> NDArray[Any]:
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.permute(1, 2, 0)
    return np.ascontiguousarray(image.detach().cpu().numpy())


def _decode(
    file: BinaryIO,
    name: str,
    at_least: int | None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    opened = _read_header(file, name, max_pixels)
    factor = 1
    if opened.format in _JPEG_FORMATS:
        factor = _reduction(opened.size, at_least)
        file.seek(0)
        pixels = _decode_jpeg(file.read(), opened, factor, name)
        if pixels is not None:
            return _upright(pixels, _orientation(opened))
        file.seek(0)
        opened = _read_header(file, name, max_pixels)
    if factor > 1:
        opened.draft(None, (opened.width // factor, opened.height // factor))
    return _from_pillow(opened, name)


@cache
def _readable_formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _read_header(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The image with nothing of it decoded yet."""
    try:
        with _quiet():
            opened = Image.open(file, formats=_readable_formats())
    except Image.DecompressionBombError:
        raise TooManyPixelsError(
            f"{name} has more than the {max_pixels:,} pixels that are accepted: make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise NotAnImageError(f"{name} is not an image that can be read (JPEG, PNG, WebP ...)") from None
    except _DAMAGE as error:
        raise InputError(f"{name} is damaged or cut off: {error}") from error
    if opened.width * opened.height > max_pixels:
        raise TooManyPixelsError(
            f"{name} has {opened.width} x {opened.height} pixels, more than the {max_pixels:,} that are "
            "accepted: make it smaller first"
        )
    return opened


def _reduction(size: tuple[int, int], at_least: int | None) -> int:
    """By how much libjpeg shall divide both sides.

    It can give any eighth of the size, but only halvings are faster than the whole; and it rounds sides up,
    which would stretch an odd one against its mask.
    """
    if at_least is None:
        return 1
    fits = (f for f in (8, 4, 2) if all(side % f == 0 and side // f >= at_least for side in size))
    return next(fits, 1)


def _decode_jpeg(data: bytes, opened: Image.Image, factor: int, name: str) -> NDArray[np.uint8] | None:
    """The stored pixels, or None where Pillow has to decide: CMYK, and most of what libjpeg complains about."""
    if simplejpeg is None:
        return None
    height, width = opened.height // factor, opened.width // factor
    in_rgb = opened.mode in ("RGB", "L")
    try:
        # The limit on pixels was checked on what Pillow found in the header, so both must see one header.
        if simplejpeg.decode_jpeg_header(data)[:2] != (opened.height, opened.width):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB" if in_rgb else "CMYK", min_height=height, min_width=width
        )
    except ValueError as error:
        # An end marker where there should be pixels: Pillow would fill the rest with grey without a word,
        # which is why CMYK comes here at all.
        if "end of data segment" in str(error):
            raise InputError(f"{name} is damaged or cut off: its picture data ends too early") from error
        return None
    return pixels if in_rgb and pixels.shape[:2] == (height, width) else None


def _from_pillow(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels")
    try:
        image.load()
    except _DAMAGE as error:
        raise InputError(f"{name} is damaged or cut off: {error}") from error
    orientation = _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips 16-bit grey to 8 bits when it converts; the values are scaled instead.
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
        image = Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return _upright(np.array(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def _orientation(image: Image.Image) -> Any:
    try:
        with _quiet():
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises almost anything, and the picture is whole without it
        return 1


def _upright(pixels: NDArray[np.uint8], orientation: Any) -> NDArray[np.uint8]:
    turn = _TURNS.get(orientation)
    if turn is None:
        return pixels
    # As [rows, columns] of three-byte items, which numpy moves twice as fast as three single bytes.
    turned = np.ascontiguousarray(turn(pixels.view("V3")[..., 0]))
    return turned.view(np.uint8).reshape(*turned.shape, 3)
