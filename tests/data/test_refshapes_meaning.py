"""The evaluator on scenes laid out by hand."""

from __future__ import annotations

import pytest

from promptris.data.refshapes import Scene, ShapeObject, interpret, referent, referents
from promptris.data.refshapes.meaning import MeaningError


def shape(category, color, x, y, texture="plain", size_name="small"):
    return ShapeObject(
        category, color, texture, size_name, (float(x), float(y)), 15.0 if size_name == "small" else 24.0
    )


#   0 red circle (20, 20)      1 large red circle (100, 30)
#   2 blue star (24, 96)       3 striped blue star (104, 92)
#   4 green square (64, 64)
SCENE = Scene(
    (
        shape("circle", "red", 20, 20),
        shape("circle", "red", 100, 30, size_name="large"),
        shape("star", "blue", 24, 96),
        shape("star", "blue", 104, 92, texture="striped"),
        shape("square", "green", 64, 64),
    )
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("the green thing", 4),
        ("square", 4),
        ("large circle", 1),
        ("the big red one", 1),
        ("little red circle", 0),
        ("the star with stripes", 3),
        ("the star without stripes", 2),
        ("solid star", 2),
        ("the circle that is large and red", 1),
        ("left star", 2),
        ("the far right star", 3),
        ("the circle on the left", 0),
        ("the circle to the left", 0),
        ("star furthest to the right", 3),
        ("the top left thing", 0),
        ("object in the lower right corner", 3),
        ("the shape in the bottom left corner", 2),
        ("the red circle on the right side", 1),
        ("the circle above the square", None),
        ("the star to the left of the square", 2),
        ("the star on the right of the green square", 3),
        ("the striped thing below the large circle", 3),
        ("the large one over the striped star", 1),
        ("plain star under the small circle", 2),
        ("star under the small circle", None),  # the other one lies as much below as aside,
        ("the thing above the star with stripes", None),
    ],
)
def test_hand_made_readings(text, target):
    assert referent(text, SCENE) == target


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("the red thing", {0, 1}),
        ("thing", {0, 1, 2, 3, 4}),
        ("purple moon", set()),
        ("the topmost thing", {0, 1}),  # 10 px apart: too close to call
        ("the thing below the square", {2, 3}),
        ("the square right of the circle", set()),  # which circle?
    ],
)
def test_texts_that_mean_more_or_less_than_one(text, meant):
    assert referents(text, SCENE) == meant
    assert referent(text, SCENE) is None


def test_the_margin_decides_between_clear_and_close():
    def two(gap):
        return Scene((shape("ring", "red", 60, 40), shape("ring", "red", 60 + gap, 90)))

    assert referent("the right ring", two(12)) == 1  # 12/128 > 0.08
    assert referent("the right ring", two(9)) is None


def test_a_corner_must_lead_on_both_axes():
    scene = Scene((shape("ring", "red", 30, 62), shape("ring", "red", 100, 64)))
    assert referent("right ring", scene) == 1
    assert referent("bottom right ring", scene) is None


def test_a_lone_object_must_be_where_the_text_says():
    assert referent("the square on the left", SCENE) is None
    assert referent("left moon", Scene((shape("moon", "red", 20, 60), shape("ring", "red", 90, 60)))) == 0
    assert referent("right moon", Scene((shape("moon", "red", 20, 60), shape("ring", "red", 90, 60)))) is None


def test_a_slanted_relation_is_possible_but_not_clear():
    scene = Scene((shape("ring", "red", 90, 50), shape("moon", "blue", 30, 80)))
    reading = interpret("ring above the moon", scene)
    assert reading.possible == {0}
    assert reading.clear == frozenset()
    assert referent("ring to the right of the moon", scene) == 0


@pytest.mark.parametrize(
    "text", ["", "the", "the dog", "red", "circle banana", "the circle above", "circle that is", "far circle"]
)
def test_texts_outside_the_grammar_are_refused(text):
    with pytest.raises(MeaningError):
        interpret(text, SCENE)
