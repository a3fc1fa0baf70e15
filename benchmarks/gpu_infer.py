"""Speed of the paper's prediction on one GPU: CLIP ViT-B/16 at 480 and SAM ViT-B at 1024 pixels, random weights.

Measured: SAM's image encoder in bf16 against transformers' with sdpa, for several images at once, with and without
torch.compile, and how far features are apart; ways to compute its attention; whole predictions of several images
with four expressions each, and of one image with more of them; the same from a recorded CUDA graph; and the share of
the GPU's measured bf16 peak that these take. All in turn, in one run; seconds are medians.

Runs unattended and ends before `--minutes`: what no time is left for is listed as not run. Results are written after
every part. `--tiny` takes the same way with a small model, on a CPU too.

    benchmarks/gpu_infer.sh [--minutes 9] [--json FILE]
    python benchmarks/gpu_infer.py --tiny
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptris.benchmarking.peak import measured_peak
from promptris.benchmarking.timing import interleaved, ratio_of_medians
from promptris.modeling.build import build_random
from promptris.modeling.cost import count_prediction
from promptris.modeling.plain import plain_sam_encoder
from promptris.modeling.relative_attention import folded
from promptris.ops.window_attention import has_triton, run_kernel
from promptris.placement import place
from promptris.structures import ExpressionBatch, ImageBatch

EXPRESSIONS, TOKENS = 4, 12
RECORDED = (1, 1), (1, 4), (8, 4)
BY_EXPRESSIONS = tuple((1, count) for count in (1, 2, 4, 8, 16))
WINDOW = 14
ATTENDED, CALLS = 8, 3
KERNELS = ((128, 8, 3), (128, 4, 3), (64, 4, 2), (64, 4, 3), (32, 2, 3))
"""Queries, warps and stages of the kernel that are tried."""


class Bench:
    """One model on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tiny = options.tiny
        self.repeats = 1 if options.tiny else options.repeats
        self.preset = "refshapes" if options.tiny else "vit-b"
        self.dtype = torch.bfloat16
        self.model = place(build_random(self.preset), str(self.device), "bfloat16")
        self.batches = (1, 2) if options.tiny else (1, 2, 4, 8, 16)
        self.compiled_batches = (2,) if options.tiny else (8, 16)  # every new shape costs a compilation
        torch._dynamo.config.recompile_limit = 64
        self.backend = "aot_eager" if options.tiny else "inductor"
        self.peak = measured_peak(self.device, self.dtype)

    def timed(self, cases: dict[str, Callable[[], object]]) -> dict[str, Any]:
        """Medians by name."""

        with torch.inference_mode():
            return interleaved(cases, self.repeats, notify=lambda text: None)

    def image_encoder(self, compiled: bool) -> list[dict[str, Any]]:
        """Ours against transformers' for several images at once."""
        theirs = plain_sam_encoder(self.model.sam.sam, "sdpa")
        if compiled:
            self.model.compile_layers(backend=self.backend, dynamic=False)
        rows = []
        for images in self.compiled_batches if compiled else self.batches:
            side = self.model.sam.image_size
            pixels = torch.randn(images, 3, side, side, device=self.device, dtype=self.dtype)
            cases: dict[str, Callable[[], Any]] = {
                "transformers": lambda pixels=pixels: theirs(pixels).last_hidden_state,
                "ours": lambda pixels=pixels: self.model.sam.encode_image(pixels),
            }
            times = self.timed(cases)
            with torch.inference_mode():
                features, expected = cases["ours"]().float(), cases["transformers"]().float()
            rows.append(
                {
                    "images": images,
                    "compiled": compiled,
                    "transformers_seconds": round(times["transformers"].median, 5),
                    "seconds": round(times["ours"].median, 5),
                    "images_per_second": round(images / times["ours"].median, 2),
                    "ratio": ratio_of_medians(times["transformers"], times["ours"]),
                    "difference": round(((features - expected).norm() / expected.norm()).item(), 6),
                }
            )
        return rows

    def attention(self, size: int) -> dict[str, Any]:
        """Ways to attend with relative positions within windows of several images, given their bias.

        Seconds for `ATTENDED` images; the kernel's include cutting windows out and joining the answers.
        """
        config = self.model.sam.sam.config.vision_config
        heads, channels = config.num_attention_heads, config.hidden_size
        side = self.model.sam.grid_size
        layer = next(x for x in self.model.sam.sam.vision_encoder.layers if x.window_size in (size, 0))
        qkv = torch.randn(ATTENDED, side, side, 3 * channels, device=self.device, dtype=self.dtype)
        down = -(-side // size)
        padded = F.pad(qkv, (0, 0, 0, down * size - side, 0, down * size - side))
        windows = padded.unflatten(2, (down, size)).unflatten(1, (down, size)).transpose(2, 3).flatten(0, 2)
        parts = windows.flatten(1, 2).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
        q, k, v = (part.contiguous() for part in parts)
        rel_h, rel_w = (
            torch.randn(len(q), size**2, size, device=self.device, dtype=self.dtype) for _ in range(2)
        )

        def whole_bias() -> Tensor:
            bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
            return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None])[0]

        cases: dict[str, Callable[[], object]] = {
            "bias of all pairs": whole_bias,
            "bias as channels": lambda: folded(q, k, v, rel_h, rel_w),
        }
        if self.device.type == "cuda":
            cases["FlexAttention"] = _flex(q, k, v, rel_h, rel_w, size)
        if self.device.type == "cuda" and has_triton():
            places = torch.randn(heads, ATTENDED, side, side, -(-(4 * size - 2) // 8) * 8, device=self.device)
            places, empty = places.to(self.dtype), layer.attn.qkv.bias.to(self.dtype)
            for launch in KERNELS:  # the kernel's own choice is the fastest of these
                name = "one kernel, {} queries, {} warps, {} stages".format(*launch)
                cases[name] = partial(run_kernel, qkv, places, empty, size, launch)
        times = self.timed({name: partial(_several, case) for name, case in cases.items()})
        return {name: round(timing.median / CALLS, 7) for name, timing in times.items()}

    def predictions(self, asked: tuple[tuple[int, int], ...] | None = None) -> list[dict[str, Any]]:
        """Whole predictions of several images with four expressions each, or of (images, expressions of each)."""
        rows = []
        for images, expressions in asked or tuple((images, EXPRESSIONS) for images in self.batches):
            predict = self.prediction(images, expressions)
            rows.append(self.row(images, expressions, self.timed({"ours": predict})["ours"].median))
        return rows

    def graphs(self, asked: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
        """The same by replaying what was recorded once: nothing is started by Python any more."""
        if self.device.type != "cuda":
            return []
        rows = []
        for images, expressions in asked:
            predict = self.prediction(images, expressions)
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode():
                for _ in range(2):
                    predict()
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    predict()
            rows.append(self.row(images, expressions, self.timed({"graph": graph.replay})["graph"].median))
        return rows

    def profile(self) -> str:
        """The kernels of a prediction of several images, those that take longest first."""
        predict = self.prediction(self.compiled_batches[0], EXPRESSIONS)
        on_gpu = self.device.type == "cuda"
        with torch.inference_mode():
            predict()
            activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
            with torch.profiler.profile(activities=[activity]) as seen:
                predict()
        by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        table: str = seen.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=100)
        return table

    def prediction(self, images: int, expressions: int) -> Callable[[], object]:
        """One prediction, from pixels on the device to masks."""
        side, clip_side = self.model.sam.image_size, self.model.config.clip_image_size
        count = images * expressions
        batch = ImageBatch(
            torch.zeros(images, 3, clip_side, clip_side, dtype=torch.uint8),
            torch.zeros(images, 3, side, side, dtype=torch.uint8),
        ).to(self.device)
        asked = ExpressionBatch(
            torch.ones(count, TOKENS, dtype=torch.long),
            torch.ones(count, TOKENS, dtype=torch.bool),
            torch.arange(images).repeat_interleave(expressions),
        ).to(self.device)
        return lambda: self.model(self.model.encode_image(batch), asked)

    def row(self, images: int, expressions: int, seconds: float) -> dict[str, Any]:
        """What a prediction's time comes to."""
        flops = _flops(self.preset, expressions)
        return {
            "images": images,
            "expressions_per_image": expressions,
            "seconds": round(seconds, 5),
            "images_per_second": round(images / seconds, 2),
            "expressions_per_second": round(images * expressions / seconds, 2),
            "fraction_of_peak": round(images * flops / seconds / self.peak, 4),
        }


@cache
def _flops(preset: str, expressions: int) -> int:
    return sum(count_prediction(lambda: build_random(preset), expressions, TOKENS).values())


def _several(case: Callable[[], object]) -> None:
    """Enough calls that starting them does not count."""
    for _ in range(CALLS):
        case()


def _flex(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, side: int) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention)

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rel_h[head, query, key // side] + rel_w[head, query, key % side]

    def run() -> Tensor:
        result: Tensor = attend(q[None], k[None], v[None], score_mod=add_bias)[0]
        return result

    return run


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", help="comma list of the parts to measure; all unless given")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--profile", action="store_true", help="print a prediction's kernels by time, and end"
    )
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny takes the same way on a CPU")
    end = time.monotonic() + options.minutes * 60
    bench = Bench(options)
    if options.profile:
        print(bench.profile())
        return {}
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "preset": bench.preset,
        "peak_tflops_bf16": round(bench.peak / 1e12, 3),
    }
    compiled = tuple((count, EXPRESSIONS) for count in bench.compiled_batches)
    parts: dict[str, Callable[[], Any]] = {
        "image_encoder": lambda: bench.image_encoder(compiled=False),
        "predictions": bench.predictions,
        "predictions_by_expressions": lambda: bench.predictions(BY_EXPRESSIONS),
        "global_attention_seconds": lambda: bench.attention(bench.model.sam.grid_size),
        "window_attention_seconds": lambda: bench.attention(WINDOW),
        # Last: compilation cannot be taken back.
        "image_encoder_compiled": lambda: bench.image_encoder(compiled=True),
        "predictions_compiled": lambda: bench.predictions(compiled),
        "predictions_compiled_and_recorded": lambda: bench.graphs(compiled),
        "predictions_recorded": lambda: Bench(options).graphs(RECORDED),
    }
    wanted = options.parts.split(",") if options.parts else list(parts)
    if unknown := set(wanted) - set(parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not among {', '.join(parts)}")
    for name, measure in parts.items():
        if name not in wanted:
            continue
        try:
            report[name] = measure() if time.monotonic() < end else "not run: no time left"
        except torch.OutOfMemoryError:
            report[name] = "out of memory"
        except RuntimeError as error:  # of torch's compilers and graphs; the other parts are worth having
            report[name] = f"failed: {str(error).splitlines()[0]}"
            traceback.print_exc()
        print(f"{name}: {report[name]}", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
