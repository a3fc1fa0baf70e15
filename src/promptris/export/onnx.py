"""A model as three ONNX graphs, each checked against the model by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from promptris.errors import ExportError, InputError
from promptris.export.checking import Run, ask_model, check_sizes, compare
from promptris.export.folder import Written, new_folder, write_manifest
from promptris.export.graphs import Graph, graphs_of
from promptris.modeling.prompt_ris import PromptRIS

OPSETS = range(18, 23)
"""ONNX operator sets that can be asked for; the lowest is what most runtimes have.

From 23 on attention is an operator of its own, and ONNX Runtime's (1.32) refuses some of this model's.
"""
IN_ONE_FILE = 100_000_000
"""Bytes of weights up to which a graph's file holds them; those of larger ones lie beside it. ONNX ends at 2 GB."""


def export_onnx(
    model: PromptRIS,
    out: Path,
    name: str,
    opset: int = OPSETS[0],
    notify: Callable[[str], None] = lambda text: None,
) -> list[Written]:
    """Write a model's graphs as ONNX into a new folder, with tokenizer and manifest.

    Args:
        model: in float32 on the CPU.
        out: new or empty folder.
        name: of the model, for people.
        opset: ONNX operator set, see OPSETS.
        notify: is told of every graph that is done.

    Returns:
        the graphs with their largest differences from the model.

    Raises:
        InputError: when the folder cannot be written, or for an opset that is not there.
        ExportError: when a graph cannot be made, or does not compute what the model does; nothing is written then.
    """
    check_opset(opset)
    import onnxruntime

    with new_folder(out) as folder:
        graphs = graphs_of(model)
        for graph in graphs:
            write_graph(graph, folder / f"{graph.name}.onnx", opset)
            notify(f"{graph.name}: recorded")
        questions = [
            ask_model(model, sizes, seed) for seed, sizes in enumerate(check_sizes(graphs[0].longest))
        ]
        written = []
        for graph in graphs:
            file = f"{graph.name}.onnx"
            difference = compare(graph, onnx_runner(folder / file), questions)
            notify(f"{graph.name}: differs from the model by at most {difference:.1e} of the largest value")
            written.append(Written(graph, file, difference))
        versions = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
        write_manifest(
            folder, model, name, written, {"format": "onnx", "opset": opset, **versions, "fewest_clicks": 0}
        )
    return written


def check_opset(opset: int) -> None:
    """InputError for an opset that cannot be asked for."""
    if opset not in OPSETS:
        raise InputError(f"--opset {opset} is not there: choose from {OPSETS[0]} to {OPSETS[-1]}")


def onnx_runner(path: Path) -> Run:
    """Runs an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def write_graph(graph: Graph, path: Path, opset: int) -> None:
    """One graph as ONNX; an ExportError when it cannot be made."""
    size = sum(weight.numel() * weight.element_size() for weight in graph.module.parameters())
    with _quiet():
        try:
            recorded = graph.record()
            program: Any = torch.onnx.export(
                recorded,
                input_names=[spec.name for spec in graph.inputs],
                output_names=[spec.name for spec in graph.outputs],
                dynamic_shapes=graph.dynamic_shapes(),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # whatever the exporter or torch.export raised
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise ExportError(f"{graph.name} cannot be made an ONNX graph: {reason}") from error
        program.save(path, external_data=size > IN_ONE_FILE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on libraries that are not needed and names of axes that are the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
