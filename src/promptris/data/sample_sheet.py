"""A sample sheet: some images of a data set on one page, with what is said about them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from promptris.data.dataset import ReferDataset
from promptris.data.pictures import load_record
from promptris.errors import InputError
from promptris.visualize import Color, overlay

COLORS: tuple[Color, ...] = ((32, 34, 38), (224, 0, 122))
"""Of the first and the second expression of an image, and of the outlines of what they mean."""
FADE = 0.25
"""How far the rest of an image is turned pale, as in `overlay`."""
MOST_IMAGES = 400
TILE = 224
_MARGIN, _GAP, _LINE_GAP = 24, 18, 4
_MOST_LINES = 3
_INK: Color = (32, 34, 38)
_SOFT_INK: Color = (104, 108, 116)
_PAPER: Color = (255, 255, 255)
_SMOOTH = 4  # swatches are drawn this much larger and shrunk
Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Saying:
    """An expression and what it means: a bool mask [H, W], empty where it means nothing."""

    text: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """RGB uint8 [H, W, 3] and up to two expressions about it."""

    image: NDArray[np.uint8]
    sayings: tuple[Saying, ...]


def draw_samples(dataset: ReferDataset, split: str, count: int, seed: int = 0) -> list[Sample]:
    """Random images of a split, each with random expressions of up to two of its referents.

    Args:
        dataset, split: where from.
        count: how many images, 1 to MOST_IMAGES; all of them where there are fewer.
        seed: of the choice; the same one takes the same samples.

    Raises:
        InputError: for a wrong count or seed, an unknown or empty split, or an image that cannot be read.
    """
    if not 1 <= count <= MOST_IMAGES:
        raise InputError(
            f"{count} images do not fit on a sample sheet: give a number from 1 to {MOST_IMAGES}"
        )
    if seed < 0:
        raise InputError(f"the seed {seed} must not be negative")
    by_image = dataset.by_image(split)
    if not by_image:
        raise InputError(f"{dataset.name} has no expression to show in {split!r}")
    rng = np.random.default_rng(seed)
    image_ids = list(by_image)
    samples = []
    for place in rng.permutation(len(image_ids))[:count].tolist():
        referents = by_image[image_ids[place]]
        sayings = []
        for chosen in rng.permutation(len(referents))[: len(COLORS)].tolist():
            referent = referents[chosen]
            expression = referent.expressions[int(rng.integers(len(referent.expressions)))]
            sayings.append(Saying(expression.text, dataset.mask(referent)))
        samples.append(Sample(load_record(dataset.images[image_ids[place]]), tuple(sayings)))
    return samples


def sample_sheet(
    samples: Sequence[Sample],
    title: str = "",
    columns: int = 4,
    tile: int = TILE,
    font_path: str | Path | None = None,
) -> Image.Image:
    """An RGB page of samples: each image with its referents outlined, the expressions below in their colours.

    Args:
        samples: at least one.
        title: above everything; none if empty.
        columns: images side by side, at least 1.
        tile: longer side of an image on the page, in pixels, at least 64.
        font_path: a TrueType font for scripts that the built-in Latin one has no letters for.

    Raises:
        InputError: for too few samples or columns, too small a tile, or a font that cannot be read.
    """
    if not samples or columns < 1 or tile < 64:
        raise InputError(
            f"a sheet of {len(samples)} images in {columns} columns of {tile} pixels cannot be drawn: it needs "
            "at least one image, one column and 64 pixels"
        )
    font, title_font = _font(max(12, tile // 16), font_path), _font(max(15, tile // 11), font_path)
    cells = [_Cell(sample, tile, font) for sample in samples]
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = 2 * _MARGIN + columns * tile + (columns - 1) * _GAP
    heading = _wrap(title, title_font, width - 2 * _MARGIN)
    top = _MARGIN + len(heading) * _line_height(title_font) + (_GAP if heading else 0)
    heights = [max(cell.height for cell in row) for row in rows]
    page = Image.new("RGB", (width, top + sum(heights) + _GAP * (len(rows) - 1) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(heading):
        draw.text((_MARGIN, _MARGIN + number * _line_height(title_font)), line, _INK, title_font)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            cell.draw(page, _MARGIN + column * (tile + _GAP), top)
        top += height + _GAP
    return page


class _Cell:
    """One sample, measured before the page is made."""

    def __init__(self, sample: Sample, tile: int, font: Font) -> None:
        self._picture, self._tile, self._font = _outlined(sample, tile), tile, font
        self._swatch = _line_height(font) // 2
        self._indent = self._swatch + 8
        self._captions = [
            _wrap(
                saying.text if saying.mask.any() else f"{saying.text} (means nothing)",
                font,
                tile - self._indent,
            )
            for saying in sample.sayings
        ]
        lines = sum(max(1, len(caption)) for caption in self._captions)
        self.height = self._picture.height + 8 + lines * _line_height(font) + len(self._captions) * _LINE_GAP

    def draw(self, page: Image.Image, left: int, top: int) -> None:
        page.paste(self._picture, (left + (self._tile - self._picture.width) // 2, top))
        draw = ImageDraw.Draw(page)
        y = top + self._picture.height + 8
        for caption, color in zip(self._captions, COLORS, strict=False):
            dot = _dot(self._swatch, color)
            page.paste(dot, (left, y + (_line_height(self._font) - self._swatch) // 2 + 1))
            for line in caption or [""]:
                draw.text((left + self._indent, y), line, _INK, self._font)
                y += _line_height(self._font)
            y += _LINE_GAP


def _outlined(sample: Sample, tile: int) -> Image.Image:
    """The image at the tile's size with its referents outlined; scaled first, so that lines are equally fine."""
    picture = Image.fromarray(np.ascontiguousarray(sample.image))
    factor = tile / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)
    shapes = [Image.fromarray(saying.mask.astype(np.uint8) * 255) for saying in sample.sayings]
    masks = [np.asarray(shape.resize(size, Image.Resampling.BILINEAR)) > 127 for shape in shapes]
    meant = np.any(masks, axis=0)
    if meant.any():
        picture = overlay(picture, meant, alpha=0.0, outline=False, fade=FADE)
    for mask, color in zip(masks, COLORS, strict=False):
        picture = overlay(picture, mask, color, alpha=0.0)
    return picture


def _dot(side: int, color: Color) -> Image.Image:
    large = Image.new("RGB", (side * _SMOOTH, side * _SMOOTH), _PAPER)
    ImageDraw.Draw(large).ellipse((0, 0, side * _SMOOTH - 1, side * _SMOOTH - 1), fill=color)
    return large.resize((side, side), Image.Resampling.BOX)


def _font(size: int, path: str | Path | None) -> Font:
    try:
        font = ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
    except OSError:
        raise InputError(f"the font {path} cannot be read: pass a TrueType or OpenType file") from None
    if not isinstance(font, Font):
        raise InputError("Pillow was built without FreeType: install Pillow's own wheel to write on pictures")
    return font


def _line_height(font: Font) -> int:
    return sum(font.getmetrics())


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words where that is possible; an ellipsis marks a cut."""
    lines: list[str] = []
    for word in "".join(c if c.isprintable() else " " for c in text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif len(lines) > _MOST_LINES:
            break
        else:
            lines.append(word)
    shown = lines[:_MOST_LINES]
    if len(lines) > len(shown):
        shown[-1] += " …"
    return [_cut(line, font, width) for line in shown]


def _cut(line: str, font: Font, width: int) -> str:
    """A line that may be too long, without its end."""
    if font.getlength(line) <= width:
        return line
    # The first length that is too long; one letter stays in any case.
    length = bisect_right(range(len(line)), False, key=lambda n: font.getlength(line[:n] + "…") > width) - 1
    return line[: max(1, length)].rstrip() + "…"
