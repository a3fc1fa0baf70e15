"""Speed, memory and utilisation of the paper's training on one GPU, in bf16 mixed precision.

CLIP ViT-B/16 at 480 and SAM ViT-B at 1024 pixels with random weights, on which the figures do not depend; 16 images
with 4 expressions each. Measured for both stages (without SAM; with SAM), with and without activation checkpointing,
with SAM's image embeddings computed in the step or given as by the embedding cache, with and without torch.compile
of SAM's image encoder.
A step is everything from uint8 pixels on the device to changed parameters; loading data is not part of it.

Model FLOP utilisation is the step's counted operations (`promptris.modeling.cost`; what is computed a second time
does not count) over its time and the GPU's dense bf16 peak.

Runs unattended and ends before `--minutes`: what no time is left for is listed as not run. Results are written after
every configuration. `--tiny` takes the same way with a small model, on a CPU too.

    benchmarks/gpu_train.sh [--minutes 9] [--json FILE] [--markdown FILE]
    python benchmarks/gpu_train.py --tiny
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from made_up_step import TrainingStep, made_up_batch
from torch import Tensor

from promptris.modeling.build import build_random
from promptris.modeling.cost import StepShape, count_step
from promptris.modeling.prompt_ris import PromptRIS

RESULTS = Path(__file__).parent / "results"
WARM_UP, AT_LEAST_STEPS, AT_LEAST_SECONDS = 3, 5, 3.0

PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "A10": 125,
}
"""Dense bf16 peak with float32 accumulation, by a part of the device's name; the first that fits counts."""


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        stage: 1 without SAM, 2 with it.
        checkpointing: activation checkpointing.
        cached: SAM's image embeddings are given.
        compiled: SAM's image encoder, by torch.compile.
    """

    stage: int
    checkpointing: bool
    cached: bool
    compiled: bool


@dataclass
class Result:
    """What was measured; None where it was not, with the reason as `note`."""

    case: Case
    step_ms: float | None = None
    images_per_second: float | None = None
    peak_memory_gb: float | None = None
    utilisation: float | None = None
    model_tflop: float | None = None
    first_step_seconds: float | None = None
    note: str = ""


def cases(compiled: tuple[bool, ...]) -> Iterator[Case]:
    """All configurations, those that compile last: compilation cannot be taken back."""
    for compile_ in compiled:
        for checkpointing in (False, True):
            yield Case(2, checkpointing, False, compile_)
            if not compile_:  # without SAM's image encoder there is nothing that is compiled
                yield Case(2, checkpointing, True, compile_)
                yield Case(1, checkpointing, False, compile_)


class Bench:
    """One model on one device, on which the configurations are measured one after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.preset = "refshapes" if options.tiny else "vit-b"
        self.shape = StepShape(2, 2, 8) if options.tiny else StepShape()
        self.least_steps, self.least_seconds = (
            (1, 0.0) if options.tiny else (AT_LEAST_STEPS, AT_LEAST_SECONDS)
        )
        self.warm_up = 1 if options.tiny else WARM_UP
        self.backend = options.backend or ("aot_eager" if options.tiny else "inductor")
        self.peak_tflops = options.peak_tflops or self._known_peak()
        self.model: PromptRIS = build_random(self.preset).to(self.device).train()
        self.step = TrainingStep(self.model, "bf16")
        # Made before anything is compiled, which would have to be done again otherwise.
        self.model.sam.position_grid()
        self.compiled = False

    def _known_peak(self) -> float | None:
        name = self.device_name()
        return next((float(peak) for part, peak in PEAK_TFLOPS.items() if part in name), None)

    def device_name(self) -> str:
        """As the driver calls it."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"

    def measure(self, case: Case) -> Result:
        """One configuration; running out of memory is a result."""
        result = Result(case)
        try:
            self._measure(case, result)
        except torch.OutOfMemoryError:
            result.note = "out of memory"
        self.step.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return result

    def _measure(self, case: Case, result: Result) -> None:
        if case.compiled and not self.compiled:
            self.model.sam.compile_encoder(backend=self.backend)
            self.compiled = True
        self.model.checkpoint_activations(case.checkpointing)
        batch = made_up_batch(self.model, self.shape, with_sam=case.stage == 2 and not case.cached)
        embeddings = self.embeddings if case.cached else None
        start = time.perf_counter()
        self._one_step(batch, embeddings)
        result.first_step_seconds = round(time.perf_counter() - start, 2)
        for _ in range(self.warm_up - 1):
            self._one_step(batch, embeddings)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        while len(seconds) < self.least_steps or sum(seconds) < self.least_seconds:
            start = time.perf_counter()
            self._one_step(batch, embeddings)
            seconds.append(time.perf_counter() - start)
        step = statistics.median(seconds)
        result.step_ms = round(1000 * step, 2)
        result.images_per_second = round(self.shape.images / step, 2)
        if self.device.type == "cuda":
            result.peak_memory_gb = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        flops = self.flops(sam=case.stage == 2, cached=case.cached)
        result.model_tflop = round(flops / 1e12, 6)
        if self.peak_tflops:
            result.utilisation = round(flops / 1e12 / step / self.peak_tflops, 4)

    def _one_step(self, batch: Any, embeddings: Tensor | None) -> None:
        loss = self.step(batch, embeddings)
        # Waits for the device too.
        if not loss.isfinite().item():
            raise RuntimeError("the loss is not finite")

    @cached_property
    def embeddings(self) -> Tensor:
        """[I, D_S, H_S, W_S] as a cache would give them."""
        batch = made_up_batch(self.model, self.shape, with_sam=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            embeddings = self.model.encode_image(batch.images).sam_embeddings
        assert embeddings is not None
        return embeddings

    @cache  # noqa: B019 - lives as long as the benchmark
    def flops(self, sam: bool, cached: bool) -> int:
        """Operations of a step, without what is computed a second time."""
        return count_step(lambda: build_random(self.preset), self.shape, sam=sam, cached=cached).flops


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""

    def shown(value: Any, form: str = "{}") -> str:
        return "–" if value is None else form.format(value)

    lines = [
        f"{report['device']}, {report['preset']}, {report['images']} images x {report['expressions_per_image']} "
        f"expressions of up to {report['tokens']} tokens, bf16, torch {report['torch']}"
        + (f", peak {report['peak_tflops']:g} TFLOP/s" if report["peak_tflops"] else ""),
        "",
        "| stage | activation checkpointing | SAM embeddings | compiled | step ms | images/s | peak memory GiB "
        "| utilisation | first step s | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        case = row["case"]
        where = "not used" if case["stage"] == 1 else "cached" if case["cached"] else "computed"
        cells = (
            case["stage"],
            "on" if case["checkpointing"] else "off",
            where,
            "yes" if case["compiled"] else "no",
            shown(row["step_ms"], "{:.1f}"),
            shown(row["images_per_second"], "{:.1f}"),
            shown(row["peak_memory_gb"], "{:.1f}"),
            shown(row["utilisation"], "{:.1%}"),
            shown(row["first_step_seconds"], "{:.1f}"),
            row["note"],
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, write, print; returns the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU too; nothing is written")
    parser.add_argument("--minutes", type=float, default=9.0, help="all the time there is")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--backend", help="of torch.compile")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of a GPU that is not known here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("there is no GPU: the paper's size takes one; --tiny runs anywhere")
    if not options.tiny:
        options.json = options.json or RESULTS / "gpu_train.json"
        options.markdown = options.markdown or RESULTS / "gpu_train.md"

    started = time.perf_counter()
    bench = Bench(options)
    report: dict[str, Any] = {
        "device": bench.device_name(),
        "preset": bench.preset,
        "images": bench.shape.images,
        "expressions_per_image": bench.shape.expressions_per_image,
        "tokens": bench.shape.tokens,
        "precision": "bf16",
        "peak_tflops": bench.peak_tflops,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "results": [],
    }
    longest = {False: 0.0, True: 0.0}
    for case in cases((False,) if options.no_compile else (False, True)):
        now = time.perf_counter() - started
        if now + longest[case.compiled] > 60 * options.minutes:
            result = Result(case, note="not run: no time left")
        else:
            result = bench.measure(case)
            took = time.perf_counter() - started - now
            longest[case.compiled] = max(longest[case.compiled], took)
        report["results"].append(asdict(result))
        sys.stderr.write(f"{time.perf_counter() - started:6.1f} s  {result}\n")
        write(report, options.json, options.markdown)
    sys.stdout.write(markdown(report))
    return report


def write(report: dict[str, Any], json_file: Path | None, markdown_file: Path | None) -> None:
    """What there is so far."""
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if markdown_file:
        markdown_file.write_text(markdown(report))


if __name__ == "__main__":
    main()
