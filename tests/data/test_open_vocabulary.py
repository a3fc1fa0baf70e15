"""Seen and unseen categories: the lists, and selecting referents by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.data import coco
from promptris.data.columns import Collector
from promptris.data.dataset import ReferDataset
from promptris.data.open_vocabulary import SEEN, UNSEEN, category_group, select
from promptris.data.records import Expression
from promptris.errors import InputError

EMPTY_4X3 = b"<"  # one run of 12 pixels


def dataset(categories, referents):
    """referents: (ref_id, category_id, split)."""
    collector = Collector()
    collector.categories = categories
    collector.image(1, "1.jpg", 4, 3)
    for ref_id, category_id, split in referents:
        collector.referent(ref_id, 1, category_id, split, [Expression(ref_id, "it")], {ref_id: EMPTY_4X3})
    return ReferDataset.from_columns("refcoco", "unc", Path("/data"), collector.columns(), [])


def test_coco_has_its_eighty_categories():
    assert len(coco.CATEGORIES) == len(set(coco.CATEGORIES.values())) == 80
    gaps = set(range(1, 91)) - set(coco.CATEGORIES)
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    known = {
        1: "person",
        18: "dog",
        44: "bottle",
        62: "chair",
        65: "bed",
        72: "tv",
        84: "book",
        90: "toothbrush",
    }
    assert {key: coco.CATEGORIES[key] for key in known} == known


def test_groups_are_the_published_ones():
    assert (len(SEEN), len(set(SEEN)), len(UNSEEN), len(set(UNSEEN))) == (48, 48, 17, 17)
    left_out = set(coco.CATEGORIES.values()) - set(SEEN) - set(UNSEEN)
    assert not set(SEEN) & set(UNSEEN)
    assert left_out == {
        "traffic light",
        "fire hydrant",
        "stop sign",
        "parking meter",
        "sports ball",
        "baseball bat",
        "baseball glove",
        "tennis racket",
        "wine glass",
        "hot dog",
        "potted plant",
        "dining table",
        "cell phone",
        "hair drier",
        "teddy bear",
    }


def test_selects_by_name_in_every_split():
    # Ids that are not COCO's own: the names decide.
    data = dataset(
        {5: "person", 6: "cat", 7: "hot dog"},
        [(1, 5, "train"), (2, 6, "train"), (3, 7, "train"), (4, 6, "val"), (5, 5, "val"), (6, 7, "testA")],
    )
    chosen = {
        group: {split: [r.ref_id for r in refs] for split, refs in select(data, group).splits.items()}
        for group in ("seen", "unseen", "all")
    }
    assert chosen == {
        "seen": {"train": [1], "val": [5], "testA": []},
        "unseen": {"train": [2], "val": [4], "testA": []},
        "all": {"train": [1, 2, 3], "val": [4, 5], "testA": [6]},
    }
    assert category_group(data, "all") == {5, 6, 7}


def test_refshapes_has_its_own_groups():
    names = ("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart")
    data = dataset(dict(enumerate(names, start=1)), [(1, 1, "val"), (2, 7, "val")])
    assert category_group(data, "seen") == {1, 2, 3, 4, 5, 6}
    assert category_group(data, "unseen") == {7, 8}
    assert [r.ref_id for r in select(data, "unseen").splits["val"]] == [2]


@pytest.mark.parametrize(
    "categories", [{}, {1: "ship"}, {1: "person", 2: "ship"}, {1: "person", 2: "circle"}]
)
def test_other_categories_have_no_groups(categories):
    data = dataset(categories, [(1, 1, "val")])
    with pytest.raises(InputError, match="refcoco has no seen categories, which are told for those of COCO"):
        select(data, "seen")
    assert select(data, "all").splits == data.splits


def test_unknown_group():
    with pytest.raises(InputError, match="'new' is none of seen, unseen, all"):
        category_group(dataset({1: "person"}, []), "new")
