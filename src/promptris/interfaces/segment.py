"""`promptris segment`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptris.interfaces.arguments import Clip, Device, Dtype, Engine, Method, Model, Prompts, Sam, Threshold
from promptris.interfaces.methods import choose_method
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.options import check_threshold, parse_box, parse_clicks, parse_prompts


def segment_command(
    context: typer.Context,
    image: Annotated[
        str,
        typer.Argument(
            help="Image file, folder, glob in quotes ('photos/**/*.jpg'), or '-' for JSON lines "
            '{"image": ..., "expressions": [...]} on standard input.',
        ),
    ],
    expressions: Annotated[
        list[str] | None,
        typer.Argument(help="What to segment, each in quotes."),
    ] = None,
    model: Model = None,
    method: Method = "prompts",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Build the size named by --model (vit-b, vit-b-32, vit-l, vit-h, refshapes) with random "
            "weights; the masks mean nothing.",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Comma list of mask, overlay, explain (pictures), rle, polygon, json (a file per expression), coco, "
            "labelstudio (one file for the whole run).",
        ),
    ] = "mask,overlay",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip what an earlier run has finished in --out: the same content of the image, expressions, model "
            "and options.",
        ),
    ] = False,
    point: Annotated[
        list[str] | None,
        typer.Option(help="X,Y,LABEL: a click in pixels, 1 on the referent or 0 beside it; repeatable."),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(help="X,Y,WIDTH,HEIGHT in pixels: where the referent is to be looked for."),
    ] = None,
    prompts: Prompts = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threshold: Threshold = 0.5,
    clip: Clip = None,
    sam: Sam = None,
    engine: Engine = "auto",
) -> int:
    """Segment what expressions refer to, in one image or many.

    Prints one JSON line per image and expression: image, expression, score, area, bbox [x, y, w, h], point
    [x, y], files. One bad image does not stop the others: exit code 1 when some failed, 2 when all did.
    """
    from promptris.interfaces.answering import Question, segment
    from promptris.outputs import parse_formats

    wanted = parse_formats(formats)
    named = ModelChoice(model, random_weights, device, dtype, check_threshold(threshold), clip, sam, engine)
    choice = choose_method(method, named, prompts, point, box, "explain" in wanted)
    question = Question(parse_clicks(point or []), parse_prompts(prompts), parse_box(box), bool(context.obj))
    return segment(image, expressions or [], choice, out, wanted, question, resume)
