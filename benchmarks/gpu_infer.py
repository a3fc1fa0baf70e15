"""Speed of the paper's prediction on one GPU: CLIP ViT-B/16 at 480 and SAM ViT-B at 1024 pixels, random weights.

Measured: SAM's image encoder in bf16 against transformers' with sdpa, for several images at once, with and without
torch.compile; ways to compute its global attention; whole predictions of several images with four expressions each;
and the share of the GPU's measured bf16 peak that these take. All in turn, in one run; seconds are medians.

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
from collections.abc import Callable
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
from promptris.placement import place
from promptris.structures import ExpressionBatch, ImageBatch

EXPRESSIONS, TOKENS = 4, 12


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
        self.backend = "aot_eager" if options.tiny else "inductor"
        self.peak = measured_peak(self.device, self.dtype)

    def timed(self, cases: dict[str, Callable[[], object]]) -> dict[str, Any]:
        """Medians by name."""

        def notify(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        with torch.inference_mode():
            return interleaved(cases, self.repeats, notify)

    def image_encoder(self, compiled: bool) -> list[dict[str, Any]]:
        """Ours against transformers' for several images at once."""
        encoder = self.model.sam.sam.vision_encoder
        theirs = plain_sam_encoder(self.model.sam.sam, "sdpa")
        if compiled:
            encoder.compile(backend=self.backend)
        rows = []
        for images in self.batches:
            side = self.model.sam.image_size
            pixels = torch.randn(images, 3, side, side, device=self.device, dtype=self.dtype)
            times = self.timed(
                {
                    "transformers": lambda pixels=pixels: theirs(pixels).last_hidden_state,
                    "ours": lambda pixels=pixels: self.model.sam.encode_image(pixels),
                }
            )
            rows.append(
                {
                    "images": images,
                    "compiled": compiled,
                    "transformers_seconds": round(times["transformers"].median, 5),
                    "seconds": round(times["ours"].median, 5),
                    "images_per_second": round(images / times["ours"].median, 2),
                    "ratio": ratio_of_medians(times["transformers"], times["ours"]),
                }
            )
        return rows

    def global_attention(self) -> dict[str, Any]:
        """Ways to attend with relative positions: all pairs' bias, bias as channels, FlexAttention."""
        config = self.model.sam.sam.config.vision_config
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        side = self.model.sam.grid_size
        q, k, v = (torch.randn(heads, side**2, width, device=self.device, dtype=self.dtype) for _ in range(3))
        rel_h, rel_w = (
            torch.randn(heads, side**2, side, device=self.device, dtype=self.dtype) for _ in range(2)
        )

        def whole_bias() -> Tensor:
            bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
            return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None])[0]

        cases: dict[str, Callable[[], object]] = {
            "bias of all pairs": whole_bias,
            "bias as channels": lambda: folded(q, k, v, rel_h, rel_w),
        }
        if self.device.type == "cuda":
            cases["FlexAttention"] = _flex(q, k, v, rel_h, rel_w, side)
        times = self.timed(cases)
        return {name: round(timing.median, 6) for name, timing in times.items()}

    def predictions(self) -> list[dict[str, Any]]:
        """Whole predictions of several images with four expressions each."""
        flops = sum(count_prediction(lambda: build_random(self.preset), EXPRESSIONS, TOKENS).values())
        side, clip_side = self.model.sam.image_size, self.model.config.clip_image_size
        rows = []
        for images in self.batches:
            count = images * EXPRESSIONS
            batch = ImageBatch(
                torch.zeros(images, 3, clip_side, clip_side, dtype=torch.uint8),
                torch.zeros(images, 3, side, side, dtype=torch.uint8),
            ).to(self.device)
            asked = ExpressionBatch(
                torch.ones(count, TOKENS, dtype=torch.long),
                torch.ones(count, TOKENS, dtype=torch.bool),
                torch.arange(images).repeat_interleave(EXPRESSIONS),
            ).to(self.device)
            times = self.timed(
                {"ours": lambda batch=batch, asked=asked: self.model(self.model.encode_image(batch), asked)}
            )
            seconds = times["ours"].median
            rows.append(
                {
                    "images": images,
                    "seconds": round(seconds, 5),
                    "images_per_second": round(images / seconds, 2),
                    "expressions_per_second": round(count / seconds, 2),
                    "fraction_of_peak": round(images * flops / seconds / self.peak, 4),
                }
            )
        return rows


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
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny takes the same way on a CPU")
    end = time.monotonic() + options.minutes * 60
    bench = Bench(options)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "preset": bench.preset,
        "peak_tflops_bf16": round(bench.peak / 1e12, 3),
    }
    parts: dict[str, Callable[[], Any]] = {
        "global_attention_seconds": bench.global_attention,
        "image_encoder": lambda: bench.image_encoder(compiled=False),
        "predictions": bench.predictions,
        # Last: compilation cannot be taken back.
        "image_encoder_compiled": lambda: bench.image_encoder(compiled=True),
        "predictions_compiled": bench.predictions,
    }
    for name, measure in parts.items():
        try:
            report[name] = measure() if time.monotonic() < end else "not run: no time left"
        except torch.OutOfMemoryError:
            report[name] = "out of memory"
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
