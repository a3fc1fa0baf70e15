"""Every word of RefShapes: the properties an object can have, and the ways to say them."""

from __future__ import annotations

SEEN_CATEGORIES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
UNSEEN_CATEGORIES: tuple[str, ...] = ("moon", "heart")
CATEGORIES: tuple[str, ...] = SEEN_CATEGORIES + UNSEEN_CATEGORIES
COLORS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "orange")
TEXTURES: tuple[str, ...] = ("plain", "striped")
SIZES: tuple[str, ...] = ("small", "large")

# Nouns that say nothing about the category; "one" is only used where another word tells which.
GENERIC_NOUNS: tuple[str, ...] = ("thing", "shape", "object")
PRONOUN = "one"

SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {"plain": ("plain", "solid"), "striped": ("striped",)}

# Image frame: x to the right, y down.
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
    "top left": (-(0.5**0.5), -(0.5**0.5)),
    "top right": (0.5**0.5, -(0.5**0.5)),
    "bottom left": (-(0.5**0.5), 0.5**0.5),
    "bottom right": (0.5**0.5, 0.5**0.5),
}
VERTICAL_WORDS: dict[str, tuple[str, ...]] = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
EXTREME_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left", "leftmost", "far left"),
    "right": ("right", "rightmost", "far right"),
    "top": ("top", "topmost", "upper", "highest"),
    "bottom": ("bottom", "bottommost", "lower", "lowest"),
}
# Phrases behind a noun that say the same as the words before it.
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "to the left", "on the far left", "furthest to the left", "on the left side"),
    "right": (
        "on the right",
        "to the right",
        "on the far right",
        "furthest to the right",
        "on the right side",
    ),
    "top": ("at the top", "closest to the top", "nearest the top"),
    "bottom": ("at the bottom", "closest to the bottom", "nearest the bottom"),
    "top left": (
        "at the top left",
        "in the top left corner",
        "in the upper left corner",
        "on the upper left",
    ),
    "top right": (
        "at the top right",
        "in the top right corner",
        "in the upper right corner",
        "on the upper right",
    ),
    "bottom left": (
        "at the bottom left",
        "in the bottom left corner",
        "in the lower left corner",
        "on the lower left",
    ),
    "bottom right": (
        "at the bottom right",
        "in the bottom right corner",
        "in the lower right corner",
        "on the lower right",
    ),
}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "top": ("above", "over", "higher than"),
    "bottom": ("below", "under", "beneath", "lower than"),
}
STRIPE_PHRASES: dict[str, tuple[str, ...]] = {"striped": ("with stripes",), "plain": ("without stripes",)}

# Words of captions and region phrases that no expression needs.
CAPTION_WORDS: tuple[str, ...] = (
    "a",
    "an",
    "and",
    "background",
    "center",
    "in",
    "middle",
    "of",
    "picture",
    "the",
)


def vocabulary() -> list[str]:
    """Every word an expression or a caption phrase of this world can contain, sorted, without repeats."""
    phrases: list[str] = [*CATEGORIES, *COLORS, *TEXTURES, *SIZES, *GENERIC_NOUNS, PRONOUN, *CAPTION_WORDS]
    phrases += ["that is", "and"]
    for table in (
        SIZE_WORDS,
        TEXTURE_WORDS,
        VERTICAL_WORDS,
        EXTREME_WORDS,
        PLACE_PHRASES,
        RELATION_PHRASES,
        STRIPE_PHRASES,
    ):
        for name, forms in table.items():
            phrases.append(name)
            phrases.extend(forms)
    return sorted({word for phrase in phrases for word in phrase.split()})
