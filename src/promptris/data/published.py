"""How many referents, images and sentences the benchmarks have, to compare what was read with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from promptris.data.dataset import ReferDataset
from promptris.data.open_vocabulary import select

Counts = tuple[int, int, int]
"""Referents, images, sentences."""

# Yu et al. 2016 (RefCOCO, RefCOCO+), Mao et al. 2016 (RefCOCOg, google) and Nagaraja et al. 2016 (RefCOCOg,
# umd): the contents of the refs(...).p files that the REFER toolkit distributes.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": (42404, 16994, 120624),
        "val": (3811, 1500, 10834),
        "testA": (1975, 750, 5657),
        "testB": (1810, 750, 5095),
    },
    ("refcoco+", "unc"): {
        "train": (42278, 16992, 120191),
        "val": (3805, 1500, 10758),
        "testA": (1975, 750, 5726),
        "testB": (1798, 750, 4889),
    },
    ("refcocog", "umd"): {
        "train": (42226, 21899, 80512),
        "val": (2573, 1300, 4896),
        "test": (5023, 2600, 9602),
    },
    ("refcocog", "google"): {
        "train": (44822, 24698, 85474),
        "val": (5000, 4650, 9536),
    },
}
"""Counts by (data set, partition) and split."""

# Follows from the files above and the categories in `open_vocabulary`. testA and testB are one test split here.
OPEN_VOCABULARY: Mapping[tuple[str, str], Mapping[tuple[str, ...], Mapping[str, int]]] = {
    ("refcoco", "unc"): {
        ("train",): {"seen": 35473},
        ("val",): {"seen": 3175, "unseen": 445},
        ("testA", "testB"): {"seen": 3200, "unseen": 394},
    },
    ("refcoco+", "unc"): {
        ("train",): {"seen": 35375},
        ("val",): {"seen": 3171, "unseen": 444},
        ("testA", "testB"): {"seen": 3189, "unseen": 394},
    },
    ("refcocog", "umd"): {
        ("train",): {"seen": 33093},
        ("val",): {"seen": 2000, "unseen": 386},
        ("test",): {"seen": 3935, "unseen": 759},
    },
    ("refcocog", "google"): {
        ("train",): {"seen": 35105},
        ("val",): {"seen": 3923, "unseen": 760},
    },
}
"""Referents of seen and unseen categories by (data set, partition) and splits, as in Table 2."""


@dataclass(frozen=True, slots=True)
class CountRow:
    """One split of a data set beside what was published.

    found, published: None where there is no such split, or where nothing was published about it.
    ok: False when they differ; True where nothing was published.
    """

    split: str
    found: Counts | None
    published: Counts | None
    ok: bool


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Referents of the "seen" or "unseen" group in one or several splits beside what is expected."""

    splits: tuple[str, ...]
    group: str
    found: int
    published: int
    ok: bool


def compare_counts(dataset: ReferDataset) -> list[CountRow]:
    """Every split that was published or found, the published ones first."""
    published = PUBLISHED.get((dataset.name, dataset.split_by), {})
    rows = []
    for split in (*published, *(split for split in dataset.rows if split not in published)):
        found = dataset.count(split) if split in dataset.rows else None
        expected = published.get(split)
        rows.append(CountRow(split, found, expected, expected is None or found == expected))
    return rows


def compare_open_vocabulary(dataset: ReferDataset) -> list[GroupRow]:
    """The seen and unseen referents of a benchmark; an empty list for a data set that is none of them.

    Raises:
        InputError: when the categories of the data set are not those of COCO.
    """
    rows = []
    for splits, groups in OPEN_VOCABULARY.get((dataset.name, dataset.split_by), {}).items():
        for group, expected in groups.items():
            selected = select(dataset, group).rows
            found = sum(len(selected[split]) for split in splits if split in selected)
            rows.append(GroupRow(splits, group, found, expected, found == expected))
    return rows
