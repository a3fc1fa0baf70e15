"""Writing expressions for the objects of a scene: attributes, places, relations.

A proposal is only a guess: `meaning.interpret` reads every text afresh, and only those that mean exactly
their target are kept.
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
    """A text that means exactly one object of a scene: `target` is its index."""

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
    """About 8 to 12 expressions for a scene, several per object, each with one meaning.

    masks bool [N, H, W] are the visible masks. Texts are different from each other; simple scenes give
    fewer. The same arguments and generator state give the same list.
    """
    targets = describable(scene, masks)
    if not targets:
        return []
    draw = Draw(rng)
    found: dict[str, Description] = {}
    per_object = dict.fromkeys(targets, 0)
    per_kind = dict.fromkeys(KINDS, 0)
    for round_number in range(4):
        for kind in KINDS:
            for target in sorted(targets, key=lambda _: draw()):
                if per_object[target] >= MOST_PER_OBJECT or per_kind[kind] >= MOST_PER_KIND[kind]:
                    continue
                for _ in range(TRIES[kind]):
                    text = _propose(kind, scene, target, draw)
                    if text is None or text in found or referent(text, scene) != target:
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


def _propose(kind: Kind, scene: Scene, target: int, draw: Draw) -> str | None:
    if kind == "attribute":
        phrase = _unique_phrase(scene, target, draw)
        return None if phrase is None else _article(draw) + phrase
    if kind == "location":
        return _propose_location(scene, target, draw)
    return _propose_relation(scene, target, draw)


def _article(draw: Draw) -> str:
    return "the " if draw.chance(0.55) else ""


@cache
def _subsets(size: int) -> tuple[tuple[str, ...], ...]:
    return tuple(combinations(_PROPERTIES, size))


def _alike(scene: Scene, shape: ShapeObject, properties: tuple[str, ...]) -> list[int]:
    """Objects that share the named properties with `shape`, itself included."""
    values = [(name, getattr(shape, name)) for name in properties]
    return [
        i
        for i, other in enumerate(scene.objects)
        if all(getattr(other, name) == value for name, value in values)
    ]


def _unique_phrase(scene: Scene, target: int, draw: Draw) -> str | None:
    """A noun phrase with a smallest set of properties that no other object shares, sometimes one more."""
    shape = scene.objects[target]
    for size in range(1, len(_PROPERTIES) + 1):
        unique = [subset for subset in _subsets(size) if len(_alike(scene, shape, subset)) == 1]
        if unique:
            subset = draw.pick(unique)
            missing = [name for name in _PROPERTIES if name not in subset]
            if missing and draw.chance(REDUNDANT_SHARE):
                # Colour and category are what people add unasked.
                likely = [name for name in missing if name in ("color", "category")]
                subset = (*subset, draw.pick(likely or missing))
            return noun_phrase(shape, subset, draw)
    return None


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


def _group_properties(scene: Scene, target: int, draw: Draw) -> tuple[str, ...]:
    """Properties that the target shares with at least one other object; empty: every object."""
    shape = scene.objects[target]
    roll = draw()
    if roll < 0.15:
        wanted: list[tuple[str, ...]] = [()]
    elif roll < 0.75:
        wanted = [("category",), ("color",), ("category", "color")]
    else:
        wanted = [
            ("color", "category"),
            ("color",),
            ("texture",),
            ("size_name", "category"),
            ("texture", "category"),
        ]
    fitting = [subset for subset in wanted if len(_alike(scene, shape, subset)) >= 2]
    if not fitting:
        return ()
    return fitting[0] if roll < 0.75 else draw.pick(fitting)


def _propose_location(scene: Scene, target: int, draw: Draw) -> str | None:
    shape = scene.objects[target]
    properties = _group_properties(scene, target, draw)
    group = _alike(scene, shape, properties)
    if len(group) < 2:
        return None
    # Directions along which the target comes first.
    x, y = shape.center
    leading = []
    for name, (dx, dy) in words.DIRECTIONS.items():
        lead = x * dx + y * dy
        if all(
            scene.objects[i].center[0] * dx + scene.objects[i].center[1] * dy < lead
            for i in group
            if i != target
        ):
            leading.append(name)
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


def _propose_relation(scene: Scene, target: int, draw: Draw) -> str | None:
    others = [i for i in range(len(scene.objects)) if i != target]
    if not others:
        return None
    anchor = draw.pick(others)
    shape, other = scene.objects[target], scene.objects[anchor]
    dx, dy = shape.center[0] - other.center[0], shape.center[1] - other.center[1]
    across, along = "left" if dx < 0 else "right", "top" if dy < 0 else "bottom"
    side = across if abs(dx) >= abs(dy) else along
    properties = _group_properties(scene, target, draw)
    anchor_phrase = _unique_phrase(scene, anchor, draw)
    if anchor_phrase is None:
        return None
    head = noun_phrase(shape, properties, draw, False)
    return f"{_article(draw)}{head} {draw.pick(words.RELATION_PHRASES[side])} the {anchor_phrase}"
