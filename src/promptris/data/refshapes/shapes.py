"""The outlines of the eight categories and how an object covers the pixels of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

# No outline reaches further from its centre than this, in units of the object's radius.
REACH = 1.15
SUPERSAMPLING = 2

# Largest turn to either side, in degrees: enough to vary, too little to make a square a diamond.
MAX_TURN: dict[str, float] = {
    "circle": 0.0,
    "ring": 0.0,
    "square": 15.0,
    "triangle": 15.0,
    "star": 15.0,
    "cross": 15.0,
    "moon": 25.0,
    "heart": 15.0,
}


@dataclass(frozen=True, slots=True)
class ShapeObject:
    """One object of a scene.

    `center` is (x, y) and `radius` the size, both in pixels in the image frame (x right, y down, the
    top-left pixel's centre at (0.5, 0.5)). `angle` turns the outline and `stripe_angle` the stripes, in
    radians; `stripe_phase` shifts the stripes. `rgb` is the colour as painted, 0..255.
    """

    category: str
    color: str
    texture: str
    size_name: str
    center: tuple[float, float]
    radius: float
    angle: float = 0.0
    rgb: tuple[int, int, int] = (128, 128, 128)
    stripe_angle: float = 0.7853981633974483
    stripe_phase: float = 0.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """The part of the image an object touches, occlusion left aside.

    `rows` and `cols` cut the window out of the image; `hits` uint8 [h, w] counts the samples inside the
    outline per pixel, 0 .. SUPERSAMPLING**2.
    """

    rows: slice
    cols: slice
    hits: NDArray[np.uint8]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool [h, w]: pixels at least half covered."""
        return self.hits >= (SUPERSAMPLING * SUPERSAMPLING) // 2


def inside(category: str, u: NDArray[np.floating], v: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which points of the unit frame (u right, v down, radius 1) lie inside the outline of a category."""
    if category == "circle":
        return u * u + v * v <= 0.92**2
    if category == "ring":
        squared = u * u + v * v
        return (squared <= 0.98**2) & (squared >= 0.55**2)
    if category == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.8
    if category == "triangle":
        # Equilateral, tip up, circumradius 1.1, so its sides lie 0.55 from the centre.
        side = np.maximum(np.abs(u) * (3**0.5 / 2) - v * 0.5, v)
        return side <= 0.55
    if category == "cross":
        a, b = np.abs(u), np.abs(v)
        return (np.maximum(a, b) <= 1.0) & (np.minimum(a, b) <= 0.33)
    if category == "star":
        # A pentagram is where at most one of its five lines is crossed.
        crossed = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.uint8)
        distance = 1.1 * math.cos(2 * math.pi / 5)
        for k in range(5):
            turn = math.pi / 2 + 2 * math.pi * k / 5
            crossed += (math.cos(turn) * u + math.sin(turn) * v) > distance
        return crossed <= 1
    if category == "moon":
        return (u * u + v * v <= 1.05**2) & ((u - 0.5) ** 2 + v * v > 0.85**2)
    if category == "heart":
        x, y = u * 1.12, 0.1 - v * 1.12
        squared = x * x
        bowl = squared + y * y - 1.0
        return bowl * bowl * bowl <= squared * y * y * y
    raise ValueError(f"no outline for category {category!r}")


@cache
def unit_area(category: str) -> float:
    """Area of a category's outline at radius 1 (numerical, to about three digits)."""
    side = 800
    axis = ((np.arange(side) + 0.5) / side * 2 - 1) * REACH
    hits = inside(category, axis[None, :], axis[:, None])
    return float(hits.mean() * (2 * REACH) ** 2)


def cover(shape: ShapeObject, size: int) -> Coverage:
    """Sample one object's outline at 2x inside its box, clipped to a `size` x `size` image."""
    x, y = shape.center
    reach = shape.radius * REACH
    left, right = max(0, math.floor(x - reach)), min(size, math.ceil(x + reach))
    top, bottom = max(0, math.floor(y - reach)), min(size, math.ceil(y + reach))
    s = SUPERSAMPLING
    width, height = max(right - left, 0), max(bottom - top, 0)
    dx = ((np.arange(width * s, dtype=np.float32) + 0.5) / s + np.float32(left - x)) / np.float32(
        shape.radius
    )
    dy = ((np.arange(height * s, dtype=np.float32) + 0.5) / s + np.float32(top - y)) / np.float32(
        shape.radius
    )
    cos, sin = np.float32(math.cos(shape.angle)), np.float32(math.sin(shape.angle))
    if shape.angle == 0.0:
        found = inside(shape.category, dx[None, :], dy[:, None])
    else:
        u = (cos * dx)[None, :] + (sin * dy)[:, None]
        v = (cos * dy)[:, None] - (sin * dx)[None, :]
        found = inside(shape.category, u, v)
    samples = found.view(np.uint8)
    rows = samples[0::2] + samples[1::2]
    return Coverage(slice(top, bottom), slice(left, right), rows[:, 0::2] + rows[:, 1::2])


def visible_masks(coverages: list[Coverage], size: int) -> NDArray[np.bool_]:
    """bool [N, size, size]: each object's visible pixels when later objects are painted over earlier ones."""
    owner = np.full((size, size), -1, dtype=np.int16)
    for i, covered in enumerate(coverages):
        owner[covered.rows, covered.cols][covered.mask] = i
    return owner[None] == np.arange(len(coverages), dtype=np.int16)[:, None, None]
