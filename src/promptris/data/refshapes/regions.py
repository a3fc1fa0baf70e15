"""Phrases about single objects, for pretraining a small CLIP: "striped circle", "large red thing at the top".

Unlike an expression, a phrase may fit several objects of a scene, or of other scenes in the batch; what it
fits is told by codes, one number per property, so that a whole batch is compared at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptris.data.refshapes import words
from promptris.data.refshapes.expressions import Draw, noun_phrase, place_adjective
from promptris.data.refshapes.scene import Scene
from promptris.data.refshapes.shapes import ShapeObject

PROPERTIES: tuple[str, ...] = ("category", "color", "texture", "size", "column", "row")
"""What a code tells, in order; column and row are thirds of the image."""
PROPERTY_VALUES: dict[str, tuple[str, ...]] = {
    "category": words.CATEGORIES,
    "color": words.COLORS,
    "texture": words.TEXTURES,
    "size": words.SIZES,
}
ANY = -1
"""In a phrase's code: the phrase says nothing about this property."""
# What a phrase may name besides the place, as `expressions.noun_phrase` calls it, and how often it does.
_NAMED: tuple[str, ...] = ("category", "color", "texture", "size_name")
_NAMED_SHARES = (0.75, 0.5, 0.3, 0.3)
# Objects between two thirds are neither on the one side nor on the other.
_SIDE_LIMITS = (0.4, 0.6)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text and what it asks of each of `PROPERTIES`; `ANY` where it asks nothing."""

    text: str
    code: tuple[int, ...]


def region_code(shape: ShapeObject, size: int) -> tuple[int, ...]:
    """An object's value of each of `PROPERTIES`."""
    x, y = (value / size for value in shape.center)
    return (
        words.CATEGORIES.index(shape.category),
        words.COLORS.index(shape.color),
        words.TEXTURES.index(shape.texture),
        words.SIZES.index(shape.size_name),
        _third(x),
        _third(y),
    )


def _third(value: float) -> int:
    return (value > _SIDE_LIMITS[0]) + (value > _SIDE_LIMITS[1])


def fits(phrases: NDArray[np.int64], regions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[P, R] whether each phrase is true of each region, from codes [P, 6] and [R, 6]."""
    asked, has = phrases[:, None], regions[None]
    return ((asked == ANY) | (asked == has)).all(axis=2)


def region_phrase(
    shape: ShapeObject, size: int, rng: np.random.Generator, place_share: float = 0.0
) -> Phrase:
    """A random phrase that is true of an object.

    Args:
        shape: the object.
        size: side of its scene, in pixels.
        rng: source of chance.
        place_share: how often the phrase also names the object's place in the image.
    """
    draw = Draw(rng)
    code = region_code(shape, size)
    keep = [draw.chance(share) for share in _NAMED_SHARES]
    if not any(keep):
        keep[int(rng.integers(len(keep)))] = True
    named = tuple(name for name, kept in zip(_NAMED, keep, strict=True) if kept)
    asked = tuple(value if kept else ANY for value, kept in zip(code, keep, strict=False))
    place: tuple[int, int] = (ANY, ANY)
    if draw.chance(place_share):
        text, place = _place(noun_phrase(shape, named, draw, tails=False), code[4], code[5], draw)
    else:
        text = noun_phrase(shape, named, draw)
    article = draw.pick(("", "", "the ", "a "))
    return Phrase(article + text, (*asked, *place))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence about two or three of a scene's objects: where one is from another, or what there is."""
    draw = Draw(rng)
    shapes = [scene.objects[i] for i in rng.permutation(len(scene.objects))[:3]]
    if len(shapes) > 1 and draw.chance(0.7):
        shapes = shapes[:2]
        link = draw.pick(words.RELATION_PHRASES[_side(*shapes)])
    else:
        link = "and"
    return f" {link} ".join(region_phrase(shape, scene.size, rng).text for shape in shapes)


def _side(first: ShapeObject, second: ShapeObject) -> str:
    """The direction in which `first` lies from `second`."""
    dx, dy = (a - b for a, b in zip(first.center, second.center, strict=True))
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _place(text: str, column: int, row: int, draw: Draw) -> tuple[str, tuple[int, int]]:
    """The phrase with the object's place added, and what it then asks of column and row."""
    across, down = ("left", "", "right")[column], ("top", "", "bottom")[row]
    # Half of the phrases for a corner name one side only.
    if across and down and draw.chance(0.5):
        across, down = (across, "") if draw.chance(0.5) else ("", down)
    direction = f"{down} {across}".strip()
    if not direction:
        return (f"{text} in the middle", (1, 1)) if (column, row) == (1, 1) else (text, (ANY, ANY))
    asked = (column if across else ANY, row if down else ANY)
    if draw.chance(0.5):
        return f"{place_adjective(direction, draw)} {text}", asked
    return f"{text} {draw.pick(words.PLACE_PHRASES[direction])}", asked
