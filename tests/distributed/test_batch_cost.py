"""The page on Ray shows what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_measured_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    batch_cost = importlib.import_module("batch_cost")
    result = json.loads((ROOT / "benchmarks" / "results" / "batch_cost.json").read_text())
    table = batch_cost.tables(result, batch_cost.PRICE)
    assert table in (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    # A core-second each, and a hundredth of one: a million are 277.8 hours and 2.78.
    made_up = {
        "tiny": {"images": 2, "expressions": 10, "core_seconds_per_expression": 0.01},
        "full": [{"dtype": "float32", "core_seconds_per_image": 0.5, "core_seconds_per_expression": 0.5}],
    }
    tiny, full, *_ = batch_cost.tables(made_up, 2.0).splitlines()[2:]
    assert tiny == "| tiny, whole batch | 5 | 0.01 | 3 | 5.56 |"
    assert full == "| paper's size, float32 | 1 | 1 | 278 | 555.56 |"
