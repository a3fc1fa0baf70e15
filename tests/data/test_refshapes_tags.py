"""Tags of expressions: counted by hand, written, read back, and refused when damaged."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from promptris.data import read_refer
from promptris.data.refshapes import Description, Scene, ShapeObject, WorldOptions, render, write_refshapes
from promptris.data.refshapes.tags import TAGS, expression_tags, read_tags
from promptris.errors import InputError


def shape(category, color, x, y, size_name, radius):
    return ShapeObject(category, color, "plain", size_name, (float(x), float(y)), float(radius))


# A large red square of 0.8 x 25 = 20 pixels to each side, that is 40 x 40, and four others.
SCENE = Scene(
    (
        shape("square", "red", 30, 30, "large", 25),
        shape("square", "blue", 100, 30, "small", 15),  # shares the category
        shape("circle", "red", 100, 100, "large", 25),  # the colour and the size
        shape("ring", "green", 60, 100, "small", 15),  # nothing
        shape("moon", "blue", 64, 60, "small", 15),  # nothing
    )
)


def tags_of(target, text="the large red square", kind="attribute"):
    return expression_tags(SCENE, render(SCENE).masks, Description(text, kind, target))


def test_tags_counted_by_hand():
    assert tags_of(0) == {
        "kind": "attribute",
        "words": 4,
        "category_group": "seen",
        "size": "large",
        "share": round(1600 / 128**2, 4),
        "visible": 1.0,
        "distractors": 2,
        "same_category": 1,
        "same_color": 1,
        "same_size": 1,
    }


def test_tags_of_an_unseen_category():
    tags = tags_of(4, "moon on the far left", "location")
    assert (tags["category_group"], tags["kind"], tags["words"]) == ("unseen", "location", 5)
    # The blue square shares colour and size and counts once, the ring shares the size.
    assert [tags[name] for name in ("distractors", "same_category", "same_color", "same_size")] == [
        2,
        0,
        1,
        2,
    ]


def test_a_half_hidden_object_is_half_visible():
    below, above = shape("square", "red", 64, 64, "large", 25), shape("square", "blue", 84, 64, "large", 25)
    scene = Scene((below, above))
    masks = render(scene).masks
    tags = expression_tags(scene, masks, Description("the red one", "attribute", 0))
    assert tags["visible"] == pytest.approx(0.5, abs=0.01)
    assert tags["share"] == pytest.approx(800 / 128**2, abs=0.0005)


def test_tags_are_documented():
    assert list(tags_of(0)) == list(TAGS)


@pytest.fixture
def world(tmp_path):
    write_refshapes(tmp_path, {"train": 3, "val": 4}, 1, WorldOptions(size=96, categories="unseen"))
    return tmp_path


def test_every_expression_on_disk_has_its_tags(world):
    dataset, tags = read_refer(world, "refshapes"), read_tags(world)
    found = 0
    for split in ("train", "val"):
        for referent, expression in dataset.samples(split):
            mine = tags[expression.sent_id]
            assert list(mine) == list(TAGS)
            assert mine["kind"] == expression.kind
            assert mine["words"] == len(expression.text.split())
            assert mine["category_group"] == ("unseen" if split == "val" else "seen")
            assert mine["share"] == round(dataset.mask(referent).mean(), 4)
            found += 1
    assert found == len(tags) > 50


def test_a_data_set_without_tags_has_none(world):
    (world / "refshapes" / "tags.json").unlink()
    assert read_tags(world) == {}


def test_tags_of_an_earlier_version_are_the_kind_alone(world):
    path = world / "refshapes" / "tags.json"
    path.write_text(json.dumps({"1": {"kind": "attribute"}, "-7": {}}))
    assert read_tags(world) == {1: {"kind": "attribute"}, -7: {}}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[]", "tags.json"),
        ("{", "not valid JSON"),
        ('{"1": "attribute"}', "'1'"),
        ('{"one": {}}', "'one'"),
        ('{"9999999999999999999999": {}}', "sentence"),
        ('{"1": {"size": ["large"]}}', "'1'"),
        ('{"1": {"size": true}}', "'1'"),
        ('{"1": {"size": NaN}}', "'1'"),
        ('{"1": {"size": 1e300}}', "'1'"),
        ('{"1": {"size": "a\\u001b[2J"}}', "'1'"),
    ],
)
def test_damaged_tags_are_refused(world, content, word):
    (world / "refshapes" / "tags.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(word)):
        read_tags(world)


def test_visible_never_passes_one():
    # Sampling may find a few pixels more than the outline's area.
    masks = np.ones((1, 128, 128), dtype=bool)
    scene = Scene((shape("square", "red", 30, 30, "large", 25),))
    assert expression_tags(scene, masks, Description("the square", "attribute", 0))["visible"] == 1.0
