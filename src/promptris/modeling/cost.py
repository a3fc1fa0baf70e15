"""What one training step costs: floating-point operations and memory, counted without computing anything.

The step runs on tensors that have a shape and a type but no contents, so the paper's batch on the paper's towers
is counted in seconds on any machine.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from promptris.losses import PromptRISCriterion
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops import attention
from promptris.ops.onednn import has_onednn
from promptris.structures import ExpressionBatch, ImageBatch, SegmentationTargets

PARTS = (
    "SAM image encoder",
    "CLIP image tower",
    "CLIP text tower",
    "cross-modal prompting",
    "cross-modal decoder",
    "text prompter",
    "SAM mask decoder",
    "the rest",
)
"""In the order of the tables; the rest are SAM's prompt encoder, the point's embedding and the losses."""


@dataclass(frozen=True)
class StepShape:
    """Size of a training step; the defaults are the paper's.

    Attributes:
        images: I.
        expressions_per_image: b.
        tokens: T of the longest expression, [SOS] and [EOS] included.
    """

    images: int = 16
    expressions_per_image: int = 4
    tokens: int = 20


@dataclass(frozen=True)
class StepCost:
    """What one step costs.

    Attributes:
        forward: floating-point operations of the forward pass by part.
        backward: those of the backward pass; with recomputation, the second forward passes are among them.
        peak_bytes: most bytes that tensors of the step took at once: pixels, activations and gradients. Weights,
            the optimiser's state and what the allocator holds in reserve come on top.
    """

    forward: dict[str, int]
    backward: dict[str, int]
    peak_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole step."""
        return sum(self.forward.values()) + sum(self.backward.values())


def count_step(
    build: Callable[[], PromptRIS],
    shape: StepShape | None = None,
    *,
    sam: bool = True,
    cached: bool = False,
    recompute: bool = False,
    precision: str = "32",
) -> StepCost:
    """Forward pass, losses and backward pass of one training step.

    A multiplication and an addition count as two operations. Matrix products, convolutions and attention are
    counted; norms, activation functions and the like, a few per cent, are not. The backward pass of attention
    counts as two forward passes, whatever its kernel computes again. Only what the step computes is counted:
    no gradients of frozen weights.

    Args:
        build: makes the model; its weights take no memory.
        shape: size of the step.
        sam: whether SAM is run (the paper's last 30 epochs) or the coarse losses alone are used.
        cached: SAM's image embeddings are given.
        recompute: see `PromptRIS.checkpoint_activations`.
        precision: "32", or "bf16" for mixed precision; it decides about memory.
    """
    shape = shape or StepShape()
    meter = _Meter()
    with FakeTensorMode(), warnings.catch_warnings():
        # The position grid asks for a pointer, which is only compared.
        warnings.filterwarnings("ignore", message=".*data pointer of FakeTensor.*")
        model = build().train()
        model.checkpoint_activations(recompute)
        weights = [*model.parameters(), *model.buffers(), model.sam.position_grid()]
        half = torch.bfloat16 if precision == "bf16" else torch.float32
        mixed = torch.autocast("cpu", half, enabled=precision == "bf16")
        meter.ignore(weights)
        with meter, _labelled(model, meter), _in_few_passes():
            images, expressions, truth = _batch(model, shape, with_sam=sam and not cached)
            with mixed:
                features = model.encode_image(images)
                if sam and cached:
                    features.sam_embeddings = _embeddings(model, shape, half)
                output = model(features, expressions, sample_point=sam)
                loss = PromptRISCriterion()(output, truth)["loss"]
            loss.backward()
    return StepCost(meter.total("forward"), meter.total("backward"), meter.peak)


def count_prediction(
    build: Callable[[], PromptRIS], expressions: int = 4, tokens: int = 10
) -> dict[str, int]:
    """Operations by part of answering expressions about one image, as it is computed; counted as by `count_step`.

    Args:
        build: makes the model; its weights take no memory.
        expressions: B, all about the one image.
        tokens: T of the longest expression, [SOS] and [EOS] included.
    """
    meter = _Meter()
    with FakeTensorMode(), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*data pointer of FakeTensor.*")
        model = build()
        with meter, _labelled(model, meter), _in_few_passes():
            images, asked, _ = _batch(model, StepShape(1, expressions, tokens), with_sam=True)
            model(model.encode_image(images), asked)
    return meter.total("forward")


def _batch(
    model: PromptRIS, shape: StepShape, with_sam: bool
) -> tuple[ImageBatch, ExpressionBatch, SegmentationTargets]:
    images, batch = shape.images, shape.images * shape.expressions_per_image
    clip_side, sam_side, size = model.config.clip_image_size, model.sam.image_size, model.sam.mask_size
    clip_pixels = torch.zeros(images, 3, clip_side, clip_side, dtype=torch.uint8)
    sam_pixels = torch.zeros(images, 3, sam_side, sam_side, dtype=torch.uint8) if with_sam else None
    expressions = ExpressionBatch(
        input_ids=torch.zeros(batch, shape.tokens, dtype=torch.long),
        word_mask=torch.ones(batch, shape.tokens, dtype=torch.bool),
        image_index=torch.arange(images).repeat_interleave(shape.expressions_per_image),
    )
    truth = SegmentationTargets(torch.zeros(batch, size, size), torch.arange(batch))
    return ImageBatch(clip_pixels, sam_pixels), expressions, truth


def _embeddings(model: PromptRIS, shape: StepShape, dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape.images, model.sam.dim, model.sam.grid_size, model.sam.grid_size, dtype=dtype)


class _Meter(TorchDispatchMode):
    """Counts every operation for the part of the model it belongs to, and the bytes that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._part = PARTS[-1]
        self._times = 1
        # A node of the backward pass belongs to the part that was running when it was made: its sequence number
        # lies between the number at which that part began and the next one.
        self._starts, self._parts = [0], [PARTS[-1]]
        self._storages: WeakSet[Any] = WeakSet()

    def total(self, phase: str) -> dict[str, int]:
        """Operations of a phase by part."""
        return {part: self._counts[phase, part] for part in PARTS}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is called within belongs to a part."""
        before = self._part
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """Operations within count so many times; bytes do not."""
        self._times, before = times, self._times
        try:
            yield
        finally:
            self._times = before

    def _enter(self, name: str) -> None:
        if torch._C._current_autograd_node() is None:
            self._part = name
            self._starts.append(torch._C._autograd._get_sequence_nr())
            self._parts.append(name)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = _FORMULAS.get(function.overloadpacket)
        if formula is not None:
            node = torch._C._current_autograd_node()
            if node is None:
                key = ("forward", self._part)
            else:
                key = ("backward", self._parts[bisect_right(self._starts, node._sequence_nr()) - 1])
            self._counts[key] += self._times * formula(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the bytes of these."""
        self._storages.update(tensor.untyped_storage() for tensor in tensors)

    def _watch(self, storage: Any) -> None:
        if storage not in self._storages:
            self._storages.add(storage)
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.alive -= size


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    rows = query.shape[:-1].numel()
    return 2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _linear(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    return 2 * _attention(query, key, value)


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    **({torch.ops.mkldnn._linear_pointwise: _linear} if has_onednn() else {}),
}


@contextmanager
def _labelled(model: PromptRIS, meter: _Meter) -> Iterator[None]:
    """While this lasts, the meter knows which part of the model is running."""
    parts: list[tuple[str, nn.Module, tuple[str, ...]]] = [
        ("SAM image encoder", model.sam, ("encode_image",)),
        ("CLIP image tower", model.clip, ("embed_image", "image_step", "finish_image")),
        ("CLIP text tower", model.clip, ("embed_text", "text_step", "finish_text")),
        ("cross-modal prompting", model.prompting, ("text_prompts", "image_prompts")),
        ("cross-modal decoder", model.decoder, ("forward",)),
        ("text prompter", model.text_prompter, ("forward",)),
        ("SAM mask decoder", model.sam, ("decode",)),
    ]
    labelled = [(owner, name, part) for part, owner, names in parts for name in names]
    for owner, name, part in labelled:
        function = getattr(owner, name)
        if name == "encode_image" and model.towers_are_frozen:
            function = _of_one_image(meter, function)
        setattr(owner, name, _within(meter, part, function))
    try:
        yield
    finally:
        for owner, name, _ in labelled:
            delattr(owner, name)


@contextmanager
def _in_few_passes() -> Iterator[None]:
    """SAM's attention one head at a time: the same operations in fewer calls, and up to 0.2 GB more than it takes."""
    before = attention.SCORES
    attention.SCORES = 2**24
    try:
        yield
    finally:
        attention.SCORES = before


def _of_one_image(meter: _Meter, encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A frozen encoder takes images one after the other, each costing the same: one is looked at."""

    def call(pixels: Tensor) -> Tensor:
        with meter.repeated(len(pixels)):
            return encode(pixels[:1]).repeat(len(pixels), 1, 1, 1)

    return call


def _within(meter: _Meter, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with meter.part(part):
            return function(*args, **kwargs)

    return call
