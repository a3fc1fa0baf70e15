"""Writing expressions for the objects of a scene: attributes, places, relations.

A proposal is only a guess: `meaning.interpret` reads every text afresh, and only those that mean exactly
their target, in LEAST_WORDS to MOST_WORDS words, are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from promptris.data.refshapes import words
from promptris.data.refshapes.meaning import referent
from promptris.data.refshapes.scene import LEVELS, Scene, visible_share
from promptris.data.refshapes.shapes import ShapeObject

Kind = Literal["attribute", "location", "relation"]
KINDS: tuple[Kind, ...] = ("attribute", "location", "relation")
LEAST_WORDS, MOST_WORDS = 2, 12
MOST_PER_SCENE = 12
WANTED_PER_SCENE = 10
MOST_PER_OBJECT = 6
# Attributes are the easiest to find; the other kinds get more tries and attributes an upper limit.
MOST_PER_KIND: dict[Kind, int] = {"attribute": 5, "location": 5, "relation": 5}
TRIES: dict[Kind, int] = {"attribute": 1, "location": 2, "relation": 4}
# Chance that a phrase names one property more than it needs, as people do.
REDUNDANT_SHARE = 0.35

_PROPERTIES = ("category", "color", "texture", "size_name")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Description:
    """A text of 2 to 12 words that means exactly one object of a scene: `target` is its index."""

    text: str
    kind: Kind
    target: int


def describable(scene: Scene, masks: NDArray[np.bool_]) -> list[int]:
    """Objects that may be targets: seen well enough, and of a category the scene's options describe."""
    least = LEVELS[scene.options.level].min_target_visible
    only_unseen = scene.options.categories == "unseen"
    return [
        i
        for i, shape in enumerate(scene.objects)
        if visible_share(shape, int(np.count_nonzero(masks[i]))) >= least
        and not (only_unseen and shape.category not in words.UNSEEN_CATEGORIES)
    ]


def describe(scene: Scene, masks: NDArray[np.bool_], rng: np.random.Generator) -> list[Description]:
    """About 8 to 12 expressions for a scene, several per object, each of 2 to 12 words and one meaning.

    masks bool [N, H, W] are the visible masks. Texts are different from each other; simple scenes give
    fewer. The same arguments and generator state give the same list.
    """
    targets = describable(scene, masks)
    if not targets:
        return []
    draw = Draw(rng)
    likeness = _Likeness(scene)
    found: dict[str, Description] = {}
    per_object = dict.fromkeys(targets, 0)
    per_kind = dict.fromkeys(KINDS, 0)
    for round_number in range(4):
        for kind in KINDS:
            for target in sorted(targets, key=lambda _: draw()):
                if per_object[target] >= MOST_PER_OBJECT or per_kind[kind] >= MOST_PER_KIND[kind]:
                    continue
                for _ in range(TRIES[kind]):
                    text = _propose(kind, likeness, target, draw)
                    if text is None or text in found or not _fitting_length(text):
                        continue
                    if referent(text, scene) != target:
                        continue
                    found[text] = Description(text, kind, target)
                    per_object[target] += 1
                    per_kind[kind] += 1
                    break
        if len(found) >= WANTED_PER_SCENE and round_number:
            break
    listed = list(found.values())
    if len(listed) <= MOST_PER_SCENE:
        return listed
    # Keep the first of every object, then a random rest, in the order they were found.
    firsts = {d.target: k for k, d in reversed(list(enumerate(listed)))}
    rest = [int(k) for k in rng.permutation(len(listed)) if int(k) not in firsts.values()]
    kept = sorted([*firsts.values(), *rest[: MOST_PER_SCENE - len(firsts)]])
    return [listed[k] for k in kept]


class Draw:
    """Cheap random choices from one numpy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._numbers: list[float] = []
        self._rng = rng

    def __call__(self) -> float:
        if not self._numbers:
            self._numbers = self._rng.random(128).tolist()
        return self._numbers.pop()

    def chance(self, share: float) -> bool:
        return self() < share

    def pick(self, items: Sequence[_Item]) -> _Item:
        return items[int(self() * len(items))]


def _fitting_length(text: str) -> bool:
    return LEAST_WORDS <= text.count(" ") + 1 <= MOST_WORDS


@cache
def _subsets(size: int) -> tuple[tuple[str, ...], ...]:
    return tuple(combinations(_PROPERTIES, size))


class _Likeness:
    """Which objects of a scene share properties. Sets of objects are bits of an int: a scene is asked often."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._everything = (1 << len(scene.objects)) - 1
        self._sharing: dict[str, list[int]] = {}
        for name in _PROPERTIES:
            values = [getattr(shape, name) for shape in scene.objects]
            sets = {value: sum(1 << i for i, v in enumerate(values) if v == value) for value in values}
            self._sharing[name] = [sets[value] for value in values]
        self._telling: dict[int, list[tuple[str, ...]]] = {}

    def _alike(self, target: int, properties: tuple[str, ...]) -> int:
        found = self._everything
        for name in properties:
            found &= self._sharing[name][target]
        return found

    def count(self, target: int, properties: tuple[str, ...]) -> int:
        """How many objects share the named properties with `target`, itself included."""
        return self._alike(target, properties).bit_count()

    def others(self, target: int, properties: tuple[str, ...]) -> list[ShapeObject]:
        """The other objects that share the named properties with `target`."""
        found = self._alike(target, properties) & ~(1 << target)
        return [shape for i, shape in enumerate(self.scene.objects) if found >> i & 1]

    def telling(self, target: int) -> list[tuple[str, ...]]:
        """The smallest sets of properties that no other object shares; empty where there are none."""
        if target not in self._telling:
            self._telling[target] = self._find_telling(target)
        return self._telling[target]

    def _find_telling(self, target: int) -> list[tuple[str, ...]]:
        for size in range(1, len(_PROPERTIES) + 1):
            if unique := [subset for subset in _subsets(size) if self.count(target, subset) == 1]:
                return unique
        return []


def _propose(kind: Kind, likeness: _Likeness, target: int, draw: Draw) -> str | None:
    if kind == "attribute":
        phrase = _unique_phrase(likeness, target, draw)
        if phrase is None:
            return None
        article = _article(draw)
        # A noun on its own always gets one.
        return (article if " " in phrase else "the ") + phrase
    if kind == "location":
        return _propose_location(likeness, target, draw)
    return _propose_relation(likeness, target, draw)


def _article(draw: Draw) -> str:
    return "the " if draw.chance(0.55) else ""


def _unique_phrase(likeness: _Likeness, target: int, draw: Draw) -> str | None:
    """A noun phrase with a smallest set of properties that no other object shares, sometimes one more."""
    unique = likeness.telling(target)
    if not unique:
        return None
    subset = draw.pick(unique)
    missing = [name for name in _PROPERTIES if name not in subset]
    if missing and draw.chance(REDUNDANT_SHARE):
        # Colour and category are what people add unasked.
        likely = [name for name in missing if name in ("color", "category")]
        subset = (*subset, draw.pick(likely or missing))
    return noun_phrase(likeness.scene.objects[target], subset, draw)


def noun_phrase(shape: ShapeObject, properties: tuple[str, ...], draw: Draw, tails: bool = True) -> str:
    """Words for some of an object's properties in one of several orders, without an article.

    With `tails` a property may stand behind the noun: "ring with stripes", "ring that is red".
    """
    size = draw.pick(words.SIZE_WORDS[shape.size_name]) if "size_name" in properties else ""
    texture = draw.pick(words.TEXTURE_WORDS[shape.texture]) if "texture" in properties else ""
    color = shape.color if "color" in properties else ""
    tail = ""
    if tails and texture and draw.chance(0.3):
        tail = " " + words.STRIPE_PHRASES[shape.texture][0]
        texture = ""
    elif tails and draw.chance(0.12):
        behind = [word for word in (size, texture, color) if word]
        if behind:
            tail = " that is " + " and ".join(behind)
            size = texture = color = ""
    order = (texture, size, color) if draw.chance(0.15) else (size, texture, color)
    front = [word for word in order if word]
    if "category" in properties:
        noun = shape.category
    elif (front or tail) and draw.chance(0.25):
        noun = words.PRONOUN
    else:
        noun = draw.pick(words.GENERIC_NOUNS)
    return " ".join([*front, noun]) + tail


def _group_properties(likeness: _Likeness, target: int, draw: Draw) -> tuple[str, ...]:
    """Properties that the target shares with at least one other object; empty: every object."""
    roll = draw()
    if roll < 0.15:
        return ()
    if roll < 0.75:
        for subset in (("category",), ("color",), ("category", "color")):
            if likeness.count(target, subset) >= 2:
                return subset
        return ()
    wanted = (
        ("color", "category"),
        ("color",),
        ("texture",),
        ("size_name", "category"),
        ("texture", "category"),
    )
    fitting = [subset for subset in wanted if likeness.count(target, subset) >= 2]
    return draw.pick(fitting) if fitting else ()


def _propose_location(likeness: _Likeness, target: int, draw: Draw) -> str | None:
    shape = likeness.scene.objects[target]
    properties = _group_properties(likeness, target, draw)
    others = likeness.others(target, properties)
    if not others:
        return None
    # Directions along which the target comes first.
    x, y = shape.center
    leading = [
        name
        for name, (dx, dy) in words.DIRECTIONS.items()
        if all(other.center[0] * dx + other.center[1] * dy < x * dx + y * dy for other in others)
    ]
    if not leading:
        return None
    direction = draw.pick(leading)
    if draw.chance(0.5):
        return (
            _article(draw)
            + place_adjective(direction, draw)
            + " "
            + noun_phrase(shape, properties, draw, False)
        )
    noun = noun_phrase(shape, properties, draw, False)
    return _article(draw) + noun + " " + draw.pick(words.PLACE_PHRASES[direction])


def place_adjective(direction: str, draw: Draw) -> str:
    if " " not in direction:
        return draw.pick(words.EXTREME_WORDS[direction])
    vertical, horizontal = direction.split()
    return f"{draw.pick(words.VERTICAL_WORDS[vertical])} {horizontal}"


def _propose_relation(likeness: _Likeness, target: int, draw: Draw) -> str | None:
    objects = likeness.scene.objects
    others = [i for i in range(len(objects)) if i != target]
    if not others:
        return None
    anchor = draw.pick(others)
    shape, other = objects[target], objects[anchor]
    dx, dy = shape.center[0] - other.center[0], shape.center[1] - other.center[1]
    across, along = "left" if dx < 0 else "right", "top" if dy < 0 else "bottom"
    side = across if abs(dx) >= abs(dy) else along
    properties = _group_properties(likeness, target, draw)
    anchor_phrase = _unique_phrase(likeness, anchor, draw)
    if anchor_phrase is None:
        return None
    head = noun_phrase(shape, properties, draw, False)
    return f"{_article(draw)}{head} {draw.pick(words.RELATION_PHRASES[side])} the {anchor_phrase}"
