"""`promptris export`: models as graphs that run without this package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptris.interfaces.arguments import Clip, Model, Sam
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.options import require_extra
from promptris.interfaces.terminal import new_table, print_table, say

if TYPE_CHECKING:
    from promptris.export.folder import Written
    from promptris.modeling.prompt_ris import PromptRIS

app = typer.Typer(rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="New or empty folder for the export.")]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Build the size named by --model (vit-b, vit-b-32, vit-l, vit-h, refshapes) with random weights.",
    ),
]


@app.callback(invoke_without_command=True)
def export_group(context: typer.Context) -> None:
    """Write a model as graphs for other runtimes, checked against the model."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("onnx")
def onnx_command(
    out: Out,
    model: Model = None,
    random_weights: RandomWeights = False,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 22.")] = 18,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Write three ONNX graphs, tokenizer and manifest.

    The graphs are SAM's image encoder, CLIP with its prompts, and the prompted decoder. Numbers of images,
    expressions, tokens and clicks are chosen at every call. Each graph is run by ONNX Runtime on random inputs of
    several sizes and must give what the model gives.
    """
    choice = ModelChoice(model, random_weights, clip=clip, sam=sam)
    choice.check()
    require_extra("export")
    from promptris.export.folder import check_new
    from promptris.export.onnx import check_opset, export_onnx

    check_opset(opset)
    check_new(out)
    written = export_onnx(_load(choice), out, choice.shown_name, opset, say)
    _show(out, written)
    return 0


@app.command("torch")
def torch_command(
    out: Out,
    model: Model = None,
    random_weights: RandomWeights = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Compile for this machine's processor with AOTInductor; needs a C++ compiler.",
        ),
    ] = False,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Write the same graphs as programs of torch.export (.pt2)."""
    choice = ModelChoice(model, random_weights, clip=clip, sam=sam)
    choice.check()
    from promptris.export.folder import check_new
    from promptris.export.torch_export import export_torch

    check_new(out)
    written = export_torch(_load(choice), out, choice.shown_name, compiled, say)
    _show(out, written)
    return 0


def _load(choice: ModelChoice) -> PromptRIS:
    """The model as it is exported: float32, on the CPU."""
    return replace(choice, device="cpu", dtype="float32").load().model


def _show(out: Path, written: list[Written]) -> None:
    table = new_table("graph", "file", "MB", "largest difference", words=2)
    for one in written:
        files = [out / one.file, out / f"{one.file}.data"]
        size = sum(path.stat().st_size for path in files if path.exists())
        table.add_row(one.graph.name, one.file, f"{size / 1e6:.1f}", f"{one.difference:.1e}")
    print_table(table, "differences from the model, as a share of an output's largest value")
    say(f"written to {out}, with tokenizer and export.json")
