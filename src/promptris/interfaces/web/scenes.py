"""The scenes that the page offers to begin with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from promptris.data.refshapes import make_example
from promptris.data.refshapes.writer import split_seed
from promptris.interfaces.demo import SPLIT, choose

SEED = 12345
"""Of `promptris demo`: the scenes are of its world, which no recipe trains on."""
_CHOSEN = (1, 5, 8, 10, 13, 17)


@dataclass(frozen=True)
class BuiltInScene:
    """A RefShapes scene and what may be asked about it.

    Attributes:
        name: for people.
        pixels: uint8 RGB [H, W, 3].
        expressions: one of every kind.
    """

    name: str
    pixels: NDArray[np.uint8]
    expressions: tuple[str, ...]


@cache
def built_in_scenes() -> tuple[BuiltInScene, ...]:
    """The page's scenes, always the same ones."""
    world = split_seed(SEED, SPLIT)
    scenes = []
    for number, index in enumerate(_CHOSEN, start=1):
        example = make_example(world, index)
        texts = tuple(description.text for description in choose(example.descriptions))
        scenes.append(BuiltInScene(f"scene {number}", example.image, texts))
    return tuple(scenes)
