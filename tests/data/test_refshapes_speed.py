"""The benchmark of RefShapes runs and tells every level and way; how fast it is, is not looked at."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("refshapes")


def test_benchmark_tells_every_level_and_way(benchmark, tmp_path, capsys):
    file = tmp_path / "rates.json"
    result = benchmark.main(["--scenes", "2", "--rounds", "1", "--size", "64", "--json", str(file)])
    assert json.loads(file.read_text()) == result
    rates = result["scenes_per_second"]
    assert set(rates) == {"easy", "standard", "hard"}
    for row in rates.values():
        assert set(row) == {"in memory", "written"}
        assert all(rate["processor"] > 0 and rate["clock"] > 0 for rate in row.values())
    out = capsys.readouterr().out
    assert all(level in out for level in rates)


def test_benchmark_refuses_no_scenes(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--scenes", "0"])
    assert "at least 1" in capsys.readouterr().err
