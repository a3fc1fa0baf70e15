"""Scenes: a handful of coloured shapes, a pure function of (seed, index, options)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promptris.data.refshapes.shapes import MAX_TURN, Coverage, ShapeObject, cover, unit_area, visible_masks
from promptris.data.refshapes.words import CATEGORIES, COLORS, SEEN_CATEGORIES, UNSEEN_CATEGORIES
from promptris.errors import InputError

# Radii and the smallest visible area are given at this size and scale with the image.
REFERENCE_SIZE = 128
MIN_SIZE, MAX_SIZE = 64, 1024
MIN_VISIBLE_PIXELS = 60

COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "green": (40, 160, 62),
    "blue": (40, 84, 214),
    "yellow": (238, 216, 48),
    "purple": (142, 52, 178),
    "orange": (242, 132, 28),
}
COLOR_JITTER = 10
STRIPED_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Level:
    """The numbers of one difficulty.

    objects: fewest and most objects per scene. small_radius, large_radius: ranges in pixels at 128 px,
    with a gap between them. spacing: centres are at least this times the sum of both radii apart (1 or
    more: hardly any overlap). border_cut: the share of its radius an object may reach beyond the border.
    min_visible: the least share of an object's area that can be seen. min_target_visible: the same for
    objects that an expression may mean.
    """

    objects: tuple[int, int]
    small_radius: tuple[float, float]
    large_radius: tuple[float, float]
    spacing: float
    border_cut: float
    min_visible: float
    min_target_visible: float


LEVELS: dict[str, Level] = {
    "easy": Level((2, 4), (14.0, 17.5), (22.0, 27.0), 1.05, 0.0, 0.9, 0.9),
    "standard": Level((3, 5), (14.0, 17.5), (22.0, 27.0), 0.62, 0.25, 0.45, 0.55),
    "hard": Level((5, 8), (10.0, 13.0), (17.0, 22.0), 0.55, 0.35, 0.45, 0.5),
}
CATEGORY_CHOICES: tuple[str, ...] = ("seen", "unseen", "all")


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """What kind of scenes to make.

    size: side of the square image in pixels, 64 to 1024. level: "easy", "standard" or "hard" (see LEVELS).
    categories: "seen" (every object is of a seen category), "unseen" (only objects of an unseen category
    are described; the others may be of either kind) or "all". Anything else is an InputError.
    """

    size: int = 128
    level: str = "standard"
    categories: str = "seen"

    def __post_init__(self) -> None:
        if (
            isinstance(self.size, bool)
            or not isinstance(self.size, int)
            or not MIN_SIZE <= self.size <= MAX_SIZE
        ):
            raise InputError(
                f"RefShapes size {self.size!r} is not a whole number from {MIN_SIZE} to {MAX_SIZE}"
            )
        if self.level not in LEVELS:
            raise InputError(f"RefShapes level {self.level!r} is unknown; choose one of {', '.join(LEVELS)}")
        if self.categories not in CATEGORY_CHOICES:
            choices = ", ".join(CATEGORY_CHOICES)
            raise InputError(f"RefShapes categories {self.categories!r} is unknown; choose one of {choices}")


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene to be painted: `objects` in painter's order (the last one is on top)."""

    objects: tuple[ShapeObject, ...]
    size: int = REFERENCE_SIZE
    background_seed: int = 0
    options: WorldOptions = field(default_factory=WorldOptions)


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """An independent random generator for one scene and one purpose (0 layout, 1 expressions)."""
    for name, value in (("seed", seed), ("index", index)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"RefShapes {name} {value!r} is not a whole number from 0 up")
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(int(seed), spawn_key=(int(index), purpose)))
    )


def min_visible_area(size: int) -> float:
    """The fewest visible pixels an object keeps at an image size."""
    return MIN_VISIBLE_PIXELS * (size / REFERENCE_SIZE) ** 2


def visible_share(shape: ShapeObject, visible_pixels: int) -> float:
    """Visible part of an object's whole area, what lies beyond the border included; about 0 .. 1."""
    return visible_pixels / (unit_area(shape.category) * shape.radius**2)


def sample_scene(seed: int, index: int, options: WorldOptions | None = None) -> Scene:
    """The scene number `index` of the world `seed`: the same arguments always give the same scene."""
    return sample_covered_scene(seed, index, options or WorldOptions())[0]


def sample_covered_scene(
    seed: int, index: int, options: WorldOptions
) -> tuple[Scene, list[Coverage], NDArray[np.bool_]]:
    """As `sample_scene`, with the coverages and visible masks [N, H, W] that were computed on the way."""
    rng = stream(seed, index, 0)
    level = LEVELS[options.level]
    for _ in range(400):
        shapes = _sample_shapes(rng, level, options)
        if shapes is None:
            continue
        coverages = [cover(shape, options.size) for shape in shapes]
        masks = visible_masks(coverages, options.size)
        if _visible_enough(shapes, masks, level, options):
            scene = Scene(tuple(shapes), options.size, int(rng.integers(2**32)), options)
            return scene, coverages, masks
    raise RuntimeError(f"no layout found for scene {index} of seed {seed} with {options}")


def _visible_enough(
    shapes: list[ShapeObject], masks: NDArray[np.bool_], level: Level, options: WorldOptions
) -> bool:
    floor = min_visible_area(options.size)
    targets = 0
    for shape, mask in zip(shapes, masks, strict=True):
        pixels = int(np.count_nonzero(mask))
        share = visible_share(shape, pixels)
        if pixels < floor or share < level.min_visible:
            return False
        wanted = options.categories != "unseen" or shape.category in UNSEEN_CATEGORIES
        targets += wanted and share >= level.min_target_visible
    return targets > 0


def _sample_shapes(rng: np.random.Generator, level: Level, options: WorldOptions) -> list[ShapeObject] | None:
    """Draw properties and a free place for every object; None if some object found no place."""
    count = int(rng.integers(level.objects[0], level.objects[1] + 1))
    categories = _spread(
        rng, _category_pool(rng, options.categories, min(count, int(rng.integers(2, 4)))), count
    )
    n_colors = min(count, int(rng.integers(2, 5)))
    colors = _spread(rng, [COLORS[i] for i in rng.permutation(len(COLORS))[:n_colors]], count)
    scale = options.size / REFERENCE_SIZE
    # One row of numbers per object; reading them from a table is quicker than drawing one by one.
    draws = rng.random((count, 9)).tolist()
    places = rng.random((count, 24, 2)).tolist()
    shapes: list[ShapeObject] = []
    taken: list[tuple[float, float, float]] = []
    for i in range(count):
        row = draws[i]
        size_name = "small" if row[0] < 0.5 else "large"
        low, high = level.small_radius if size_name == "small" else level.large_radius
        radius = (low + (high - low) * row[1]) * scale
        center = _free_place(places[i], radius, taken, level, options.size)
        if center is None:
            return None
        taken.append((*center, radius))
        base = COLOR_RGB[colors[i]]
        rgb = tuple(
            min(255, max(0, value + round((2 * row[2 + channel] - 1) * COLOR_JITTER)))
            for channel, value in enumerate(base)
        )
        shapes.append(
            ShapeObject(
                category=categories[i],
                color=colors[i],
                texture="striped" if row[5] < STRIPED_SHARE else "plain",
                size_name=size_name,
                center=center,
                radius=radius,
                angle=math.radians(MAX_TURN[categories[i]]) * (2 * row[6] - 1),
                rgb=(rgb[0], rgb[1], rgb[2]),
                stripe_angle=math.pi * row[7],
                stripe_phase=2 * math.pi * row[8],
            )
        )
    return shapes


def _category_pool(rng: np.random.Generator, choice: str, count: int) -> list[str]:
    if choice == "seen":
        return [SEEN_CATEGORIES[i] for i in rng.permutation(len(SEEN_CATEGORIES))[:count]]
    if choice == "all":
        return [CATEGORIES[i] for i in rng.permutation(len(CATEGORIES))[:count]]
    # At least one category to describe, and usually one of the other kind to be told apart from.
    first = UNSEEN_CATEGORIES[int(rng.integers(len(UNSEEN_CATEGORIES)))]
    others = [name for name in CATEGORIES if name != first]
    return [first] + [others[i] for i in rng.permutation(len(others))[: count - 1]]


def _spread(rng: np.random.Generator, pool: list[str], count: int) -> list[str]:
    """`count` values that use every value of the pool at least once, in random order."""
    values = pool + [pool[i] for i in rng.integers(len(pool), size=count - len(pool)).tolist()]
    return [values[i] for i in rng.permutation(count).tolist()]


def _free_place(
    places: list[list[float]], radius: float, taken: list[tuple[float, float, float]], level: Level, size: int
) -> tuple[float, float] | None:
    margin = radius * (1.0 + 0.05 - level.border_cut)
    span = size - 2 * margin
    for fx, fy in places:
        x, y = margin + span * fx, margin + span * fy
        if all(math.hypot(x - a, y - b) >= level.spacing * (radius + r) for a, b, r in taken):
            return x, y
    return None
