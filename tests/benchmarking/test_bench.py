"""`promptris bench` on a small model: everything is measured, and the ratios are those of the times."""

from __future__ import annotations

import json

import pytest

from promptris.benchmarking import bench
from promptris.benchmarking.memory import CLEAR_REFS
from promptris.benchmarking.timing import interleaved
from promptris.interfaces.cli import main

RATIOS = {
    "sam_fp32_vs_hf_sdpa",
    "sam_bf16_vs_hf_sdpa",
    "clip_fp32_vs_hf_sdpa",
    "clip_bf16_vs_hf_sdpa",
    "four_expressions_fp32_vs_naive",
    "four_expressions_bf16_vs_naive",
    "fraction_of_peak_bf16",
}


def test_cases_take_turns_and_the_first_call_does_not_count():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = interleaved(cases, 2, lambda text: None)
    assert "".join(calls) == "ababab"
    assert all(len(timing.seconds) == 2 for timing in times.values())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Of a small model, without CLIPSeg, which would take most of the time."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "clipseg", lambda device: lambda image, texts: None)
        patch.setattr("promptris.benchmarking.agreement.SCENES", 2)
        patch.setattr("promptris.benchmarking.peak.SHAPES", ((64, 64, 64),))
        assert (
            main(
                [
                    "bench",
                    "--model",
                    "refshapes",
                    "--random-weights",
                    "--repeats",
                    "1",
                    "--no-engines",
                    "--json",
                    str(path),
                ]
            )
            == 0
        )
    return json.loads(path.read_text())


def test_ratios_are_those_of_the_medians(result):
    wanted = RATIOS | ({"memory_hf_sdpa_vs_ours"} if CLEAR_REFS.exists() else set())
    assert wanted <= result["ratios"].keys()
    seconds = {name: timing["median"] for name, timing in result["seconds"].items()}
    ratio = seconds["sam_hf_sdpa"] / seconds["sam_fp32"]
    assert result["ratios"]["sam_fp32_vs_hf_sdpa"] == pytest.approx(ratio, rel=0.05)
    total = sum(result["flops_of_four_expressions"].values())
    peak = result["peak_gflops"]["bf16"] * 1e9
    assert result["ratios"]["fraction_of_peak_bf16"] == pytest.approx(
        total / seconds["four_expressions_bf16"] / peak, rel=0.05, abs=1e-3
    )
    assert [row["expressions"] for row in result["scaling"]] == [1, 2, 4, 8, 16]


def test_fast_ways_agree_with_the_plain_one(result):
    found = result["agreement"]
    assert found["sam_fp32_relative_error"] < 1e-5 and found["sam_bf16_relative_error"] < 2.5e-2
    assert found["final_logits_fp32_relative_error"] < 1e-3
    assert found["final_fp32_mask_iou_on_refshapes"] == 1
    assert found["final_bf16_mask_iou_on_refshapes"] >= 0.98
    assert found["coarse_bf16_mask_iou_on_refshapes"] >= 0.98


def test_what_contradicts_itself_is_told(capsys, tmp_path):
    assert main(["bench", "--random-weights"]) == 2
    assert main(["bench", "--json", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "--model vit-b" in told and "is a folder" in told
