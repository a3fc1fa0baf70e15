"""The benchmarks' code runs; what it measures is not looked at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu_train(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_train")


def test_gpu_benchmark_on_a_small_model(gpu_train, tmp_path, capsys):
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    report = gpu_train.main(["--tiny", "--no-compile", "--peak-tflops", "1", *files])
    assert json.loads((tmp_path / "r.json").read_text()) == report
    cases = [tuple(row["case"].values()) for row in report["results"]]
    assert len(set(cases)) == 6 and (2, True, True, False) in cases and (1, False, False, False) in cases
    for row in report["results"]:
        assert row["note"] == "" and row["step_ms"] > 0
        # 2 images per step; the utilisation of a device with a peak of 1 TFLOP/s.
        assert row["images_per_second"] == pytest.approx(2000 / row["step_ms"], rel=0.01)
        assert row["utilisation"] == pytest.approx(
            row["model_tflop"] / row["step_ms"] * 1000, rel=0.2, abs=1e-3
        )
    table = (tmp_path / "r.md").read_text()
    assert table == capsys.readouterr().out
    assert table.count("\n| 2 |") == 4 and table.count("| cached |") == 2


def test_gpu_benchmark_ends_in_time(gpu_train):
    report = gpu_train.main(["--tiny", "--minutes", "0"])
    assert [row["note"] for row in report["results"]] == ["not run: no time left"] * 8


def test_gpu_benchmark_needs_a_gpu(gpu_train, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu_train.main([])
    assert stop.value.code == 2 and "no GPU" in capsys.readouterr().err


def test_gpu_prediction_benchmark_on_a_small_model(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu_infer = importlib.import_module("gpu_infer")
    monkeypatch.setattr(gpu_infer.Bench, "image_encoder", _without_compiling(gpu_infer.Bench.image_encoder))
    report = gpu_infer.main(["--tiny", "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text()) == report
    assert set(report["global_attention_seconds"]) == {"bias of all pairs", "bias as channels"}
    assert [row["images"] for row in report["image_encoder"]] == [1, 2]
    for row in report["predictions"]:
        assert row["expressions_per_second"] == pytest.approx(4 * row["images"] / row["seconds"], rel=0.01)
    chosen = gpu_infer.main(["--tiny", "--minutes", "0", "--parts", "predictions"])
    assert "predictions" in chosen and "image_encoder" not in chosen
    late = gpu_infer.main(["--tiny", "--minutes", "0"])
    assert late["predictions"] == "not run: no time left"


def _without_compiling(measure):
    return lambda bench, compiled: measure(bench, compiled=False)


@pytest.mark.slow
def test_gpu_benchmark_with_compilation():
    done = subprocess.run(
        [BENCHMARKS / "gpu_train.sh", "--tiny"], capture_output=True, text=True, check=True, timeout=500
    )
    assert done.stdout.count("| yes |") == 2 and "not run" not in done.stdout


@pytest.mark.slow
def test_the_page_on_training_cost_says_what_is_counted():
    page = (BENCHMARKS.parent / "docs" / "training-cost.md").read_text(encoding="utf-8")
    command = [sys.executable, BENCHMARKS / "training_cost.py"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=500)
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 6
    for table in tables:
        assert table in page, table


@pytest.mark.slow
def test_serving_benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    serving = importlib.import_module("serving")
    few = ["--requests", "32", "--clients", "8", "--rounds", "2", "--threads", "1"]
    report = serving.main([*few, "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text()) == report
    assert report["together"]["statuses"] == {"200": 32} and report["one_by_one"]["statuses"] == {"200": 16}
    assert len(report["together"]["memory_mb"]["after_every_round"]) == 2


def test_later_prompting_on_a_small_model(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    first_layer = importlib.import_module("first_layer")
    monkeypatch.setattr(first_layer, "COUNTS", (1, 3))
    path = tmp_path / "r.json"
    report = first_layer.main(
        ["--preset", "refshapes", "--dtype", "float32", "--repeats", "1", "--json", str(path)]
    )
    assert [list(row["seconds"]) for row in report["rows"]] == [[0, 1, 2, 3]] * 2
    assert all(row["times_as_fast"][0] == 1 for row in report["rows"])
    assert [row["expressions"] for row in json.loads(path.read_text())["rows"]] == [1, 3]
