"""RefShapes: a small synthetic world of shapes with referring expressions, made in memory or on disk.

>>> from promptris.data.refshapes import WorldOptions, make_example
>>> example = make_example(seed=0, index=7, options=WorldOptions(size=128))
>>> example.image.shape, example.masks.shape[0] == len(example.scene.objects)
((128, 128, 3), True)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promptris.data.refshapes.expressions import Description, describe
from promptris.data.refshapes.meaning import interpret, referent, referents
from promptris.data.refshapes.render import Rendered, paint, render
from promptris.data.refshapes.scene import (
    COLOR_RGB,
    LEVELS,
    Level,
    Scene,
    WorldOptions,
    sample_covered_scene,
    sample_scene,
    stream,
)
from promptris.data.refshapes.shapes import ShapeObject
from promptris.data.refshapes.words import (
    CATEGORIES,
    COLORS,
    SEEN_CATEGORIES,
    SIZES,
    TEXTURES,
    UNSEEN_CATEGORIES,
    vocabulary,
)

if TYPE_CHECKING:
    from promptris.data.refshapes.writer import WriteSummary, write_refshapes

__all__ = [
    "CATEGORIES",
    "COLORS",
    "COLOR_RGB",
    "LEVELS",
    "SEEN_CATEGORIES",
    "SIZES",
    "TEXTURES",
    "UNSEEN_CATEGORIES",
    "Description",
    "Example",
    "Level",
    "Rendered",
    "Scene",
    "ShapeObject",
    "WorldOptions",
    "WriteSummary",
    "describe",
    "interpret",
    "make_example",
    "referent",
    "referents",
    "render",
    "sample_scene",
    "vocabulary",
    "write_refshapes",
]


@dataclass(frozen=True, slots=True)
class Example:
    """A painted and described scene.

    image uint8 [H, W, 3] RGB; masks bool [N, H, W], visible pixels of scene.objects[n]; descriptions name
    their target by its index.
    """

    scene: Scene
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    descriptions: tuple[Description, ...]


def make_example(seed: int, index: int, options: WorldOptions | None = None) -> Example:
    """Sample, paint and describe scene `index` of world `seed`; a pure function of its arguments.

    InputError if seed or index is negative or not whole.
    """
    scene, coverages, masks = sample_covered_scene(seed, index, options or WorldOptions())
    descriptions = tuple(describe(scene, masks, stream(seed, index, 1)))
    return Example(scene, paint(scene, coverages), masks, descriptions)


def __getattr__(name: str) -> Any:
    # The writer builds on this module, so it is loaded when asked for.
    if name in ("WriteSummary", "write_refshapes"):
        from promptris.data.refshapes import writer

        return getattr(writer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
