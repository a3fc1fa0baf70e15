"""`promptris batch`: its options; whole batches are in tests/distributed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptris.errors import InputError
from promptris.interfaces.batch import parse_concurrency

Command = Callable[..., Any]


def test_concurrency() -> None:
    assert parse_concurrency(None) is None
    assert parse_concurrency("4") == (4, 4)
    assert parse_concurrency("1, 8") == (1, 8)
    for wrong in ("", "1,2,3", "many", "-1", "1.5", "²"):
        with pytest.raises(InputError, match="--concurrency"):
            parse_concurrency(wrong)


def test_refusals(promptris: Command, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    table = tmp_path / "questions.jsonl"
    table.write_text('{"picture": "a.png", "expression": "the star"}\n')
    promptris("batch", table, "--out", "out", "--concurrency", "2,x").refused("--concurrency")
    promptris("batch", table, "--out", "out", "--threshold", "1").refused("--threshold")
    promptris("batch", table, "--out", "out").refused(str(table), '"image"', "picture")
    promptris("batch", tmp_path / "gone.jsonl", "--out", "out").refused("gone.jsonl")
    named = ("batch", table, "--image-column", "picture", "--out")
    promptris(*named, "out", "--model", "no/such-model").refused("no/such-model")
    promptris(*named, tmp_path).refused(str(tmp_path), "--out")
    promptris("batch", table).refused("--out")
    promptris(*named, "out", "--address", "127.0.0.1:9").refused("Ray at 127.0.0.1:9", "refused")


def test_without_the_extra(promptris: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    promptris("batch", tmp_path / "q.jsonl", "--out", "out").refused("promptris[ray]")
