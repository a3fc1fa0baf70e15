"""A model as three programs of torch.export, and compiled ahead of time by AOTInductor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from promptris.errors import ExportError
from promptris.export.checking import Run, ask_model, check_sizes, compare
from promptris.export.folder import Written, new_folder, write_manifest
from promptris.export.graphs import Graph, graphs_of
from promptris.modeling.prompt_ris import PromptRIS

FEWEST_COMPILED = 1
"""Clicks that a compiled graph needs, absent ones if there are no others: it crashes on an empty array."""


def export_torch(
    model: PromptRIS,
    out: Path,
    name: str,
    compiled: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> list[Written]:
    """Write a model's graphs as .pt2 into a new folder, with tokenizer and manifest.

    Args:
        model: in float32 on the CPU.
        out: new or empty folder.
        name: of the model, for people.
        compiled: compile for this kind of processor (AOTInductor, which needs a C++ compiler) instead of writing
            programs that torch runs anywhere.
        notify: is told of every graph that is done.

    Returns:
        the graphs with their largest differences from the model.

    Raises:
        InputError: when the folder cannot be written.
        ExportError: when a graph cannot be made, or does not compute what the model does; nothing is written then.
    """
    fewest = FEWEST_COMPILED if compiled else 0
    with new_folder(out) as folder:
        graphs = graphs_of(model)
        sizes = check_sizes(graphs[0].longest, fewest)
        questions = [ask_model(model, one, seed) for seed, one in enumerate(sizes)]
        written = []
        for graph in graphs:
            path = folder / f"{graph.name}.pt2"
            _write(graph, path, compiled)
            difference = compare(graph, torch_runner(graph, path, compiled), questions)
            notify(f"{graph.name}: differs from the model by at most {difference:.1e} of the largest value")
            written.append(Written(graph, path.name, difference))
        kind = "aotinductor" if compiled else "torch.export"
        write_manifest(
            folder,
            model,
            name,
            written,
            {"format": kind, "torch": torch.__version__, "fewest_clicks": fewest},
        )
    return written


def torch_runner(graph: Graph, path: Path, compiled: bool) -> Run:
    """Runs a .pt2 file."""
    load: Any = torch._inductor.aoti_load_package if compiled else torch.export.load
    loaded = load(str(path))
    program = loaded if compiled else loaded.module()

    def run(inputs: Any) -> Any:
        with torch.no_grad():
            # torch cannot share memory that it may not write to.
            answers = program(*(torch.from_numpy(inputs[spec.name].copy()) for spec in graph.inputs))
        answers = answers if isinstance(answers, tuple | list) else (answers,)
        return {spec.name: answer.numpy() for spec, answer in zip(graph.outputs, answers, strict=True)}

    return run


def _write(graph: Graph, path: Path, compiled: bool) -> None:
    try:
        program = graph.record(FEWEST_COMPILED if compiled else 0)
        if compiled:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        else:
            torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:  # whatever torch.export, the compiler or its generated code raised
        reason = next(iter(str(error).splitlines()), "")[:200]
        what = "compiled" if compiled else "recorded"
        raise ExportError(f"{graph.name} cannot be {what}: {reason}") from error
