"""`promptris figure`, `promptris gallery` and `promptris curves`: answers and training as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptris.errors import InputError
from promptris.interfaces.arguments import (
    Clip,
    Dataset,
    Device,
    Dtype,
    Method,
    Model,
    Prompts,
    Sam,
    Split,
    SplitBy,
    Threshold,
)
from promptris.interfaces.data import DataRoot
from promptris.interfaces.methods import choose_method
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.options import check_threshold, parse_prompts
from promptris.interfaces.terminal import (
    generalised_table,
    metrics_table,
    new_table,
    percent,
    print_table,
    progress,
    say,
)

Tile = Annotated[int, typer.Option(min=64, max=2048, help="Longer side of each picture in pixels.")]


def parse_ids(text: str) -> list[int]:
    """Ids of sentences from "12,15"; InputError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--sent-id {text!r} is not a comma list of numbers, for example 12,15") from None


def figure_command(
    dataset: Dataset,
    split: Split,
    out: Annotated[Path, typer.Option(help="The figure: a .png, .jpg, .webp or .pdf file.")],
    data_root: DataRoot = None,
    model: Model = None,
    method: Method = "prompts",
    count: Annotated[
        int | None,
        typer.Option(min=1, help="How many random expressions, of different images.  [default: 6]"),
    ] = None,
    sent_id: Annotated[
        str | None,
        typer.Option(help="Comma list of sentences to show instead of random ones, for example 12,15."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    tile: Tile = 256,
    font: Annotated[
        Path | None, typer.Option(help="TrueType font for expressions in other than Latin letters.")
    ] = None,
    split_by: SplitBy = None,
    prompts: Prompts = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threshold: Threshold = 0.5,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Draw the paper's Fig. 4: image, coarse and final mask, truth.

    A row for each of some random expressions, or of those named by --sent-id, with IoU under the masks.
    """
    if count is not None and sent_id is not None:
        raise InputError("--count and --sent-id exclude each other: give the one or the other")
    sent_ids = None if sent_id is None else parse_ids(sent_id)
    choice = choose_method(
        method, ModelChoice(model, False, device, dtype, check_threshold(threshold), clip, sam), prompts
    )
    names = parse_prompts(prompts)

    from promptris.data.catalog import read_dataset
    from promptris.experiments import figures

    figures.check_figure_path(out)
    data = read_dataset(dataset, data_root, split_by, splits=[split], notify=say)
    if sent_ids is None:
        sentences = figures.random_sentences(data, split, 6 if count is None else count, seed)
    else:
        sentences = figures.named_sentences(data, split, sent_ids)
    predictor = choice.load()
    with progress("expressions") as advance:
        scored = list(figures.score_sentences(predictor, data, sentences, names, advance))
    figures.write_figure(figures.draw_figure(scored, data.images, tile, font), out)
    table = new_table("sentence", "expression", "coarse IoU %", "final IoU %", words=2)
    for one in scored:
        ious = percent(figures.coarse_iou(one)), percent(one.iou)
        table.add_row(str(one.expression.sent_id), one.expression.text, *ious)
    print_table(table, f"{choice.shown_name} on {data.name} {split}")
    say(f"the figure is in {out}")
    return 0


def gallery_command(
    dataset: Dataset,
    split: Split,
    out: Annotated[Path, typer.Option(help="Folder for index.html and its pictures.")],
    data_root: DataRoot = None,
    model: Model = None,
    method: Method = "prompts",
    per_group: Annotated[
        int,
        typer.Option(min=1, help="Best, worst and random cases of every kind of expression, this many each."),
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of the random cases.")] = 0,
    tile: Tile = 384,
    split_by: SplitBy = None,
    prompts: Prompts = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threshold: Threshold = 0.5,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Make a web page of best, worst and random answers of a split.

    The page needs neither network nor JavaScript: open DIR/index.html in any browser, or send the folder.
    """
    choice = choose_method(
        method, ModelChoice(model, False, device, dtype, check_threshold(threshold), clip, sam), prompts
    )
    names = parse_prompts(prompts)

    from promptris.data.catalog import read_dataset
    from promptris.experiments import gallery
    from promptris.experiments.gallery_survey import survey_split

    data = read_dataset(dataset, data_root, split_by, splits=[split], notify=say)
    data.referents(split)
    gallery.check_gallery_folder(out)
    predictor = choice.load()
    with progress("expressions") as advance:
        survey = survey_split(
            predictor, data, split, choice.shown_name, names, per_group, seed, progress=advance
        )
    with progress("pictures") as advance:
        page = gallery.write_gallery(survey, out, tile, advance)
    evaluation = survey.evaluation()
    print_table(metrics_table(evaluation), f"{choice.shown_name} on {data.name} {split}, in percent")
    if evaluation.generalised:
        print_table(generalised_table(evaluation), "several targets or none, in percent")
    say(f"the gallery is in {page}")
    return 0


def curves_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of training runs; their towers/clip and towers/sam too."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The plot: a .png, .svg or .pdf file.")],
    smooth: Annotated[
        int | None,
        typer.Option(min=1, help="Steps to average losses over.  [default: a fiftieth of the longest run]"),
    ] = None,
) -> int:
    """Draw the curves of training runs, several over each other.

    Loss and its terms, learning rate, where stages begin, and validation mIoU where the run has evaluated.
    """
    from promptris.experiments import curves

    curves.check_curves_path(out)
    curves.require_matplotlib()
    read = curves.read_runs(runs)
    curves.write_curves(read, out, smooth)
    window = curves.default_window(read) if smooth is None else smooth
    table = new_table("run", "steps", "loss at the end", "best mIoU %", "at step")
    for run in read:
        loss = curves.smooth(run.series["loss"], run.stages, window)[-1]
        best = run.best_validation
        validation = ("-", "-") if best is None else (percent(best[1]), str(best[0]))
        table.add_row(run.label, str(run.steps[-1]), f"{loss:.4g}", *validation)
    print_table(table)
    say(f"the curves are in {out}")
    return 0
