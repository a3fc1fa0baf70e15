"""SAM's image encoder by OpenVINO, on a CPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptris.engines.cache import converted
from promptris.export.graphs import graphs_of
from promptris.modeling.prompt_ris import PromptRIS

FILE = "sam_encoder.xml"


class OpenVinoEncoder:
    """An `ImageEncoder`; arguments as for `make_image_encoder`."""

    def __init__(self, model: PromptRIS, half: bool, notify: Callable[[str], None]) -> None:
        import openvino

        version = importlib.metadata.version("openvino")
        folder = converted(model, "openvino", version, lambda out: _convert(model, out), notify)
        precision = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
        self._compiled: Any = openvino.Core().compile_model(folder / FILE, "CPU", precision)

    def __call__(self, pixels: Tensor) -> Tensor:
        """One image after the other, as torch does it: several at once only take more memory."""
        request = (
            self._compiled.create_infer_request()
        )  # of its own for each caller, so that threads may share this
        features = [
            torch.from_numpy(request.infer([image.numpy()])[0].copy())
            for image in pixels.contiguous().split(1)
        ]
        return torch.cat(features)


def _convert(model: PromptRIS, out: Path) -> None:
    import openvino

    (encoder, *_) = graphs_of(model)
    openvino.save_model(openvino.convert_model(encoder.record()), out / FILE, compress_to_fp16=False)
