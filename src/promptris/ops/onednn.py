"""Linear layers by oneDNN on a CPU, gradients included.

torch hands float32 matrix products on a CPU to MKL, which on processors that are not Intel's stays far below what
they can do (docs/performance.md); oneDNN, which comes with torch too, does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from promptris.ops.plain import plain_wanted

BLOCK = 8
"""Rows of a product that oneDNN takes whole."""
MANY = 128
"""From this number of rows on, filling them up to whole blocks is worth a copy."""


def has_onednn() -> bool:
    """Whether this torch has oneDNN and its linear layer."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def has_half_precision() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor; older ones have no instructions for it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class OneDnnLinears(TorchFunctionMode):
    """While this lasts, `F.linear` of float32 tensors on the CPU is oneDNN's, forwards and backwards.

    So is that of bfloat16 tensors where nothing is learnt. Everything else stays as it is: other types and devices,
    mixed precision, a torch without oneDNN. Results differ by rounding from torch's own, and are the same every
    time. The backward pass may lie outside.
    """

    def __init__(self) -> None:
        super().__init__()
        self._there = has_onednn()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func`, or oneDNN's in its place."""
        if func is F.linear and self._there and not kwargs and _fits(*args):
            if torch.is_grad_enabled():
                return _Linear.apply(*args)
            return _product(*args)
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> OneDnnLinears:
        _within.depth = getattr(_within, "depth", 0) + 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _within.depth -= 1
        super().__exit__(*error)


_within = threading.local()
Activation = Literal["none", "swish", "gelu", "relu"]


def same_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For activation checkpointing: what is computed again is computed as it was the first time."""
    return nullcontext(), OneDnnLinears() if getattr(_within, "depth", 0) else nullcontext()


@contextmanager
def inference() -> Iterator[None]:
    """Without gradients, and with the faster linear layers on a CPU."""
    with torch.inference_mode(), OneDnnLinears():
        yield


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _takes_half_precision()))
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and type(x) is Tensor
    )


def _takes_half_precision() -> bool:
    return not torch.is_grad_enabled() and has_half_precision()


class _Linear(torch.autograd.Function):
    """x [*n, D_i], weight [D_o, D_i], bias [D_o] or none -> [*n, D_o]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = (*ctx.needs_input_grad, False)[:3]
        gradient = gradients[0].contiguous()
        flat = gradient.flatten(0, -2) if gradient.ndim > 1 else gradient[None]
        rows = x.flatten(0, -2) if x.ndim > 1 else x[None]
        return (
            _product(gradient, weight.t(), None) if for_x else None,
            _product(flat.t(), rows.t(), None) if for_weight else None,
            flat.sum(0) if for_bias and ctx.has_bias else None,
        )


def fits_onednn(x: Tensor) -> bool:
    """Whether `onednn_product` takes this tensor and is the faster way."""
    # Compilers have their own way, and cannot look into these questions.
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not has_onednn() or plain_wanted():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and has_half_precision())


def onednn_product(
    x: Float[Tensor, "*n D_i"],
    weight: Float[Tensor, "D_o D_i"],
    bias: Float[Tensor, " D_o"] | None = None,
    activation: Activation = "none",
) -> Float[Tensor, "*n D_o"]:
    """activation(x weight^T + bias) by oneDNN in one pass, for x that `fits_onednn` is true of; not differentiable.

    "swish" is x sigmoid(x), "gelu" the exact one.
    """
    return _product(x, weight, bias, activation)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    algorithm = "none" if activation == "gelu" else ""
    # For weights whose rows lie apart oneDNN has only its reference loop, a hundred times slower.
    weight = weight.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return result


def by_whole_blocks(x: Float[Tensor, "*n D_i"], *layers: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What layers that take every row for itself make of x, given a number of rows that suits oneDNN.

    With 901 rows, CLIP's tokens at 480 pixels, its products take up to a quarter longer than with 904.
    """
    # In this order: graphs that are recorded for any number of rows must not ask for it.
    if torch.is_grad_enabled() or not fits_onednn(x):
        return [layer(x) for layer in layers]
    shape = x.shape[:-1]
    rows = shape.numel()
    odd = -rows % BLOCK
    if not odd or rows < MANY:
        return [layer(x) for layer in layers]
    filled = F.pad(x.flatten(0, -2), (0, 0, 0, odd))
    return [layer(filled)[:rows].unflatten(0, shape) for layer in layers]


def takes_layers_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear layer may be computed by `onednn_product`: nothing is learnt, and the types agree."""
    return (
        not torch.is_grad_enabled()
        and fits_onednn(x)
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
    )
