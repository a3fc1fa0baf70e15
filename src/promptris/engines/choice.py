"""Engines by name, and the image encoder that one of them runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from promptris.errors import InputError, MissingExtraError
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.onednn import has_onednn

ENGINES = ("auto", "torch", "openvino", "onnxruntime")
_EXTRAS = {"openvino": "cpu", "onnxruntime": "export"}

ImageEncoder = Callable[[UInt8[Tensor, "I 3 s s"]], Float[Tensor, "I D_S H_S W_S"]]
"""SAM's image features, float32 on the CPU, of uint8 pixels."""


def choose_engine(name: str, device: torch.device) -> str:
    """The engine that a name stands for on a device: "torch", "openvino" or "onnxruntime".

    "auto" is torch, which needs no conversion and was as fast where it was measured (docs/performance.md); on a CPU
    whose torch comes without oneDNN it is one of the others if it is installed.

    Raises:
        InputError: for a name that does not exist, or an engine that does not run on the device.
        MissingExtraError: when its package is not installed.
    """
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r}: choose from {', '.join(ENGINES)}")
    if name == "auto":
        if device.type != "cpu" or has_onednn():
            return "torch"
        return next((engine for engine in _EXTRAS if _installed(engine)), "torch")
    if name == "torch":
        return name
    if device.type != "cpu":
        raise InputError(
            f"the engine {name} runs on the CPU here, not on {device}: choose torch or --device cpu"
        )
    for package in (name, "onnxscript") if name == "onnxruntime" else (name,):
        if not _installed(package):
            raise MissingExtraError(package, _EXTRAS[name])
    return name


def make_image_encoder(
    engine: str, model: PromptRIS, half: bool, notify: Callable[[str], None] = lambda text: None
) -> ImageEncoder | None:
    """SAM's image encoder run by an engine that `choose_engine` gave; None for torch, where the model does it.

    The first time for these weights it is converted, and kept in the user's cache folder.

    Args:
        engine: "torch", "openvino" or "onnxruntime".
        model: in float32 on the CPU.
        half: compute in bfloat16, where the engine and the processor can.
        notify: told of a conversion, in a sentence.

    Raises:
        InputError: when the cache folder cannot be written.
    """
    if engine == "openvino":
        from promptris.engines.openvino_encoder import OpenVinoEncoder

        return OpenVinoEncoder(model, half, notify)
    if engine == "onnxruntime":
        from promptris.engines.onnx_encoder import OnnxEncoder

        return OnnxEncoder(model, notify)
    return None


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
