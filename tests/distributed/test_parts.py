"""The folder of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptris.distributed.parts import ANSWERS, RUN_FILE, Results, part_name
from promptris.errors import InputError

STAMP = {"input": "abc", "threshold": 0.5}


def answers(count: int, errors: int = 0) -> list[dict[str, Any]]:
    empty = dict.fromkeys(ANSWERS.names)
    return [
        {**empty, "row": n, "item": 0, "image": f"{n}.png", "error": f"bad {n}" if n < errors else None}
        for n in range(count)
    ]


@pytest.fixture(params=["local", "memory"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Results:
    """An empty folder here, and on a file system that is reached through fsspec."""
    if request.param == "local":
        return Results(str(tmp_path / "deep" / "out"))
    memory = fsspec.filesystem("memory")
    if memory.exists("/out"):
        memory.rm("/out", recursive=True)
    return Results("fsspec+memory:///out")


def test_parts_are_found_again(results: Results) -> None:
    results.begin(STAMP, resume=True)
    first = results.write("run", 0, "k0", answers(3, errors=2))
    results.write("run", 2, "k2", answers(1))
    assert (first.rows, first.errors) == (3, 2)
    results.begin(STAMP, resume=True)
    there = results.finished("run", ["k0", "k1", "k2"])
    assert sorted(there) == [0, 2] and there[0] == first
    # Of another run, or of other questions.
    assert results.finished("other", ["k0", "k1", "k2"]) == {}
    assert sorted(results.finished("run", ["k9", "k1", "k2"])) == [2]
    assert results.errors(5) == [("0.png", "bad 0"), ("1.png", "bad 1")] and len(results.errors(1)) == 1


def test_a_damaged_part_does_not_count(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    for number in range(3):
        results.write("run", number, "key", answers(3))
    part = tmp_path / part_name(0)
    part.write_bytes(part.read_bytes()[:-20])
    (tmp_path / part_name(1)).write_bytes(b"")
    pq.write_table(pa.table({"row": [1]}), tmp_path / part_name(2))
    assert results.finished("run", ["key"] * 3) == {}


def test_what_others_left_is_swept_and_readers_see_parts_only(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    results.begin(STAMP, resume=True)
    results.write("run", 0, "key", answers(3))
    left = tmp_path / ".part-000001.parquet.0123.partial"
    left.write_bytes(b"half")
    assert pq.read_table(tmp_path).num_rows == 3
    results.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_FILE, part_name(0)]


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    results.begin(STAMP, resume=True)
    # Nothing has come of it yet.
    results.begin({**STAMP, "threshold": 0.4}, resume=True)
    results.begin(STAMP, resume=False)
    results.write("run", 0, "key", answers(1))
    with pytest.raises(InputError, match=r"differs in threshold \(threshold 0.5 there, 0.4 here\)") as error:
        results.begin({**STAMP, "threshold": 0.4}, resume=True)
    assert str(tmp_path) in str(error.value) and "another --out" in str(error.value)
    with pytest.raises(InputError, match="has results of this run"):
        results.begin(STAMP, resume=False)
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        results.begin(STAMP, resume=True)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(InputError, match="has other files in it"):
        Results(str(tmp_path)).begin(STAMP, resume=True)
    with pytest.raises(InputError, match="is a file"):
        Results(str(tmp_path / "photo.png")).begin(STAMP, resume=True)
    with pytest.raises(InputError, match="cannot write"):
        Results(str(tmp_path / "photo.png" / "out")).write("run", 0, "key", answers(1))
    with pytest.raises(InputError, match="no address"):
        Results("nothing://bucket/out")


def test_the_stamp_is_kept_as_it_is(tmp_path: Path) -> None:
    Results(str(tmp_path)).begin(STAMP, resume=True)
    assert json.loads((tmp_path / RUN_FILE).read_text()) == STAMP
