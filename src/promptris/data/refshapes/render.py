"""Painting a scene: smooth coloured noise, then the shapes in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptris.data.refshapes.scene import REFERENCE_SIZE, Scene
from promptris.data.refshapes.shapes import SUPERSAMPLING, Coverage, ShapeObject, cover, visible_masks

STRIPE_PERIOD = 7.0  # pixels at 128 px
STRIPE_SHADE = 0.34  # brightness of the dark stripes


@dataclass(frozen=True, slots=True)
class Rendered:
    """`image` uint8 [H, W, 3] RGB; `masks` bool [N, H, W], the visible pixels of every object, disjoint."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def render(scene: Scene) -> Rendered:
    """Paint a scene and tell which pixels of every object can be seen."""
    coverages = [cover(shape, scene.size) for shape in scene.objects]
    return Rendered(paint(scene, coverages), visible_masks(coverages, scene.size))


def paint(scene: Scene, coverages: list[Coverage]) -> NDArray[np.uint8]:
    """The image uint8 [H, W, 3] of a scene whose coverages are known."""
    canvas = _background(scene.background_seed, scene.size)
    for shape, covered in zip(scene.objects, coverages, strict=True):
        window = canvas[covered.rows, covered.cols]
        alpha = (covered.hits * np.float32(1.0 / SUPERSAMPLING**2))[..., None]
        window += alpha * (_surface(shape, covered, scene.size) - window)
    return (canvas + np.float32(0.5)).astype(np.uint8)


def _background(seed: int, size: int) -> NDArray[np.float32]:
    """Smooth coloured noise float32 [size, size, 3]: a coarse grid blown up, finer noise added on the way."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = (
        rng.uniform(105.0, 155.0, size=(1, 1, 3))
        + rng.normal(0.0, 18.0, size=(4, 4, 1))
        + rng.normal(0.0, 12.0, size=(4, 4, 3))
    )
    middle = _enlarge(coarse, 14).astype(np.float64) + rng.normal(0.0, 7.0, size=(14, 14, 3))
    return _enlarge(middle, size).astype(np.float32)


def _enlarge(values: NDArray[np.floating], size: int) -> NDArray[np.uint8]:
    pixels = np.clip(values, 20.0, 235.0).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def _surface(shape: ShapeObject, covered: Coverage, size: int) -> NDArray[np.float32]:
    """Colour of the object's surface in its window: float32 [3] if plain, [h, w, 3] if striped."""
    rgb = np.array(shape.rgb, dtype=np.float32)
    if shape.texture != "striped":
        return rgb
    wave = 2 * math.pi / (STRIPE_PERIOD * size / REFERENCE_SIZE)
    x = (np.arange(covered.cols.start, covered.cols.stop, dtype=np.float32) + 0.5) - np.float32(
        shape.center[0]
    )
    y = (np.arange(covered.rows.start, covered.rows.stop, dtype=np.float32) + 0.5) - np.float32(
        shape.center[1]
    )
    across = (x * np.float32(wave * math.cos(shape.stripe_angle)) + np.float32(shape.stripe_phase))[None, :]
    across = across + (y * np.float32(wave * math.sin(shape.stripe_angle)))[:, None]
    # A clipped sine has edges about one pixel wide, so thin stripes do not alias.
    light = np.clip(0.5 + 1.1 * np.sin(across), 0.0, 1.0)
    return ((STRIPE_SHADE + (1 - STRIPE_SHADE) * light)[..., None] * rgb).astype(np.float32, copy=False)
