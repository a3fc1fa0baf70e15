"""Tables as questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptris.distributed.questions import QUESTIONS, read_questions
from promptris.errors import InputError

Lines = Callable[[Path, list[Any]], Path]


def test_texts_and_lists_of_texts(tmp_path: Path, write_lines: Lines) -> None:
    rows = [
        {"image": "a.png", "expressions": ["the star", "the circle"]},
        {"image": "sub/b.png", "expression": "the square", "more": 1},
        {"image": "/abs/c.png", "expressions": "the star"},
        {"image": "s3://bucket/d.png", "expressions": ["the star"]},
    ]
    table = read_questions(write_lines(tmp_path / "q.jsonl", rows))
    assert table.schema == QUESTIONS
    got = [tuple(row.values()) for row in table.to_pylist()]
    assert got == [
        (0, 0, "a.png", "the star", str(tmp_path / "a.png"), None),
        (0, 1, "a.png", "the circle", str(tmp_path / "a.png"), None),
        (1, 0, "sub/b.png", "the square", str(tmp_path / "sub/b.png"), None),
        (2, 0, "/abs/c.png", "the star", "/abs/c.png", None),
        (3, 0, "s3://bucket/d.png", "the star", "s3://bucket/d.png", None),
    ]


def test_parquet_says_the_same_as_lines(tmp_path: Path, write_lines: Lines) -> None:
    rows = [{"image": f"{n}.png", "expressions": [f"the {n}", "the star"][: n % 3]} for n in range(7)]
    lines = read_questions(write_lines(tmp_path / "q.jsonl", rows))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "q.parquet", row_group_size=2)
    assert read_questions(tmp_path / "q.parquet").equals(lines)
    coded = table.set_column(0, "image", table["image"].dictionary_encode())
    pq.write_table(coded, tmp_path / "coded.parquet")
    assert read_questions(tmp_path / "coded.parquet").equals(lines)


def test_folders_globs_and_several_files(
    tmp_path: Path, write_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "_tmp/0.jsonl", ".hidden.jsonl", "a/readme.txt"):
        write_lines(tmp_path / name, [{"picture": "x.png", "text": name}])
    read = {
        "folder": read_questions(tmp_path, "picture", "text"),
        "glob": read_questions(f"{tmp_path}/*/[12].jsonl", "picture", "text"),
        "several": read_questions([tmp_path / "a", str(tmp_path / "b/2.jsonl")], "picture", "text"),
    }
    monkeypatch.chdir(tmp_path / "a")
    read["relative"] = read_questions(["1.jsonl", "../b"], "picture", "text")
    for table in read.values():
        assert table["expression"].to_pylist() == ["a/1.jsonl", "b/2.jsonl"]
        assert table["row"].to_pylist() == [0, 1]
        places = [str(Path(place).resolve()) for place in table["location"].to_pylist()]
        assert places == [str(tmp_path / "a/x.png"), str(tmp_path / "b/x.png")]


def test_an_address_as_input() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/in/q.jsonl", b'{"image": "x.png", "expression": "the star"}')
    for source in ("fsspec+memory:///in/q.jsonl", "fsspec+memory:///in"):
        table = read_questions(source)
        assert table["location"].to_pylist() == ["fsspec+memory:///in/x.png"]


def test_what_is_wrong_with_one_row_stays_with_it(tmp_path: Path, write_lines: Lines) -> None:
    rows = [
        '{"image": "a.png", "expressions": ["the star"',
        "[1]",
        {"image": 7, "expressions": ["the star", "the circle"]},
        {"expressions": ["the star"]},
        {"image": "a.png", "expressions": []},
        {"image": "a.png"},
        {"image": "a.png", "expressions": ["", 3, "the star", "\ud800"]},
        {"image": "\ud800", "expressions": "the star"},
        "",
        {"image": "a.png", "expressions": "the star"},
    ]
    table = read_questions(write_lines(tmp_path / "q.jsonl", rows)).to_pylist()
    by_row: dict[int, list[dict[str, Any]]] = {}
    for question in table:
        by_row.setdefault(question["row"], []).append(question)
    errors = {row: [question["error"] for question in asked] for row, asked in by_row.items()}
    assert errors[0][0].startswith("the line is not JSON") and errors[1] == ["the line is not a JSON object"]
    assert errors[2] == ["the image is 7, not a path or an address"] * 2
    assert errors[3] == ["the image is missing, not a path or an address"]
    assert errors[4] == errors[5] == ["the row has no expression: describe what to segment"]
    empty, number, fine, odd = errors[6]
    assert (
        "is empty" in empty and "must be text, not int" in number and fine is None and "valid Unicode" in odd
    )
    assert "valid Unicode" in errors[7][0]
    assert errors[8] == [None] and len(errors) == 9
    assert all((question["error"] is None) == (question["location"] is not None) for question in table)


def refused(source: Any, *words: str, **columns: str) -> None:
    with pytest.raises(InputError) as error:
        read_questions(source, **columns)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_refusals_name_the_input(tmp_path: Path, write_lines: Lines) -> None:
    lines = write_lines(tmp_path / "q.jsonl", [{"img": "a.png", "text": "the star"}])
    refused(lines, str(lines), 'no column "image"', "img, text")
    refused(lines, 'no column "expressions" or "expression"', image_column="img")
    refused(lines, 'no column "words"', image_column="img", expression_column="words")
    parquet = tmp_path / "q.parquet"
    pq.write_table(pa.table({"image": ["a.png"]}), parquet)
    refused(parquet, str(parquet), 'no column "expressions" or "expression"')
    parquet.write_bytes(parquet.read_bytes()[:50])
    refused(parquet, str(parquet), "damaged")
    refused(tmp_path / "gone.jsonl", "there is no file or folder", "gone.jsonl")
    refused(f"{tmp_path}/*.csv", "no parquet or JSON-lines file matches")
    other = write_lines(tmp_path / "q.csv", ["image,expression"])
    refused(other, "q.csv is neither parquet nor JSON lines")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no parquet or JSON-lines files")
    refused([], "no input")
    refused(write_lines(tmp_path / "none.jsonl", []), "none.jsonl has no rows")
    refused("nothing://a/q.jsonl", "no address")


def test_letters_that_look_like_ends_of_lines(tmp_path: Path) -> None:
    text = "the\u2028star\x85here"
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"image": "a.png", "expression": text}, ensure_ascii=False), encoding="utf-8")
    assert read_questions(path)["expression"].to_pylist() == [text]
