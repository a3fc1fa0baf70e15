"""The card that lies beside a RefShapes data set: what it is, how to make it again, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptris.data.refshapes.scene import LEVELS, REFERENCE_SIZE, Level
from promptris.data.refshapes.tags import TAGS
from promptris.data.refshapes.words import SEEN_CATEGORIES, UNSEEN_CATEGORIES, vocabulary

Counts = tuple[int, int, int]


def card(world: Mapping[str, Any], counts: Mapping[str, Counts]) -> str:
    """README.md of a data set.

    Args:
        world: what `world.json` says.
        counts: images, referents and expressions of every split.
    """
    options, trained = world["options"], world["train_categories"]
    rows = [
        f"| {split} | {trained if split.startswith('train') else options['categories']} | "
        + " | ".join(f"{count:,}" for count in numbers)
        + " |"
        for split, numbers in counts.items()
    ]
    tags = [f"| `{name}` | {meaning} |" for name, meaning in TAGS.items()]
    return f"""# RefShapes, level {options["level"]}, {options["size"]} px, seed {world["seed"]}

Pictures of coloured shapes, painted by a program, and referring expressions of 2 to 12 words. Every expression
means exactly one object of its picture; a second program that shares no code with the one that writes them has
read each and agreed. Format {world["format"]}.

| split | categories described | images | referents | expressions |
|---|---|---|---|---|
{chr(10).join(rows)}

Seen categories: {", ".join(SEEN_CATEGORIES)}. Unseen: {", ".join(UNSEEN_CATEGORIES)}.

{_numbers(LEVELS[options["level"]])}

## Made by

    {_command(world)}

The same command gives the same bytes with the same versions of promptris, NumPy and Pillow.

## Files

- `../images/`: the pictures, JPEG of quality 95.
- `refs(unc).p`, `instances.json`: expressions and masks in the layout of REFER, as RefCOCO has it.
- `tags.json`: tags of each expression by its `sent_id`.
- `world.json`: seed, options and splits.

| tag | meaning |
|---|---|
{chr(10).join(tags)}

## Limits

A world to test methods in: scores here say nothing about photographs, about people's language, or about words
outside a vocabulary of {len(vocabulary())}. No person, place or real object is shown.

Licence: that of promptris, Apache-2.0.
"""


def _command(world: Mapping[str, Any]) -> str:
    options = world["options"]
    splits = ",".join(f"{name}:{count}" for name, count in world["splits"].items())
    if world["train_categories"] == "seen":
        return (
            f"promptris refshapes DIR --splits {splits} --seed {world['seed']} --size {options['size']} "
            f"--level {options['level']} --categories {options['categories']}"
        )
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return (
        f"write_refshapes(DIR, {world['splits']!r}, {world['seed']}, WorldOptions({arguments}), "
        f"train_categories={world['train_categories']!r})"
    )


def _numbers(level: Level) -> str:
    fewest, most = level.objects
    small, large = _range(level.small_radius), _range(level.large_radius)
    lines = (
        f"{fewest} to {most} objects per scene, small ones of radius {small} and large ones of {large} pixels",
        f"centres apart by at least {level.spacing:g} times the sum of both radii; near ones cover each other",
        f"up to {level.border_cut:.0%} of the radius beyond the border",
        f"at least {level.min_visible:.0%} of every object visible, and {level.min_target_visible:.0%} of those "
        "that are described",
    )
    return f"At {REFERENCE_SIZE} pixels, other sizes in proportion:\n\n" + "\n".join(
        f"- {line}" for line in lines
    )


def _range(values: tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"
