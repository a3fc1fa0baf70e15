"""Which device and floating-point type a model runs on."""

from __future__ import annotations

import torch

from promptris.errors import InputError
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.onednn import has_half_precision, has_onednn

LARGE_IMAGE = 512
"""From this side of SAM's images on, half precision is faster on a CPU that has it; small models lose by it."""


def place(model: PromptRIS, device: str = "auto", dtype: str = "auto") -> PromptRIS:
    """The model on a device, in a floating-point type; the arguments are those of `load`."""
    where = pick_device(device)
    chosen = choose_dtype(dtype, where, model.sam.image_size)
    with model.sam.exact_positions():
        return model.to(device=where, dtype=chosen)


def choose_dtype(name: str, device: torch.device, image_size: int) -> torch.dtype:
    """The type of a name for a SAM of this image size; an InputError lists the names."""
    types = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    if name not in ("auto", *types):
        raise InputError(f"there is no dtype {name!r}: choose from auto, {', '.join(types)}")
    return fastest_dtype(device, image_size) if name == "auto" else types[name]


def fastest_dtype(device: torch.device, image_size: int) -> torch.dtype:
    """bfloat16 where it is faster for a SAM of this image size, else float32."""
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        faster = device.type == "cpu" and has_onednn() and has_half_precision()
    return torch.bfloat16 if faster and image_size >= LARGE_IMAGE else torch.float32


def pick_device(name: str) -> torch.device:
    """The torch device of a name; "auto" takes the fastest kind that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {name!r} is not there: {str(error).splitlines()[0]}") from error
    return device
