"""SAM's image encoder by ONNX Runtime, on a CPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import torch
from torch import Tensor

from promptris.engines.cache import converted
from promptris.export.graphs import graphs_of
from promptris.export.onnx import OPSETS, write_graph
from promptris.modeling.prompt_ris import PromptRIS

FILE = "sam_encoder.onnx"


class OnnxEncoder:
    """An `ImageEncoder` in float32; arguments as for `make_image_encoder`."""

    def __init__(self, model: PromptRIS, notify: Callable[[str], None]) -> None:
        import onnxruntime

        version = importlib.metadata.version("onnxruntime")
        folder = converted(
            model,
            "onnxruntime",
            version,
            lambda out: write_graph(graphs_of(model)[0], out / FILE, OPSETS[0]),
            notify,
        )
        self._session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, pixels: Tensor) -> Tensor:
        """One image after the other, as torch does it."""
        return torch.cat(
            [
                torch.from_numpy(self._session.run(None, {self._input: image.numpy()})[0])
                for image in pixels.contiguous().split(1)
            ]
        )
