"""`promptris bench`: times, memory and agreement of a model beside what a user would run instead."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptris.benchmarking.agreement import mask_agreement, relative_error
from promptris.benchmarking.memory import Memory, measure_memory
from promptris.benchmarking.peak import measured_peak
from promptris.benchmarking.subjects import (
    clipseg,
    image_tower,
    load_subject,
    our_answer,
    plain_answer,
    plain_image_tower,
)
from promptris.benchmarking.timing import Timing, interleaved, ratio_of_medians
from promptris.config import PromptRISConfig
from promptris.engines.choice import choose_engine, make_image_encoder
from promptris.errors import MissingExtraError
from promptris.modeling.build import build_from_configs
from promptris.modeling.cost import count_prediction
from promptris.modeling.plain import PlainPromptRIS
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.onednn import inference
from promptris.placement import pick_device, place
from promptris.predictor import Predictor

Notify = Callable[[str], None]
TEXTS = ("the dog on the left", "the red car", "the man above it", "a small cup")
PROMPTS = 16


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: built-in name, folder or hub id; a preset's name with `random`.
        random: random weights.
        device: "auto" or a torch device.
        repeats: rounds of every comparison.
        counts: numbers of expressions of the scaling table.
        memory: measure memory too, in processes of their own.
        rivals: measure the slow ways too; without them there are no ratios to them.
        engines: measure the other engines that are installed.
    """

    model: str = "tiny"
    random: bool = False
    device: str = "auto"
    repeats: int = 3
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    memory: bool = True
    rivals: bool = True
    engines: bool = False


def run_bench(settings: Settings, notify: Notify) -> dict[str, Any]:
    """Measure; the result is plain, for JSON. Ratios are how many times as fast (or as small) ours is."""
    return _Bench(settings, notify).run()


class _Bench:
    def __init__(self, settings: Settings, notify: Notify) -> None:
        self.settings, self.notify = settings, notify
        self.device = pick_device(settings.device)
        notify(f"building {settings.model}")
        exact = load_subject(settings.model, settings.random, str(self.device), "float32")
        half = place(_copy(exact), str(self.device), "bfloat16")
        self.exact = Predictor(exact, remembered_images=0)
        self.half = Predictor(half, remembered_images=0)
        self.models = {"fp32": exact, "bf16": half}
        self.plain = PlainPromptRIS(exact, "sdpa")
        self.image: NDArray[np.uint8] = np.random.default_rng(0).integers(
            0, 255, (480, 640, 3), dtype=np.uint8
        )

    def run(self) -> dict[str, Any]:
        self.notify("the machine's highest rate of products")
        peak = {
            name: measured_peak(self.device, dtype)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        times = {**self._image_encoder(), **self._image_tower(), **self._whole()}
        ratios = self._ratios(times)
        flops = count_prediction(lambda: _empty_copy(self.models["fp32"]), len(TEXTS))
        total = sum(flops.values())
        fractions = {}
        for name in ("fp32", "bf16"):
            fractions[name] = round(total / times[f"four_expressions_{name}"].median / peak[name], 3)
            ratios[f"fraction_of_peak_{name}"] = fractions[name]
        memory = self._memory()
        ours, theirs = memory.get("ours_fp32"), memory.get("transformers_fp32")
        if ours is not None and theirs is not None:
            ratios["memory_hf_sdpa_vs_ours"] = round(theirs.peak / ours.peak, 3)
        return {
            "model": self.settings.model,
            "random_weights": self.settings.random,
            "device": str(self.device),
            "machine": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            "image": list(self.image.shape),
            "peak_gflops": {name: round(value / 1e9, 1) for name, value in peak.items()},
            "flops_of_four_expressions": flops,
            "seconds": {name: timing.to_dict() for name, timing in times.items()},
            "scaling": self._scaling(),
            "memory_mb": {
                name: {**asdict(found), "transient": round(found.transient, 1)}
                for name, found in memory.items()
                if found is not None
            },
            "agreement": self._agreement(),
            "ratios": ratios,
        }

    def _timed(self, cases: dict[str, Callable[[], object]], warm_up: bool = True) -> dict[str, Timing]:
        return interleaved(cases, self.settings.repeats, self.notify, warm_up)

    def _image_encoder(self) -> dict[str, Timing]:
        side = self.models["fp32"].sam.image_size
        pixels = torch.randn(1, 3, side, side, device=self.device)
        half = pixels.bfloat16()

        def plain() -> Tensor:
            with torch.inference_mode():
                features: Tensor = self.plain.sam_encoder(pixels).last_hidden_state
                return features

        cases: dict[str, Callable[[], object]] = {
            "sam_fp32": lambda: _encode(self.models["fp32"], pixels),
            "sam_bf16": lambda: _encode(self.models["bf16"], half),
        }
        if self.settings.rivals:
            cases = {"sam_hf_sdpa": plain, **cases}
        return self._timed({**cases, **self._other_engines()})

    def _other_engines(self) -> dict[str, Callable[[], object]]:
        """SAM's image encoder by every other engine that is here."""
        if not self.settings.engines or self.device.type != "cpu":
            return {}
        side = self.models["fp32"].sam.image_size
        pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        cases: dict[str, Callable[[], object]] = {}
        for engine, half in (("openvino", False), ("openvino", True), ("onnxruntime", False)):
            try:
                chosen = choose_engine(engine, self.device)
            except MissingExtraError as error:
                self.notify(str(error))
                continue
            encoder = make_image_encoder(chosen, self.models["fp32"], half, self.notify)
            assert encoder is not None
            name = f"sam_{engine}_{'bf16' if half else 'fp32'}"
            cases[name] = lambda encoder=encoder: encoder(pixels)  # type: ignore[misc]
        return cases

    def _image_tower(self) -> dict[str, Timing]:
        exact = self.models["fp32"]
        side = exact.config.clip_image_size
        pixels = torch.randn(1, 3, side, side, device=self.device)
        prompts = torch.randn(1, PROMPTS, exact.clip.image_dim, device=self.device)
        cases: dict[str, Callable[[], object]] = {
            "clip_fp32": image_tower(exact, pixels, prompts),
            "clip_bf16": image_tower(self.models["bf16"], pixels.bfloat16(), prompts.bfloat16()),
        }
        if self.settings.rivals:
            cases = {"clip_hf_sdpa": plain_image_tower(self.plain, pixels, prompts), **cases}
        return self._timed(cases)

    def _whole(self) -> dict[str, Timing]:
        cases: dict[str, Callable[[], object]] = {
            "four_expressions_fp32": lambda: our_answer(self.exact, self.image, TEXTS),
            "four_expressions_bf16": lambda: our_answer(self.half, self.image, TEXTS),
        }
        if not self.settings.rivals:
            return self._timed(cases)
        answer_clipseg = clipseg(self.device)
        processor = self.exact.processor
        cases["four_expressions_hf_sdpa_shared"] = lambda: plain_answer(
            self.plain, processor, self.image, TEXTS, shared=True
        )
        cases["four_expressions_clipseg"] = lambda: answer_clipseg(self.image, len(TEXTS))
        warm = self._timed(cases)
        naive = PlainPromptRIS(self.models["fp32"], "eager")
        # The naive way takes minutes, so it has no call that does not count; ours runs beside it again.
        slow = self._timed(
            {
                "four_expressions_naive": lambda: plain_answer(
                    naive, processor, self.image, TEXTS, shared=False
                ),
                "four_expressions_fp32": cases["four_expressions_fp32"],
                "four_expressions_bf16": cases["four_expressions_bf16"],
            },
            warm_up=False,
        )
        joined = {name: Timing(timing.seconds + _seconds(warm, name)) for name, timing in slow.items()}
        return {**warm, **joined}

    def _ratios(self, times: dict[str, Timing]) -> dict[str, float]:
        pairs = {
            "sam_fp32_vs_hf_sdpa": ("sam_hf_sdpa", "sam_fp32"),
            "sam_bf16_vs_hf_sdpa": ("sam_hf_sdpa", "sam_bf16"),
            "clip_fp32_vs_hf_sdpa": ("clip_hf_sdpa", "clip_fp32"),
            "clip_bf16_vs_hf_sdpa": ("clip_hf_sdpa", "clip_bf16"),
            "four_expressions_fp32_vs_naive": ("four_expressions_naive", "four_expressions_fp32"),
            "four_expressions_bf16_vs_naive": ("four_expressions_naive", "four_expressions_bf16"),
            "four_expressions_fp32_vs_hf_sdpa_shared": (
                "four_expressions_hf_sdpa_shared",
                "four_expressions_fp32",
            ),
            "four_expressions_bf16_vs_hf_sdpa_shared": (
                "four_expressions_hf_sdpa_shared",
                "four_expressions_bf16",
            ),
            "four_expressions_bf16_vs_clipseg": ("four_expressions_clipseg", "four_expressions_bf16"),
            "sam_fp32_vs_openvino": ("sam_openvino_fp32", "sam_fp32"),
            "sam_bf16_vs_openvino": ("sam_openvino_bf16", "sam_bf16"),
            "sam_fp32_vs_onnxruntime": ("sam_onnxruntime_fp32", "sam_fp32"),
        }
        return {
            name: ratio_of_medians(times[slow], times[fast])
            for name, (slow, fast) in pairs.items()
            if slow in times and fast in times
        }

    def _scaling(self) -> list[dict[str, float]]:
        """Seconds for N expressions about one image that is set anew, and for each further one."""
        rows = []
        for count in self.settings.counts:
            texts = [f"{TEXTS[k % len(TEXTS)]} {k}" for k in range(count)]
            times = self._timed(
                {
                    "fp32": lambda texts=texts: our_answer(self.exact, self.image, texts),  # type: ignore[misc]
                    "bf16": lambda texts=texts: our_answer(self.half, self.image, texts),  # type: ignore[misc]
                },
                warm_up=False,
            )
            rows.append({"expressions": count, **{name: round(t.median, 4) for name, t in times.items()}})
        return rows

    def _memory(self) -> dict[str, Memory | None]:
        if not self.settings.memory or self.device.type != "cpu":
            return {}
        ways: list[tuple[str, str]] = [("ours", "float32"), ("ours", "bfloat16")]
        if self.settings.rivals:
            ways.append(("transformers", "float32"))
        found: dict[str, Memory | None] = {}
        for way, dtype in ways:
            self.notify(f"memory of set_image, {way}, {dtype}")
            short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
            found[f"{way}_{short}"] = measure_memory(
                self.settings.model,
                way,  # type: ignore[arg-type]
                dtype,
                self.settings.random,
            )
        return found

    def _agreement(self) -> dict[str, float]:
        """How far the fast ways are from the plain one, on this model; and the masks on a trained one."""
        self.notify("agreement")
        exact = self.models["fp32"]
        side = exact.sam.image_size
        pixels = torch.randn(1, 3, side, side, device=self.device)
        found: dict[str, float] = {}
        with torch.inference_mode():
            expected = self.plain.sam_encoder(pixels).last_hidden_state
        for name, model in self.models.items():
            features = _encode(model, pixels.to(next(model.parameters()).dtype))
            found[f"sam_{name}_relative_error"] = relative_error(features, expected)
        processor = self.exact.processor
        images = processor.images([self.image]).to(self.device)
        asked = processor.expressions(list(TEXTS)).to(self.device)
        with torch.inference_mode():
            reference = self.plain(self.plain.encode_image(images), asked)
        with inference():
            ours = exact(exact.encode_image(images), asked)
        assert reference.mask_logits is not None and ours.mask_logits is not None
        found["final_logits_fp32_relative_error"] = relative_error(ours.mask_logits, reference.mask_logits)
        found.update(mask_agreement(str(self.device)))
        return found


def _encode(model: PromptRIS, pixels: Tensor) -> Tensor:
    with inference():
        return model.sam.encode_image(pixels)


def _seconds(times: dict[str, Timing], name: str) -> tuple[float, ...]:
    return times[name].seconds if name in times else ()


def _copy(model: PromptRIS) -> PromptRIS:
    """The same model once more."""
    copy = _empty_copy(model)
    copy.load_state_dict(model.state_dict())
    return copy


def _empty_copy(model: PromptRIS) -> PromptRIS:
    clip, sam = model.clip.clip.config.to_dict(), model.sam.sam.config.to_dict()
    config = PromptRISConfig.from_dict(model.config.to_dict())
    return build_from_configs(clip, sam, config, model.tokenizer)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            return next(names)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def summary_rows(result: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """The ratios as rows for people."""
    return [(name.replace("_", " "), f"{value:.2f}") for name, value in result["ratios"].items()]
