"""What an expression means in a scene, read from its text alone.

The judge of the generator: it parses the words and looks at the scene's objects, and shares no code with
the module that writes expressions. Words such as "left" are vague, so a reading has two sets: the objects
the text may *possibly* mean, taken generously, and those it *clearly* means. An expression is sound when
both hold the same single object.

Grammar::

    phrase   = ["the"] [place] {size | texture | colour} noun {tail}
    place    = ["far"] side | (top|upper|bottom|lower) (left|right)
    tail     = "that is" word {"and" word} | "with stripes" | "without stripes"
             | (on|at|in|to) "the" ["far"] place ["corner"|"side"]
             | furthest to the side | (closest to|nearest) the side
             | relation phrase

Tails behind a relation are the anchor's. Taken for the head's they could only narrow what the text may mean,
because the relation holds against one anchor either way, or against none.

Distances are shares of the image side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from promptris.data.refshapes.scene import Scene
from promptris.data.refshapes.shapes import ShapeObject

EXTREME_MARGIN = 0.08  # the next object along the direction is at least this far behind
DIAGONAL_OFFSET = 0.04  # a corner's object differs this much from the group's mean on both axes
CLEAR_STEP = 0.12  # clearly above: at least this far up ...
CLEAR_SLOPE = 0.8  # ... and not much further to the side than up
POSSIBLE_STEP = 0.03
POSSIBLE_SLOPE = 0.3

_CATEGORIES = frozenset(("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart"))
_COLORS = frozenset(("red", "green", "blue", "yellow", "purple", "orange"))
_SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
_TEXTURES = {"plain": "plain", "solid": "plain", "striped": "striped"}
_ANYTHING = frozenset(("thing", "shape", "object", "one"))
_SIDES: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "leftmost": (-1, 0),
    "right": (1, 0),
    "rightmost": (1, 0),
    "top": (0, -1),
    "topmost": (0, -1),
    "upper": (0, -1),
    "highest": (0, -1),
    "bottom": (0, 1),
    "bottommost": (0, 1),
    "lower": (0, 1),
    "lowest": (0, 1),
}
_FIRST_OF_CORNER = frozenset(("top", "upper", "bottom", "lower"))


class MeaningError(ValueError):
    """The text does not follow the grammar."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Indices of the objects a text clearly means, and of those it may possibly mean."""

    clear: frozenset[int]
    possible: frozenset[int]

    @property
    def only(self) -> int | None:
        """The one object meant beyond doubt, or None."""
        if len(self.possible) == 1 and self.clear == self.possible:
            return next(iter(self.clear))
        return None


_NOTHING = Reading(frozenset(), frozenset())


@dataclass(slots=True)
class _Phrase:
    category: str | None = None
    colors: list[str] = field(default_factory=list)
    textures: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    places: list[tuple[int, int, bool]] = field(default_factory=list)  # dx, dy, a corner of the image
    relations: list[tuple[int, int, _Phrase]] = field(default_factory=list)

    def fits(self, shape: ShapeObject) -> bool:
        return (
            (self.category is None or shape.category == self.category)
            and all(shape.color == c for c in self.colors)
            and all(shape.texture == t for t in self.textures)
            and all(shape.size_name == s for s in self.sizes)
        )


def interpret(text: str, scene: Scene) -> Reading:
    """Read `text` against `scene`; MeaningError if a word or its place is not understood."""
    words = text.split()
    phrase, end = _parse_phrase(words, 0)
    if end != len(words):
        raise MeaningError(f"{text!r}: word {end + 1} ({words[end]!r}) is not understood here")
    return _evaluate(phrase, scene)


def referents(text: str, scene: Scene) -> frozenset[int]:
    """Indices of all objects that satisfy the text, in a generous reading."""
    return interpret(text, scene).possible


def referent(text: str, scene: Scene) -> int | None:
    """Index of the one object the text means beyond doubt, or None."""
    return interpret(text, scene).only


def _parse_phrase(words: list[str], i: int) -> tuple[_Phrase, int]:
    phrase = _Phrase()
    if i < len(words) and words[i] == "the":
        i += 1
    if i < len(words) and words[i] == "far":
        i += 1
        if i >= len(words) or words[i] not in ("left", "right"):
            raise MeaningError(f"{' '.join(words)!r}: 'far' must be followed by 'left' or 'right'")
    if i < len(words) and words[i] in _SIDES:
        i = _parse_side(words, i, phrase, False)
    while i < len(words) and _take_property(words[i], phrase):
        i += 1
    if i >= len(words):
        raise MeaningError(f"{' '.join(words)!r}: a noun is missing at the end")
    if words[i] in _CATEGORIES:
        phrase.category = words[i]
    elif words[i] not in _ANYTHING:
        raise MeaningError(f"{' '.join(words)!r}: {words[i]!r} is no noun of this world")
    return phrase, _parse_tails(words, i + 1, phrase)


def _take_property(word: str, phrase: _Phrase) -> bool:
    if word in _COLORS:
        phrase.colors.append(word)
    elif word in _SIZES:
        phrase.sizes.append(_SIZES[word])
    elif word in _TEXTURES:
        phrase.textures.append(_TEXTURES[word])
    else:
        return False
    return True


def _parse_side(words: list[str], i: int, phrase: _Phrase, corner: bool) -> int:
    """One side ("left", "topmost") or a pair ("upper left") from position i on."""
    dx, dy = _SIDES[words[i]]
    if words[i] in _FIRST_OF_CORNER and i + 1 < len(words) and words[i + 1] in ("left", "right"):
        i += 1
        dx = _SIDES[words[i]][0]
    phrase.places.append((dx, dy, corner))
    return i + 1


def _parse_tails(words: list[str], i: int, phrase: _Phrase) -> int:
    while i < len(words):
        rest = words[i : i + 4]
        if rest[:2] == ["that", "is"]:
            i = _parse_predicate(words, i + 2, phrase)
        elif rest[:2] == ["with", "stripes"]:
            phrase.textures.append("striped")
            i += 2
        elif rest[:2] == ["without", "stripes"]:
            phrase.textures.append("plain")
            i += 2
        elif rest[0] in ("above", "over"):
            return _parse_relation(words, i + 1, phrase, (0, -1))
        elif rest[:2] == ["higher", "than"]:
            return _parse_relation(words, i + 2, phrase, (0, -1))
        elif rest[0] in ("below", "under", "beneath"):
            return _parse_relation(words, i + 1, phrase, (0, 1))
        elif rest[:2] == ["lower", "than"]:
            return _parse_relation(words, i + 2, phrase, (0, 1))
        elif rest[0] in ("left", "right") and rest[1:2] == ["of"]:
            return _parse_relation(words, i + 2, phrase, _SIDES[rest[0]])
        elif (
            rest[0] in ("to", "on")
            and rest[1:2] == ["the"]
            and rest[2:3] in (["left"], ["right"])
            and rest[3:] == ["of"]
        ):
            return _parse_relation(words, i + 4, phrase, _SIDES[rest[2]])
        elif rest[0] in ("on", "at", "in", "to") and rest[1:2] == ["the"]:
            i = _parse_place(words, i + 2, phrase)
        elif rest[0] in ("furthest", "closest") and rest[1:3] == ["to", "the"]:
            i = _parse_place(words, i + 3, phrase)
        elif rest[:2] == ["nearest", "the"]:
            i = _parse_place(words, i + 2, phrase)
        else:
            break
    return i


def _parse_predicate(words: list[str], i: int, phrase: _Phrase) -> int:
    while True:
        if i >= len(words) or not _take_property(words[i], phrase):
            raise MeaningError(f"{' '.join(words)!r}: 'that is' needs a colour, a size or a texture")
        i += 1
        if i >= len(words) or words[i] != "and":
            return i
        i += 1


def _parse_relation(words: list[str], i: int, phrase: _Phrase, direction: tuple[int, int]) -> int:
    anchor, end = _parse_phrase(words, i)
    phrase.relations.append((*direction, anchor))
    return end


def _parse_place(words: list[str], i: int, phrase: _Phrase) -> int:
    if i < len(words) and words[i] == "far":
        i += 1
    if i >= len(words) or words[i] not in _SIDES:
        raise MeaningError(f"{' '.join(words)!r}: a side of the picture is missing")
    end = _parse_side(words, i, phrase, False)
    if end < len(words) and words[end] == "corner":
        dx, dy, _ = phrase.places.pop()
        phrase.places.append((dx, dy, True))
        return end + 1
    if end < len(words) and words[end] == "side":
        return end + 1
    return end


def _evaluate(phrase: _Phrase, scene: Scene) -> Reading:
    fitting = frozenset(i for i, shape in enumerate(scene.objects) if phrase.fits(shape))
    clear = possible = fitting
    for dx, dy, anchor in phrase.relations:
        known = _evaluate(anchor, scene).only
        if known is None:
            return _NOTHING
        clear, possible = _related(scene, known, dx, dy, clear, possible)
    for dx, dy, corner in phrase.places:
        clear, possible = _extreme(scene, dx, dy, corner, clear, possible)
    return Reading(clear, possible)


def _related(
    scene: Scene, anchor: int, dx: int, dy: int, clear: frozenset[int], possible: frozenset[int]
) -> tuple[frozenset[int], frozenset[int]]:
    ax, ay = scene.objects[anchor].center
    surely, perhaps = set(), set()
    for i in possible:
        if i == anchor:
            continue
        x, y = scene.objects[i].center
        along = ((x - ax) * dx + (y - ay) * dy) / scene.size
        aside = abs((x - ax) * dy + (y - ay) * dx) / scene.size
        if along >= POSSIBLE_STEP and along >= POSSIBLE_SLOPE * aside:
            perhaps.add(i)
            if i in clear and along >= CLEAR_STEP and along >= CLEAR_SLOPE * aside:
                surely.add(i)
    return frozenset(surely), frozenset(perhaps)


def _extreme(
    scene: Scene, dx: int, dy: int, corner: bool, clear: frozenset[int], possible: frozenset[int]
) -> tuple[frozenset[int], frozenset[int]]:
    """The object furthest along a direction; those within the margin stay possible."""
    if not possible:
        return possible, possible
    length = scene.size * (dx * dx + dy * dy) ** 0.5
    reach = {
        i: (scene.objects[i].center[0] * dx + scene.objects[i].center[1] * dy) / length for i in possible
    }
    best = max(reach.values())
    near = frozenset(i for i in possible if reach[i] >= best - EXTREME_MARGIN)
    if len(near) > 1:
        return frozenset(), near
    (winner,) = near
    x, y = scene.objects[winner].center
    if len(possible) == 1:
        # Nothing to compare with: the words must hold for the picture itself.
        from_x, from_y = scene.size / 2, scene.size / 2
    else:
        from_x = sum(scene.objects[i].center[0] for i in possible) / len(possible)
        from_y = sum(scene.objects[i].center[1] for i in possible) / len(possible)
    sound = winner in clear
    if (dx and dy) or len(possible) == 1:
        offset = DIAGONAL_OFFSET * scene.size
        sound = sound and (not dx or (x - from_x) * dx >= offset) and (not dy or (y - from_y) * dy >= offset)
    if corner:
        sound = sound and (x - scene.size / 2) * dx > 0 and (y - scene.size / 2) * dy > 0
    return (near if sound else frozenset()), near
