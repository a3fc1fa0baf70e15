"""Pictures of masks: overlays on the image, and captioned panels that put several side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from promptris.errors import InputError
from promptris.ops.masks import BoolMask, as_bool_mask

if TYPE_CHECKING:
    from torch import Tensor

Color: TypeAlias = tuple[int, int, int]
ImageLike: TypeAlias = Image.Image | NDArray[np.uint8]
Tile: TypeAlias = tuple[str, Image.Image]

# Okabe and Ito's palette: told apart by colour-blind readers and on paper.
COARSE_COLOR: Color = (230, 159, 0)
MASK_COLOR: Color = (0, 114, 178)
TRUTH_COLOR: Color = (0, 158, 115)
POINT_COLOR: Color = (213, 94, 0)

_HEAT: tuple[Color, ...] = ((8, 12, 40), (75, 20, 110), (175, 45, 95), (240, 115, 40), (252, 240, 160))

_INK: Color = (32, 34, 38)
_SOFT_INK: Color = (104, 108, 116)
_PAPER: Color = (255, 255, 255)
_ELLIPSIS = "…"


def mask_image(mask: BoolMask | Tensor) -> Image.Image:
    """A mask [H, W] as a 1-bit picture of the same size, foreground white."""
    return _grey(mask).convert("1", dither=Image.Dither.NONE)


def overlay(
    image: ImageLike,
    mask: BoolMask | Tensor,
    color: Color = MASK_COLOR,
    alpha: float = 0.5,
    outline: bool = True,
    point: tuple[float, float] | None = None,
    fade: float = 0.0,
) -> Image.Image:
    """Lay a mask over its image: tinted, outlined, and if wanted with the chosen point.

    Args:
        image: PIL image, or uint8 RGB array [H, W, 3].
        mask: bool [H, W], the size of the image.
        color: RGB of the tint, 0 to 255.
        alpha: strength of the tint, from 0 (none) to 1 (solid).
        outline: draw the mask's border, its width following the size of the picture.
        point: (x, y) in pixels of the image, drawn as a ringed dot.
        fade: how far the rest of the image is turned to a pale grey, from 0 (not) to 1 (white).

    Returns a new RGB image of the same size. Raises InputError when the sizes differ, or alpha or fade is out
    of range.
    """
    for name, value in (("alpha", alpha), ("fade", fade)):
        if not 0 <= value <= 1:
            raise InputError(f"The overlay's {name} is {value}: it must lie between 0 and 1.")
    picture, shape = _rgb(image), _grey(mask)
    _check_sizes(picture, shape)
    if fade > 0:
        grey = Image.blend(picture, picture.convert("L").convert("RGB"), fade)
        pale = Image.blend(grey, Image.new("RGB", picture.size, _PAPER), fade)
        picture = Image.composite(picture, pale, shape)
    tint = shape.point([round(alpha * value) for value in range(256)])
    picture.paste(color, mask=tint)
    if outline:
        line, casing = _outline(shape, max(1.0, max(picture.size) / 300))
        picture.paste(_PAPER, mask=casing)
        picture.paste(color, mask=line)
    if point is not None:
        _draw_point(picture, point)
    return picture


def heat_map(image: ImageLike, response: NDArray[np.float32]) -> Image.Image:
    """A response [h, w] in [0, 1] laid over its image as colours, from dark (0) to bright (1).

    Returns a new RGB image of the image's size; the response is enlarged smoothly.
    """
    picture = _rgb(image)
    steps = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(response, steps, [c[k] for c in _HEAT]) for k in range(3)], axis=-1)
    heat = Image.fromarray(colours.round().astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture.convert("L").convert("RGB"), heat, 0.7)


def comparison_row(
    image: ImageLike,
    coarse_mask: BoolMask | Tensor | None,
    point: tuple[float, float] | None,
    mask: BoolMask | Tensor | None,
    truth: BoolMask | Tensor | None = None,
    iou: float | None = None,
    tile_size: int = 256,
) -> list[Tile]:
    """The captioned tiles of one answer, for `panel`: image, coarse mask with point, final mask, truth.

    Masks are bool [H, W] at the image's size; those that are None are left out. `point` is (x, y) in pixels
    of the image, `iou` a fraction. Pictures come out with `tile_size` pixels on the longer side, scaled
    before anything is drawn on them, so that lines are equally fine on small scenes and on photographs.
    """
    picture = _rgb(image)
    factor = tile_size / max(picture.size)
    scaled = _fit(picture, tile_size)

    def drawn(part: BoolMask | Tensor, color: Color, at: tuple[float, float] | None = None) -> Image.Image:
        shape = _grey(part)
        _check_sizes(picture, shape)
        smooth = shape.resize(scaled.size, Image.Resampling.BILINEAR)
        place = None if at is None else (at[0] * factor, at[1] * factor)
        return overlay(scaled, np.asarray(smooth) > 127, color, alpha=0.3, point=place, fade=0.4)

    tiles: list[Tile] = [("image", scaled)]
    if coarse_mask is not None:
        caption = "coarse mask" if point is None else "coarse mask, point"
        tiles.append((caption, drawn(coarse_mask, COARSE_COLOR, point)))
    if mask is not None:
        tiles.append(("final mask" if iou is None else f"final mask, IoU {iou:.2f}", drawn(mask, MASK_COLOR)))
    if truth is not None:
        tiles.append(("ground truth", drawn(truth, TRUTH_COLOR)))
    return tiles


def comparison(
    image: ImageLike,
    coarse_mask: BoolMask | Tensor | None,
    point: tuple[float, float] | None,
    mask: BoolMask | Tensor | None,
    truth: BoolMask | Tensor | None,
    expression: str,
    iou: float | None = None,
    tile_size: int = 256,
    font_path: str | Path | None = None,
) -> Image.Image:
    """One answer as a figure: the expression above, then image, coarse mask with point, final mask and truth.

    The arguments are those of `comparison_row` and `panel`; `expression` is the user's text.
    """
    row = comparison_row(image, coarse_mask, point, mask, truth, iou, tile_size)
    return panel([row], title_rows=[expression], tile_size=tile_size, font_path=font_path)


def panel(
    rows: Sequence[Sequence[Tile]],
    title_rows: Sequence[str] | None = None,
    tile_size: int = 256,
    font_path: str | Path | None = None,
) -> Image.Image:
    """Arrange captioned pictures in rows.

    Args:
        rows: per row, pairs of a caption and a picture. Pictures are scaled to `tile_size` pixels on the
            longer side; captions stand below them. Rows may differ in length.
        title_rows: one title for each row, set above it.
        tile_size: in pixels, at least 64.
        font_path: a TrueType font for scripts that the built-in Latin one has no letters for.

    Long titles and captions are wrapped, at most three lines each. Returns an RGB image. Raises InputError
    for an empty panel, a wrong number of titles, or an unreadable font.
    """
    if not rows or not any(len(row) for row in rows):
        raise InputError("The panel has no pictures: pass at least one row with one (caption, image) pair.")
    if title_rows is not None and len(title_rows) != len(rows):
        raise InputError(
            f"The panel has {len(rows)} rows but {len(title_rows)} titles: pass one title per row."
        )
    if tile_size < 64:
        raise InputError(f"The tile size is {tile_size} pixels: captions need at least 64.")

    margin, gap, line_gap = tile_size // 12, tile_size // 20, 3
    caption_font = _font(max(11, tile_size // 19), font_path)
    title_font = _font(max(13, tile_size // 15), font_path)
    scaled = [[(caption, _fit(_rgb(image), tile_size)) for caption, image in row] for row in rows]
    columns = max(len(row) for row in rows)
    widths = [
        max([tile_size // 2, *(row[c][1].width for row in scaled if c < len(row))]) for c in range(columns)
    ]
    total_width = 2 * margin + sum(widths) + gap * (columns - 1)

    # Everything is measured and placed first, so that the canvas can be cut to its height.
    texts: list[tuple[int, int, str, ImageFont.FreeTypeFont, Color]] = []
    pictures: list[tuple[int, int, Image.Image]] = []
    y = margin
    for number, row in enumerate(scaled):
        if title_rows is not None:
            for line in _wrap(title_rows[number], title_font, total_width - 2 * margin):
                texts.append((margin, y, line, title_font, _INK))
                y += _line_height(title_font) + line_gap
            y += gap // 2
        height = max((picture.height for _, picture in row), default=0)
        bottom, x = y + height, margin
        for (caption, picture), width in zip(row, widths, strict=False):
            pictures.append((x + (width - picture.width) // 2, y + (height - picture.height) // 2, picture))
            text_y = y + height + gap // 2
            for line in _wrap(caption, caption_font, width):
                inset = (width - round(caption_font.getlength(line))) // 2
                texts.append((x + inset, text_y, line, caption_font, _SOFT_INK))
                text_y += _line_height(caption_font) + line_gap
            bottom, x = max(bottom, text_y), x + width + gap
        y = bottom + (margin if number + 1 < len(scaled) else margin // 2)

    canvas = Image.new("RGB", (total_width, y), _PAPER)
    for left, top, picture in pictures:
        canvas.paste(picture, (left, top))
    draw = ImageDraw.Draw(canvas)
    for left, top, line, font, ink in texts:
        draw.text((left, top), line, font=font, fill=ink)
    return canvas


# ---------------------------------------------------------------------------------------------------- drawing


def _rgb(image: ImageLike) -> Image.Image:
    """A fresh RGB copy, so that drawing never changes the caller's picture."""
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise InputError(f"The image is {array.dtype} {array.shape}: pass uint8 RGB [height, width, 3].")
    return Image.fromarray(np.ascontiguousarray(array))


def _grey(mask: BoolMask | Tensor) -> Image.Image:
    return Image.fromarray(as_bool_mask(mask).astype(np.uint8) * 255)


def _fit(picture: Image.Image, tile_size: int) -> Image.Image:
    """Scale to `tile_size` on the longer side."""
    factor = tile_size / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    if size == picture.size:
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


def _check_sizes(picture: Image.Image, shape: Image.Image) -> None:
    if picture.size != shape.size:
        raise InputError(
            f"The mask is {shape.width}x{shape.height} but its image is {picture.width}x{picture.height}: "
            "resize the mask to the image first."
        )


def _outline(shape: Image.Image, width: float) -> tuple[Image.Image, Image.Image]:
    """Coverage of a line `width` pixels to either side of the mask's edge, and of a casing outside it.

    A blurred edge is the normal distribution's curve, so its grey value tells the distance to the edge; that
    gives round, smooth lines without computing distances. The image's own border does not count as an edge.
    """
    sigma = 1.5 * width
    blurred = shape.filter(ImageFilter.GaussianBlur(sigma))
    curve = NormalDist(0, sigma)
    distances = [curve.inv_cdf((value + 0.5) / 256) for value in range(256)]  # positive inside the mask
    line = [_coverage(width - abs(distance)) for distance in distances]
    casing = [_coverage(1.8 * width + distance) if distance < 0 else 0 for distance in distances]
    return blurred.point(line), blurred.point(casing)


def _coverage(depth: float) -> int:
    """How much of a pixel a band covers, 0 to 255, when its centre lies `depth` pixels inside the band."""
    return round(255 * min(1.0, max(0.0, depth + 0.5)))


def _draw_point(picture: Image.Image, point: tuple[float, float]) -> None:
    """A dot with a light ring and a thin dark edge, drawn large and shrunk so that it comes out smooth."""
    radius, scale = max(4.0, max(picture.size) / 60), 4
    half = int(radius * 1.6) + 2
    x0, y0 = round(point[0]) - half, round(point[1]) - half
    box = (x0, y0, x0 + 2 * half, y0 + 2 * half)
    patch = picture.crop(box).resize((2 * half * scale, 2 * half * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(patch)
    cx, cy = (point[0] - x0) * scale, (point[1] - y0) * scale
    for share, ink in ((1.35, _INK), (1.2, _PAPER), (0.75, POINT_COLOR)):
        r = radius * share * scale
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=ink)
    picture.paste(patch.resize((2 * half, 2 * half), Image.Resampling.BOX), (x0, y0))


# ------------------------------------------------------------------------------------------------------- text


def _font(size: int, path: str | Path | None) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise InputError(
                "Pillow was built without FreeType: install Pillow's own wheel to draw captions."
            )
        return font
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:
        raise InputError(f"The font {path} cannot be read: pass a TrueType or OpenType file.") from None


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent


def _printable(text: str) -> str:
    """One line of text without control characters or broken surrogates, which the font engine cannot take."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int = 3) -> list[str]:
    """Break text into lines of at most `width` pixels, between words if possible; an ellipsis marks a cut."""
    lines: list[str] = []
    rest = _printable(text)
    while rest:
        fitting = _fitting_length(rest, font, width)
        if fitting == len(rest):
            lines.append(rest)
            break
        if len(lines) == max_lines - 1:
            lines.append(rest[: _fitting_length(rest, font, width, _ELLIPSIS)].rstrip() + _ELLIPSIS)
            break
        space = rest.rfind(" ", 1, fitting + 1)
        cut = space if space > 0 else fitting
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return lines


def _fitting_length(text: str, font: ImageFont.FreeTypeFont, width: int, tail: str = "") -> int:
    """The most leading characters, at least one, that fit into `width` pixels together with `tail`."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle] + tail) <= width:
            low = middle
        else:
            high = middle - 1
    return low
