"""`promptris evaluate`: the metrics of a model on a split, and those of answers without a model beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    baselines_table,
    generalised_table,
    metrics_table,
    objects_line,
    print_table,
    progress,
    say,
    verdict,
)


def evaluate_command(
    dataset: Dataset,
    split: Split,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and predictions.jsonl.")],
    data_root: DataRoot = None,
    model: Model = None,
    method: Method = "prompts",
    split_by: SplitBy = None,
    categories: Annotated[
        str, typer.Option(help="Only referents of seen or unseen categories (Table 2), or all.")
    ] = "all",
    prompts: Prompts = None,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Leave out what trivial answers and ceilings score.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threshold: Threshold = 0.5,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Evaluate a model on a split of a data set.

    Every sentence counts once, with its mask at the image's own size.
    """
    named = ModelChoice(model, False, device, dtype, check_threshold(threshold), clip, sam)
    choice = choose_method(method, named, prompts=prompts)
    names = parse_prompts(prompts)

    from promptris.data.catalog import read_dataset
    from promptris.data.open_vocabulary import select
    from promptris.outputs import make_folder

    data = select(read_dataset(dataset, data_root, split_by, splits=[split], notify=say), categories)
    data.referents(split)
    make_folder(out)

    from promptris.evaluation.baselines import score_baselines
    from promptris.evaluation.protocol import evaluate

    predictor = choice.load()
    baselines = None
    if not no_baselines and not data.is_generalised(split):
        # Before the model, which takes far longer: what stops them is then told at once.
        with progress("images, without a model") as advance:
            baselines = score_baselines(data, split, progress=advance)
    with progress("expressions") as advance:
        evaluation = evaluate(predictor, data, split, names, out, progress=advance, baselines=baselines)
    which = "" if categories == "all" else f", {categories} categories"
    print_table(metrics_table(evaluation), f"{choice.shown_name} on {data.name} {split}{which}, in percent")
    if evaluation.generalised:
        print_table(generalised_table(evaluation), "several targets or none, in percent")
    if evaluation.baselines is not None:
        print_table(baselines_table(evaluation.baselines), objects_line(evaluation.baselines))
        say(str(verdict(evaluation)))
    say(f"metrics.json and predictions.jsonl are in {out}")
    return 0
