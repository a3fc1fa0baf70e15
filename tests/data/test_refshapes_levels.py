"""What the data card says of the levels, of distractors and of unique meaning, checked on some hundred scenes.

Expressions are read here a third time, by a few lines that know neither the generator nor the judge.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import promptris.data.refshapes.meaning as meaning_module
from promptris.data.refshapes import (
    CATEGORIES,
    COLORS,
    LEVELS,
    WorldOptions,
    interpret,
    make_example,
    referent,
    vocabulary,
)
from promptris.data.refshapes.scene import visible_share
from promptris.data.refshapes.shapes import cover
from promptris.data.refshapes.tags import TAGS
from promptris.data.refshapes.writer import FORMAT_VERSION

SCENES = 120
WORDS = {
    "category": {c: c for c in ("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart")},
    "color": {c: c for c in ("red", "green", "blue", "yellow", "purple", "orange")},
    "texture": {
        "plain": "plain",
        "solid": "plain",
        "without": "plain",
        "striped": "striped",
        "with": "striped",
    },
    "size_name": {"small": "small", "little": "small", "large": "large", "big": "large"},
}
SIDES = {
    "left": (-1, 0),
    "right": (1, 0),
    **dict.fromkeys(("top", "upper", "highest", "above", "over", "higher"), (0, -1)),
    **dict.fromkeys(("bottom", "lower", "lowest", "below", "under", "beneath"), (0, 1)),
}
BETWEEN = re.compile(
    r" (?:(?:to the |on the )?(left|right) of|(above|over|higher|below|under|beneath|lower)(?: than)?) the "
)
OPPOSITES = (
    "left right, leftmost rightmost, top bottom, topmost bottommost, upper lower, highest lowest, above below, "
    "over under, higher lower"
)
SWAPS = {a: b for pair in OPPOSITES.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
SWAPS |= {"beneath": "over", "lower": "upper"}


@pytest.fixture(scope="module")
def worlds():
    return {
        level: [make_example(17, i, WorldOptions(level=level)) for i in range(SCENES)] for level in LEVELS
    }


@pytest.fixture(scope="module")
def described(worlds):
    """(example, description) of every level."""
    return [(e, d) for examples in worlds.values() for e in examples for d in e.descriptions]


def named(text):
    """The properties that a phrase names."""
    found = {}
    for word in text.split():
        for name, values in WORDS.items():
            if word in values:
                found[name] = values[word]
    return found


def fitting(wanted, scene):
    return [
        i
        for i, s in enumerate(scene.objects)
        if all(getattr(s, name) == value for name, value in wanted.items())
    ]


# ------------------------------------------------------------------------------------------------------ levels


@pytest.mark.parametrize("level", LEVELS)
def test_scenes_keep_the_numbers_of_their_level(worlds, level):
    numbers, counts = LEVELS[level], Counter()
    for example in worlds[level]:
        objects = example.scene.objects
        counts[len(objects)] += 1
        for i, (shape, mask) in enumerate(zip(objects, example.masks, strict=True)):
            low, high = numbers.small_radius if shape.size_name == "small" else numbers.large_radius
            assert low <= shape.radius <= high
            near = min(*shape.center, 128 - shape.center[0], 128 - shape.center[1])
            assert near >= shape.radius * (1 - numbers.border_cut)
            assert visible_share(shape, int(mask.sum())) >= numbers.min_visible
            for other in objects[:i]:
                apart = math.dist(shape.center, other.center)
                assert apart >= numbers.spacing * (shape.radius + other.radius) - 1e-9
        for target in {d.target for d in example.descriptions}:
            share = visible_share(objects[target], int(example.masks[target].sum()))
            assert share >= numbers.min_target_visible
    fewest, most = numbers.objects
    assert set(counts) == set(range(fewest, most + 1))


@pytest.mark.parametrize(
    ("level", "overlapping", "cut"),
    [("easy", (0, 0), (0, 0.05)), ("standard", (0.6, 0.8), (0.4, 0.6)), ("hard", (0.8, 0.97), (0.6, 0.8))],
)
def test_objects_overlap_and_are_cut_off_as_the_level_says(worlds, level, overlapping, cut):
    covered = touching = 0
    for example in worlds[level]:
        whole = [int(cover(shape, 128).mask.sum()) for shape in example.scene.objects]
        covered += any(pixels > int(mask.sum()) for pixels, mask in zip(whole, example.masks, strict=True))
        border = example.masks.any(axis=0)
        touching += bool(border[[0, -1]].any() or border[:, [0, -1]].any())
    assert overlapping[0] <= covered / SCENES <= overlapping[1]
    assert cut[0] <= touching / SCENES <= cut[1]


@pytest.mark.parametrize(
    ("level", "category", "any_of_three"),
    [("easy", 0.25, 0.7), ("standard", 0.55, 0.92), ("hard", 0.88, 0.995)],
)
def test_most_objects_have_distractors(worlds, level, category, any_of_three):
    same = alike = total = 0
    for example in worlds[level]:
        for shape in example.scene.objects:
            others = [other for other in example.scene.objects if other is not shape]
            total += 1
            same += any(other.category == shape.category for other in others)
            alike += any(
                other.category == shape.category
                or other.color == shape.color
                or other.size_name == shape.size_name
                for other in others
            )
    assert same / total >= category
    assert alike / total >= any_of_three


# -------------------------------------------------------------------------------------------------- expressions


def test_expressions_have_two_to_twelve_words(worlds, described):
    lengths = Counter(len(d.text.split()) for _, d in described)
    assert set(lengths) == set(range(2, 13))
    for examples in worlds.values():
        assert 10 <= np.mean([len(e.descriptions) for e in examples]) <= 12
        per_kind = Counter(d.kind for e in examples for d in e.descriptions)
        assert min(per_kind.values()) >= 0.2 * per_kind.total() and len(per_kind) == 3


def test_the_judge_accepts_every_expression(described):
    assert len(described) > 3500
    for example, description in described:
        assert referent(description.text, example.scene) == description.target


def test_the_judge_shares_no_code_with_the_generator():
    tree = ast.parse(Path(meaning_module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert {name for name in imported if name.startswith("promptris")} == {
        "promptris.data.refshapes.scene",
        "promptris.data.refshapes.shapes",
    }


def test_attributes_fit_one_object_and_most_words_are_needed(described):
    phrases = needed = 0
    for example, description in described:
        if description.kind == "attribute":
            wanted = named(description.text)
            assert fitting(wanted, example.scene) == [description.target], description.text
            phrases += 1
            without = [{n: v for n, v in wanted.items() if n != name} for name in wanted]
            needed += all(len(fitting(fewer, example.scene)) > 1 for fewer in without)
    assert phrases > 1000
    assert 0.55 <= needed / phrases <= 0.75


def test_places_lead_among_objects_of_the_same_name(described):
    seen = 0
    for example, description in described:
        if description.kind != "location":
            continue
        objects = example.scene.objects
        stems = [re.sub("most$", "", word) for word in description.text.split()]
        across, down = (
            sum(d) for d in zip(*(SIDES[s] for s in dict.fromkeys(stems) if s in SIDES), strict=True)
        )
        group = fitting(named(description.text), example.scene)
        reach = sorted((objects[i].center[0] * across + objects[i].center[1] * down, i) for i in group)
        assert len(group) > 1 and reach[-1][1] == description.target, description.text
        # The next one is clearly behind: 8 % of the image's side along the direction.
        assert reach[-1][0] - reach[-2][0] >= 0.08 * 128 * math.hypot(across, down) - 1e-9
        seen += 1
    assert seen > 800


def test_relations_hold_for_one_object_and_an_anchor_that_is_one(described):
    seen = 0
    for example, description in described:
        if description.kind != "relation":
            continue
        objects = example.scene.objects
        found = BETWEEN.search(description.text)
        head, tail = description.text[: found.start()], description.text[found.end() :]
        (anchor,) = fitting(named(tail), example.scene)
        across, down = SIDES[found[1] or found[2]]
        ahead = {}
        for i in fitting(named(head), example.scene):
            x, y = (a - b for a, b in zip(objects[i].center, objects[anchor].center, strict=True))
            if i != anchor and x * across + y * down > 0:
                ahead[i] = math.degrees(math.atan2(abs(x * down) + abs(y * across), x * across + y * down))
        # The referent lies that way, at most 52 degrees aside; any other lies far aside or hardly that way.
        assert ahead[description.target] < 52, description.text
        for i, aside in ahead.items():
            along = abs((objects[i].center[0] - objects[anchor].center[0]) * across) + abs(
                (objects[i].center[1] - objects[anchor].center[1]) * down
            )
            assert i == description.target or aside > 73 or along < 0.03 * 128, description.text
        seen += 1
    assert seen > 800


def test_a_tail_read_with_the_other_noun_means_no_other_object(described):
    """ "the ring left of the star that is red": the star is, and were it the ring, it would be the same one."""
    tail = re.compile("(.*)( that is .*| with stripes| without stripes)")
    moved = 0
    for example, description in described:
        if description.kind == "relation" and (found := tail.fullmatch(description.text)):
            between = BETWEEN.search(found[1])
            text = found[1][: between.start()] + found[2] + found[1][between.start() :]
            assert interpret(text, example.scene).possible <= {description.target}, text
            moved += 1
    assert moved > 100


def test_wrong_texts_are_refused(described, worlds):
    """Texts handed to the next object of their scene, or to the next scene."""
    handed = to_others = 0
    for examples in worlds.values():
        for example, other in pairwise(examples):
            targets = list(dict.fromkeys(d.target for d in example.descriptions))
            following = dict(zip(targets, targets[1:] + targets[:1], strict=True))
            for description in example.descriptions:
                if len(targets) > 1:
                    wrong = following[description.target]
                    assert referent(description.text, example.scene) != wrong
                    handed += 1
                found = referent(description.text, other.scene)
                to_others += found is not None
                if found is not None and description.kind == "attribute":
                    assert fitting(named(description.text), other.scene) == [found]
    assert handed > 3000
    # In another scene most texts mean nothing or several objects.
    assert to_others < 0.4 * handed


def test_a_text_with_a_changed_word_does_not_mean_the_same_object(described):
    """Another colour or category of the referent, or the opposite side."""
    colors = list(WORDS["color"])
    changed = turned = 0
    for example, description in described:
        words = description.text.split()
        shape = example.scene.objects[description.target]
        head = BETWEEN.split(description.text)[0].split()
        for place, word in enumerate(head):
            if word == shape.color:
                other = colors[(colors.index(word) + 1) % len(colors)]
                text = " ".join([*words[:place], other, *words[place + 1 :]])
                assert referent(text, example.scene) != description.target, text
                changed += 1
        if description.kind != "attribute":
            text = " ".join(SWAPS.get(word, word) for word in words).replace("upper than", "higher than")
            assert text != description.text
            assert referent(text, example.scene) != description.target, text
            turned += 1
    assert changed > 1000 and turned > 2000


# ------------------------------------------------------------------------------------------------------- the card


def test_the_data_card_tells_the_numbers_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "refshapes.md").read_text(encoding="utf-8")
    for name, level in LEVELS.items():
        cells = [
            name,
            "{} to {}".format(*level.objects),
            "{:g} to {:g}".format(*level.small_radius),
            "{:g} to {:g}".format(*level.large_radius),
            f"{level.spacing:g}",
            *(
                f"{100 * share:.0f} %"
                for share in (level.border_cut, level.min_visible, level.min_target_visible)
            ),
        ]
        assert f"| {' | '.join(cells)} |" in page
    for name, meaning in TAGS.items():
        assert f"| `{name}` | {meaning} |" in page
    assert f"has {len(vocabulary())} words" in page and f"grammar of {len(vocabulary())} words" in page
    assert f"(now {FORMAT_VERSION})" in page
    for category in CATEGORIES + COLORS:
        assert category in page
