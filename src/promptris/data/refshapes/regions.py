"""Phrases about single objects, for pretraining a small CLIP: "striped circle", "large red thing at the top".

Unlike an expression, a phrase may fit several objects of a scene, or of other scenes in the batch; what it
fits is told by codes, one number per property, so that a whole batch is compared at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptris.data.refshapes import words
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
    code = region_code(shape, size)
    keep = [rng.random() < share for share in (0.75, 0.5, 0.3, 0.3)]
    if not any(keep):
        keep[int(rng.integers(4))] = True
    placed = rng.random() < place_share
    asked = tuple(value if kept else ANY for value, kept in zip(code, keep, strict=False))
    noun = shape.category if keep[0] else _pick(rng, words.GENERIC_NOUNS)
    adjectives = [
        *([_pick(rng, words.SIZE_WORDS[shape.size_name])] if keep[3] else []),
        *([_pick(rng, words.TEXTURE_WORDS[shape.texture])] if keep[2] else []),
        *([shape.color] if keep[1] else []),
    ]
    if rng.random() < 0.3:
        adjectives.reverse()
    text = " ".join([*adjectives, noun])
    place: tuple[int, int] = (ANY, ANY)
    if placed:
        text, place = _place(text, code[4], code[5], rng)
    article = ("", "the ", "a ")[int(rng.choice(3, p=(0.5, 0.35, 0.15)))]
    return Phrase(article + text, (*asked, *place))


def caption(scene: Scene, rng: np.random.Generator, most: int = 3) -> str:
    """A sentence that names some of a scene's objects, in random order."""
    count = min(most, len(scene.objects))
    chosen = [scene.objects[i] for i in rng.permutation(len(scene.objects))[:count]]
    parts = [region_phrase(shape, scene.size, rng).text for shape in chosen]
    return " and ".join(parts)


def _place(text: str, column: int, row: int, rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
    """The phrase with the object's place added, and what it then asks of column and row."""
    across, down = ("left", "", "right")[column], ("top", "", "bottom")[row]
    # Half of the phrases for a corner name one side only.
    if across and down and rng.random() < 0.5:
        across, down = (across, "") if rng.random() < 0.5 else ("", down)
    direction = f"{down} {across}".strip()
    if not direction:
        return (f"{text} in the middle", (1, 1)) if (column, row) == (1, 1) else (text, (ANY, ANY))
    asked = (column if across else ANY, row if down else ANY)
    if rng.random() < 0.5:
        return f"{direction} {text}", asked
    return f"{text} {_pick(rng, words.PLACE_PHRASES[direction])}", asked


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
