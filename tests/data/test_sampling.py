"""Which images and expressions a step sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptris.data.sampling import ImageSchedule, delete_words, sample_expressions, share_of_rank
from promptris.errors import InputError


def test_an_epoch_deals_every_image_once():
    schedule = ImageSchedule(range(20), images_per_step=5, seed=3)
    dealt = [image for step in range(4) for image in schedule.images(step)]
    assert sorted(dealt) == list(range(20))


def test_epochs_are_shuffled_differently_and_reproducibly():
    schedule, again = (ImageSchedule(range(12), 4, seed=1) for _ in range(2))
    first = [schedule.images(step) for step in range(3)]
    second = [schedule.images(step) for step in range(3, 6)]
    assert first != second
    assert [again.images(step) for step in range(6)] == first + second


def test_the_seed_changes_the_order():
    assert ImageSchedule(range(50), 10, seed=0).images(0) != ImageSchedule(range(50), 10, seed=1).images(0)


@given(world=st.integers(1, 4), per_step=st.integers(1, 4), count=st.integers(16, 40), seed=st.integers(0, 5))
def test_ranks_never_share_an_image_within_an_epoch(world: int, per_step: int, count: int, seed: int):
    schedules = [ImageSchedule(range(count), per_step, seed, rank, world) for rank in range(world)]
    steps = schedules[0].steps_per_epoch
    dealt = [image for schedule in schedules for step in range(steps) for image in schedule.images(step)]
    assert len(dealt) == len(set(dealt)) == steps * per_step * world


@given(
    st.integers(16, 40),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(0, 30),
    st.integers(1, 9),
)
def test_a_resumed_schedule_deals_what_the_whole_one_deals(
    count: int, per_step: int, world: int, seed: int, start: int, steps: int
):
    whole = ImageSchedule(range(count), per_step, seed, world - 1, world)
    dealt = [whole.images(step) for step in range(start + steps)]
    resumed = ImageSchedule(range(count), per_step, seed, world - 1, world)
    assert [resumed.images(step) for step in range(start, start + steps)] == dealt[start:]


@given(st.lists(st.integers(), max_size=30), st.integers(1, 6))
def test_shares_of_an_evaluation_are_the_whole_without_padding(items: list[int], world: int):
    shares = [share_of_rank(items, rank, world) for rank in range(world)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 99))
def test_no_expression_repeats_before_all_have_come(expressions: int, count: int, seed: int):
    choices = [(k, f"expression number {k}") for k in range(expressions)]
    picked = sample_expressions(choices, count, np.random.default_rng(seed), deletion=1.0)
    assert len(picked) == count
    first = [referent for referent, _ in picked[: min(count, expressions)]]
    assert len(set(first)) == len(first)
    assert all(text in choices[referent][1] for referent, text in picked)
    assert all(len(text.split()) == 1 for _, text in picked[expressions:])


def test_the_order_of_the_given_ids_does_not_matter():
    assert ImageSchedule([3, 1, 2, 9], 2, 0).images(0) == ImageSchedule([9, 2, 1, 3], 2, 0).images(0)


def test_too_few_images_for_a_step():
    with pytest.raises(InputError, match="3 images, fewer than the 4"):
        ImageSchedule([1, 2, 3], images_per_step=2, seed=0, world_size=2)


def test_expressions_do_not_repeat_while_there_are_enough():
    choices = [(i, f"text {i}") for i in range(6)]
    picked = sample_expressions(choices, 4, np.random.default_rng(0), deletion=1.0)
    assert len(set(picked)) == 4
    assert set(picked) <= set(choices)


def test_missing_expressions_are_repeated_with_words_deleted():
    choices = [(7, "one two three four five six")]
    picked = sample_expressions(choices, 4, np.random.default_rng(0), deletion=0.5)
    assert picked[0] == choices[0]
    assert all(referent == 7 for referent, _ in picked)
    assert any(len(text.split()) < 6 for _, text in picked[1:])


@given(
    st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 99)
)
def test_deleted_words_leave_a_subsequence_with_at_least_one_word(words: list[str], chance: float, seed: int):
    kept = delete_words(" ".join(words), chance, np.random.default_rng(seed)).split()
    assert kept
    remaining = iter(words)
    assert all(word in remaining for word in kept)


def test_deletion_rate_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    kept = sum(len(delete_words("w " * 100, 0.15, rng).split()) for _ in range(200))
    # 20,000 words, each kept with 0.85: standard deviation of the share is 0.0025.
    assert kept / 20_000 == pytest.approx(0.85, abs=0.01)


def test_no_deletion_keeps_the_text():
    assert delete_words("the red  circle", 0.0, np.random.default_rng(0)) == "the red circle"
