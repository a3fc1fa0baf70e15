"""Tags of expressions: what is known of each one, so that an evaluation can be told apart by it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from promptris.data.paths import is_file
from promptris.data.readers.instances import read_json
from promptris.data.refshapes.scene import Scene, visible_share
from promptris.data.refshapes.words import UNSEEN_CATEGORIES
from promptris.errors import InputError

if TYPE_CHECKING:
    from promptris.data.refshapes.expressions import Description

Tag = str | int | float
_SENT_ID = re.compile(r"-?[0-9]{1,18}")
_LIMIT = 2**53  # whole numbers below it are exact as floats
TAGS: dict[str, str] = {
    "kind": "attribute, location or relation",
    "words": "number of words, 2 to 12",
    "category_group": "seen or unseen: whether the referent's category is one of those kept out of training",
    "size": "small or large: the name of the referent's size",
    "share": "visible pixels of the referent as a share of the image",
    "visible": "visible part of the referent's whole outline, what lies beyond the border included, 0 to 1",
    "distractors": "other objects of the scene that share the referent's category, colour or size name",
    "same_category": "other objects of the scene of the referent's category",
    "same_color": "other objects of the scene of the referent's colour",
    "same_size": "other objects of the scene of the referent's size name",
}
"""What is told of every expression, and what it means. Other objects count whether they are described or not."""


def expression_tags(scene: Scene, masks: NDArray[np.bool_], description: Description) -> dict[str, Tag]:
    """The tags of one expression, in the order of TAGS; masks bool [N, H, W] are the visible masks."""
    shape, mask = scene.objects[description.target], masks[description.target]
    others = [other for i, other in enumerate(scene.objects) if i != description.target]
    alike = [
        (other.category == shape.category, other.color == shape.color, other.size_name == shape.size_name)
        for other in others
    ]
    same_category, same_color, same_size = (sum(flags[k] for flags in alike) for k in range(3))
    pixels = int(np.count_nonzero(mask))
    return {
        "kind": description.kind,
        "words": len(description.text.split()),
        "category_group": "unseen" if shape.category in UNSEEN_CATEGORIES else "seen",
        "size": shape.size_name,
        "share": round(pixels / mask.size, 4),
        # Pixels at the edge may make an object a little larger than its outline.
        "visible": round(min(1.0, visible_share(shape, pixels)), 3),
        "distractors": sum(map(any, alike)),
        "same_category": same_category,
        "same_color": same_color,
        "same_size": same_size,
    }


def read_tags(data_root: str | Path, name: str = "refshapes") -> dict[int, dict[str, Tag]]:
    """The tags of every expression of a data set by its sent_id, from `data_root/name/tags.json`.

    Empty where there is no such file, as in every data set but RefShapes; one that was written by an earlier
    version has the kind alone. Takes about 1 kB of memory per expression.

    Raises:
        InputError: naming the file, when it cannot be read or its content has another form.
    """
    path = Path(data_root) / name / "tags.json"
    if not is_file(path):
        return {}
    found: dict[int, dict[str, Tag]] = {}
    for sent_id, tags in read_json(path, dict).items():
        plain = isinstance(tags, dict) and all(map(_is_plain, tags.values()))
        if not (plain and _SENT_ID.fullmatch(sent_id)):
            raise InputError(
                f"{path}: the tags of sentence {sent_id!r:.40} are not words and numbers by name; write the data "
                "set again"
            )
        found[int(sent_id)] = tags
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return value.isprintable() if isinstance(value, str) else math.isfinite(value) and abs(value) < _LIMIT
