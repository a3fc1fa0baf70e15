"""The world in memory: scenes, painting, and that every expression means one object."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest

from promptris.data.refshapes import (
    CATEGORIES,
    COLOR_RGB,
    LEVELS,
    SEEN_CATEGORIES,
    UNSEEN_CATEGORIES,
    Scene,
    ShapeObject,
    WorldOptions,
    describe,
    make_example,
    referent,
    render,
    sample_scene,
    vocabulary,
)
from promptris.data.refshapes.scene import min_visible_area, visible_share
from promptris.data.refshapes.shapes import unit_area
from promptris.errors import InputError


@pytest.fixture(scope="module")
def examples():
    return [make_example(11, i) for i in range(250)]


def test_same_arguments_give_the_same_example():
    first, again = make_example(3, 5), make_example(3, 5)
    assert first.scene == again.scene
    assert first.descriptions == again.descriptions
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)


@pytest.mark.parametrize(("seed", "index"), [(3, 6), (4, 5)])
def test_other_seed_or_index_gives_another_scene(seed, index):
    assert sample_scene(seed, index).objects != sample_scene(3, 5).objects


@pytest.mark.parametrize(
    ("level", "categories", "digest"),
    [("easy", "seen", 2732603770), ("standard", "unseen", 1408382510), ("hard", "all", 1532482212)],
)
def test_scenes_are_those_of_earlier_versions(level, categories, digest):
    """Places and properties; how they are painted may differ in a bit from one processor to the next."""
    options = WorldOptions(level=level, categories=categories)
    listed = [
        (
            s.category,
            s.color,
            s.texture,
            s.size_name,
            [round(v, 6) for v in (*s.center, s.radius, s.angle)],
            s.rgb,
        )
        for index in range(20)
        for s in sample_scene(8, index, options).objects
    ]
    assert zlib.crc32(repr(listed).encode()) == digest


def test_example_does_not_depend_on_the_process():
    code = (
        "import zlib; from promptris.data.refshapes import make_example; e = make_example(3, 5);"
        "print(zlib.crc32(e.image.tobytes()), [d.text for d in e.descriptions])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(runs) == 1
    assert "the" in runs.pop()


def test_world_needs_no_torch():
    code = "import sys, promptris.data.refshapes as r; r.make_example(0, 0); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    )


def test_make_example_agrees_with_its_parts(examples):
    example = examples[0]
    painted = render(example.scene)
    assert sample_scene(11, 0) == example.scene
    assert np.array_equal(painted.image, example.image)
    assert np.array_equal(painted.masks, example.masks)


def test_masks_are_disjoint_and_visible_enough(examples):
    for example in examples:
        assert example.image.shape == (128, 128, 3)
        assert example.image.dtype == np.uint8
        assert example.masks.dtype == bool
        assert example.masks.shape == (len(example.scene.objects), 128, 128)
        assert example.masks.sum(axis=0).max() == 1
        for shape, mask in zip(example.scene.objects, example.masks, strict=True):
            assert mask.sum() >= 60
            assert visible_share(shape, int(mask.sum())) >= 0.45


def test_mask_pixels_have_the_colour_of_their_object(examples):
    for example in examples[:60]:
        for shape, mask in zip(example.scene.objects, example.masks, strict=True):
            if shape.texture == "plain":
                middle = np.median(example.image[mask].astype(float), axis=0)
                assert np.abs(middle - shape.rgb).max() <= 1
                assert np.abs(middle - COLOR_RGB[shape.color]).max() <= 11


def test_scenes_follow_the_level(examples):
    level = LEVELS["standard"]
    shared = 0
    for example in examples:
        objects = example.scene.objects
        assert level.objects[0] <= len(objects) <= level.objects[1]
        assert 2 <= len({shape.category for shape in objects}) <= 3
        assert 2 <= len({shape.color for shape in objects}) <= 4
        shared += len({shape.category for shape in objects}) < len(objects)
        for shape in objects:
            low, high = level.small_radius if shape.size_name == "small" else level.large_radius
            assert low <= shape.radius <= high
    assert shared > len(examples) / 2  # distractors of the same category


def test_unseen_categories_never_appear_in_training_scenes(examples):
    assert {shape.category for example in examples for shape in example.scene.objects} == set(SEEN_CATEGORIES)
    texts = {word for example in examples for d in example.descriptions for word in d.text.split()}
    assert not texts & set(UNSEEN_CATEGORIES)


def test_unseen_option_describes_unseen_categories_only():
    targets, others = Counter(), Counter()
    for index in range(120):
        example = make_example(1, index, WorldOptions(categories="unseen"))
        described = {d.target for d in example.descriptions}
        assert described
        for number, shape in enumerate(example.scene.objects):
            (targets if number in described else others)[shape.category] += 1
    assert set(targets) == set(UNSEEN_CATEGORIES)
    assert set(others) & set(SEEN_CATEGORIES)


def test_all_option_has_every_category():
    scenes = [sample_scene(2, i, WorldOptions(categories="all")) for i in range(120)]
    assert {shape.category for scene in scenes for shape in scene.objects} == set(CATEGORIES)


@pytest.mark.parametrize("level", list(LEVELS))
def test_levels_keep_their_least_visible_share(level):
    options = WorldOptions(level=level)
    for index in range(40):
        example = make_example(5, index, options)
        for shape, mask in zip(example.scene.objects, example.masks, strict=True):
            assert visible_share(shape, int(mask.sum())) >= LEVELS[level].min_visible


@pytest.mark.parametrize("size", [64, 200])
def test_size_scales_the_scene(size):
    small, large = sample_scene(0, 1, WorldOptions(size=64)), sample_scene(0, 1, WorldOptions(size=size))
    example = make_example(0, 1, WorldOptions(size=size))
    assert example.image.shape == (size, size, 3)
    assert min(mask.sum() for mask in example.masks) >= min_visible_area(size)
    assert large.objects[0].radius == pytest.approx(small.objects[0].radius * size / 64)


def test_every_expression_means_its_target_only(examples):
    kinds = Counter()
    for example in examples:
        texts = [d.text for d in example.descriptions]
        assert len(set(texts)) == len(texts)
        for description in example.descriptions:
            assert referent(description.text, example.scene) == description.target
            kinds[description.kind] += 1
    assert min(kinds[kind] for kind in ("attribute", "location", "relation")) >= 0.2 * sum(kinds.values())


def test_scenes_have_several_expressions_per_object(examples):
    counts = [len(example.descriptions) for example in examples]
    per_object = [Counter(d.target for d in example.descriptions) for example in examples]
    assert 8 <= np.mean(counts) <= 12
    assert max(counts) <= 12
    assert np.mean([count for counter in per_object for count in counter.values()]) >= 2


def test_badly_hidden_objects_are_no_targets():
    under = ShapeObject("square", "red", "plain", "large", (64.0, 64.0), 24.0)
    over = ShapeObject("circle", "blue", "plain", "large", (74.0, 64.0), 24.0)
    scene = Scene((under, over))
    masks = render(scene).masks
    assert 0.2 < visible_share(under, int(masks[0].sum())) < 0.5
    found = describe(scene, masks, np.random.default_rng(0))
    assert {d.target for d in found} == {1}


def test_wording_is_varied(examples):
    texts = Counter(d.text for example in examples for d in example.descriptions)
    assert len(texts) > 0.5 * sum(texts.values())
    assert any(text.startswith("the ") for text in texts)
    assert any(not text.startswith("the ") for text in texts)


def test_vocabulary_covers_every_word(examples):
    used = {word for example in examples for d in example.descriptions for word in d.text.split()}
    others = [make_example(9, i, WorldOptions(categories="all")) for i in range(60)]
    used |= {word for example in others for d in example.descriptions for word in d.text.split()}
    known = vocabulary()
    assert used <= set(known)
    assert known == sorted(set(known))
    assert {"left", "at", "the", "top", "background", "moon"} <= set(known)


@pytest.mark.parametrize("category", CATEGORIES)
def test_painted_area_is_the_outline_area(category):
    shape = ShapeObject(category, "red", "plain", "large", (64.3, 63.6), 26.0, angle=0.2)
    pixels = int(render(Scene((shape,))).masks[0].sum())
    assert pixels == pytest.approx(unit_area(category) * 26.0**2, rel=0.03)


def test_areas_of_simple_outlines_are_exact():
    assert unit_area("square") == pytest.approx(1.6**2, rel=0.01)
    assert unit_area("circle") == pytest.approx(np.pi * 0.92**2, rel=0.01)
    assert unit_area("ring") == pytest.approx(np.pi * (0.98**2 - 0.55**2), rel=0.01)
    assert unit_area("cross") == pytest.approx(4 * 0.66 - 0.66**2, rel=0.01)
    assert unit_area("triangle") == pytest.approx(3 * 3**0.5 / 4 * 1.1**2, rel=0.01)


def test_later_objects_hide_earlier_ones():
    below = ShapeObject("square", "red", "plain", "large", (60.0, 64.0), 24.0)
    above = ShapeObject("circle", "blue", "plain", "small", (60.0, 64.0), 14.0)
    masks = render(Scene((below, above))).masks
    assert masks[1, 64, 60]
    assert not masks[0, 64, 60]
    alone = render(Scene((below,))).masks[0]
    assert np.array_equal(alone & ~masks[1], masks[0])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 63}, "63"),
        ({"size": 1025}, "1025"),
        ({"size": 128.0}, "128.0"),
        ({"level": "insane"}, "easy, standard, hard"),
        ({"categories": "some"}, "seen, unseen, all"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(InputError, match=word):
        WorldOptions(**options)


@pytest.mark.parametrize(
    ("seed", "index", "word"), [(-1, 0, "seed -1"), (0, -2, "index -2"), (0.5, 0, "seed 0.5")]
)
def test_wrong_seed_or_index_is_named(seed, index, word):
    with pytest.raises(InputError, match=word):
        make_example(seed, index)
