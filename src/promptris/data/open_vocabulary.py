"""The seen and unseen categories of the open-vocabulary comparison (Table 2), chosen per referent."""

from __future__ import annotations

from collections.abc import Mapping

from promptris.data import coco
from promptris.data.dataset import ReferDataset
from promptris.data.refshapes import words
from promptris.errors import InputError

GROUPS: tuple[str, ...] = ("seen", "unseen", "all")

SEEN: tuple[str, ...] = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "train",
    "truck",
    "boat",
    "bench",
    "bird",
    "horse",
    "sheep",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "handbag",
    "suitcase",
    "frisbee",
    "skis",
    "kite",
    "surfboard",
    "bottle",
    "fork",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "pizza",
    "donut",
    "chair",
    "bed",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "microwave",
    "oven",
    "toaster",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "toothbrush",
)
"""COCO's 48 base classes of open-vocabulary detection, which training may show."""

UNSEEN: tuple[str, ...] = (
    "airplane",
    "bus",
    "cat",
    "dog",
    "cow",
    "elephant",
    "umbrella",
    "tie",
    "snowboard",
    "skateboard",
    "cup",
    "knife",
    "cake",
    "couch",
    "keyboard",
    "sink",
    "scissors",
)
"""Its 17 new classes, kept out of training. COCO's other 15 classes are in neither group."""

_WORLDS: tuple[tuple[frozenset[str], Mapping[str, tuple[str, ...]]], ...] = (
    (frozenset(coco.CATEGORIES.values()), {"seen": SEEN, "unseen": UNSEEN}),
    (frozenset(words.CATEGORIES), {"seen": words.SEEN_CATEGORIES, "unseen": words.UNSEEN_CATEGORIES}),
)


def category_group(dataset: ReferDataset, group: str) -> set[int]:
    """Ids of a data set's categories that are "seen", "unseen", or "all" of them, told apart by their names.

    Raises:
        InputError: for another group, or a data set whose categories are neither COCO's nor RefShapes'.
    """
    if group not in GROUPS:
        raise InputError(f"category group {group!r} is none of {', '.join(GROUPS)}")
    if group == "all":
        return set(dataset.categories)
    names = set(dataset.categories.values())
    for vocabulary, groups in _WORLDS:
        if names and names <= vocabulary:
            return {key for key, name in dataset.categories.items() if name in groups[group]}
    there = ", ".join(sorted(names)[:5]) or "none"
    raise InputError(
        f"{dataset.name} has no {group} categories, which are told for those of COCO and of RefShapes only; "
        f"its own are {there}{' ...' if len(names) > 5 else ''}"
    )


def select(dataset: ReferDataset, group: str) -> ReferDataset:
    """Only the referents of "seen" or "unseen" categories, in every split; "all" is the data set as it is.

    Raises:
        InputError: see `category_group`.
    """
    ids = category_group(dataset, group)
    return dataset if group == "all" else dataset.only_categories(ids)
