"""Questions cut into shards."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptris.distributed.questions import QUESTIONS
from promptris.distributed.shards import Plan


def questions(images: list[int | None]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "row": row,
            "item": 0,
            "image": None if image is None else f"{image}.png",
            "expression": f"the {row}",
            "location": None if image is None else f"/x/{image}.png",
            "error": "no image" if image is None else None,
        }
        for row, image in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, QUESTIONS)


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=40), st.integers(1, 9))
def test_every_question_once_and_images_whole(images: list[int | None], size: int) -> None:
    plan = Plan(questions(images), size)
    shards = [plan.shard(number) for number in range(len(plan))]
    assert all(1 <= shard.questions.num_rows == plan.size(shard.number) <= size for shard in shards)
    rows = [row for shard in shards for row in shard.questions["row"].to_pylist()]
    assert sorted(rows) == list(range(len(images)))
    assert plan.images == len({image for image in images if image is not None})
    for image in set(images) - {None}:
        where = [s.number for s in shards if f"{image}.png" in s.questions["image"].to_pylist()]
        wanted = images.count(image)
        # In one shard where it fits, in consecutive ones otherwise.
        assert len(where) == 1 or (wanted > size and where == list(range(where[0], where[-1] + 1)))
    for shard in shards:
        near = [image for image in shard.questions["location"].to_pylist() if image is not None]
        assert len(set(near)) == sum(a != b for a, b in zip(near, [None, *near], strict=False))


def test_keys_are_of_the_content() -> None:
    images: list[int | None] = [0, 1, 0, 2, 2, None, 3]
    plan, again = Plan(questions(images), 3), Plan(questions(images), 3)
    assert (plan.keys, plan.content) == (again.keys, again.content) and len(set(plan.keys)) == len(plan)
    # Arrow may hold the same in other chunks, and whole files may move together with their images.
    table = questions(images)
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    moved = chunked.set_column(
        4, "location", pa.array([f"/y/{i}" if i is not None else None for i in images], pa.large_string())
    )
    assert Plan(moved, 3).keys == plan.keys
    assert Plan(table, 4).content == plan.content
    for column, value in (("expression", "the other"), ("image", "other.png"), ("row", 99)):
        rows = table.to_pylist()
        rows[3][column] = value
        other = Plan(pa.Table.from_pylist(rows, QUESTIONS), 3)
        assert other.content != plan.content
        assert sum(a != b for a, b in zip(other.keys, plan.keys, strict=True)) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_one_image_with_many_questions(size: int) -> None:
    plan = Plan(questions([7] * 10), size)
    assert [plan.size(n) for n in range(len(plan))] == [size] * (10 // size) + [10 % size] * (10 % size > 0)
