"""Arguments and options that several commands have in common, with one help text each."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option("--model", help='Built-in name, local folder or hub id.  [default: "tiny"]'),
]
Method = Annotated[
    str,
    typer.Option(
        help="prompts: the model; proposals: mask classification by the frozen CLIP and SAM alone, which needs no "
        "trained model."
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="refcoco, refcoco+, refcocog, grefcoco, refshapes, another folder in --data-root, or the path of a "
        "folder with your own data."
    ),
]
Split = Annotated[str, typer.Option(help="Such as val, testA, testB, test.")]
SplitBy = Annotated[
    str | None,
    typer.Option(help="Partition: unc, umd or google.  [default: the data set's usual one]"),
]
Prompts = Annotated[
    str | None,
    typer.Option(help="SAM prompts to use: a comma list of mask, point, text.  [default: the model's own]"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Engine = Annotated[
    str, typer.Option(help="What computes SAM's image encoder: auto, torch, openvino or onnxruntime.")
]
Threshold = Annotated[float, typer.Option(help="A pixel is in the mask when its probability is above this.")]
Clip = Annotated[
    str | None,
    typer.Option(
        help="Where the frozen CLIP is now, if it has moved since training; with --method proposals and without "
        "--model, the CLIP to use."
    ),
]
Sam = Annotated[str | None, typer.Option(help="The same for SAM.")]
