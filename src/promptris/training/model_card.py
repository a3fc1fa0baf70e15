"""The card of a trained model: what it is, how it was made, what it scores, where it ends."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from promptris.data.dataset import ReferDataset
from promptris.evaluation.protocol import Evaluation
from promptris.modeling.build import count_parameters
from promptris.modeling.card import ALWAYS_ANSWERS, TASK, bullets, card_head, usage
from promptris.modeling.prompt_ris import PromptRIS
from promptris.training.config import Recipe, Stage
from promptris.training.recipes import dump_recipe

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MOST_NAMED = 12
"""More categories than these are counted, not named."""
METRICS = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")
_ON_THE_HUB = {"mIoU": "mean_iou", "oIoU": "overall_iou", "P@0.5": "precision_at_0.5"}
"""Metrics in the head of the card, with the names they have there."""


def model_card(
    model: PromptRIS,
    recipe: Recipe,
    training: ReferDataset,
    started_from: Mapping[str, Mapping[str, str]],
    result: Evaluation,
    metrics_file: Path,
) -> str:
    """Markdown, with the header that the hub reads.

    Args:
        model: as trained.
        recipe: that it was trained by.
        training: that it was trained on.
        started_from: where the towers came from, in the form of `PromptRIS.sources`.
        result: of the recipe's validation split.
        metrics_file: the run's `metrics.csv`, for the time that the steps took.
    """
    validation = f"{recipe.data.val_name or recipe.data.name}, split {recipe.data.val_split}"
    trained, untouched = _parameters(model)
    title = f"Prompt-RIS, trained on {recipe.data.name}"
    sections = [
        card_head(started_from, _license(recipe), title, _results(result, recipe)) + f"# {title}",
        "An image and a sentence in, the mask of the one thing the sentence means out: "
        + _method(model.config.sam_prompts.refine, recipe.train.tune_towers)
        + f" {trained:,} parameters were trained, {untouched:,} were not.",
        usage(),
        "## How it was made",
        bullets(_origin(recipe, training, started_from, metrics_file)),
        "<details><summary>The recipe</summary>\n\n```yaml\n"
        + dump_recipe(recipe).rstrip()
        + "\n```\n\n</details>",
        f"## What it scores on {validation}",
        "Every (referent, sentence) pair once, masks at the images' own size, in percent. One training seed.",
        _scores(result, model.config.sam_prompts.refine),
        "## Where it ends",
        bullets(_limits(model, recipe, training)),
    ]
    return "\n\n".join(sections) + "\n"


def hardware() -> str:
    """What this machine computes on, in words."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(gpus) or f"{os.cpu_count()} CPU cores ({platform.machine()})"


def steps_seconds(metrics_file: Path) -> float:
    """Time of all steps of a run, those before an interruption included; 0 when there is no such file."""
    if not metrics_file.is_file():
        return 0.0
    with metrics_file.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def _method(refine: bool, tuned: bool) -> str:
    if not refine:
        return "CLIP's coarse mask alone, for which SAM is not asked" + (
            "; CLIP was trained too." if tuned else "."
        )
    return "CLIP and SAM " + ("were trained too." if tuned else "as they were, bridged by learned prompts.")


def _parameters(model: PromptRIS) -> tuple[int, int]:
    """How many parameters training changed, and how many not: without SAM, neither SAM nor its prompts."""
    *parts, total = count_parameters(model)
    refine = model.config.sam_prompts.refine
    beyond = [part for part in parts if part.part.startswith("SAM") or part.part == "text prompter"]
    trained = total.trainable - (0 if refine else sum(part.trainable for part in beyond))
    return trained, total.trainable + total.frozen - trained


def _license(recipe: Recipe) -> str | None:
    """Of what comes from this package alone; anything else is for the owner of data and weights to say."""
    own = recipe.data.name == "refshapes" and recipe.towers.clip is None and recipe.towers.sam is None
    return "apache-2.0" if own else None


def _results(result: Evaluation, recipe: Recipe) -> list[EvalResult]:
    """What was measured, in percent, in the form that the hub reads."""
    from huggingface_hub import EvalResult

    data, split = recipe.data.val_name or recipe.data.name, recipe.data.val_split
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=data,
            dataset_name=data,
            dataset_split=split,
            metric_type=there,
            metric_name=here,
            metric_value=round(100 * result.final[here], 1),
        )
        for here, there in _ON_THE_HUB.items()
    ]


def _origin(
    recipe: Recipe,
    training: ReferDataset,
    started_from: Mapping[str, Mapping[str, str]],
    metrics_file: Path,
) -> list[str]:
    config = recipe.train
    batch = f"{config.images_per_step} images x {config.expressions_per_image} expressions"
    return [
        f"Data: {recipe.data.name}, split {recipe.data.train_split}, {_categories(recipe, training)}.",
        *(
            f"{name.upper()}: {_tower(source, _was_tuned(name, recipe))}"
            for name, source in started_from.items()
        ),
        f"Stages: {', then '.join(_stage(stage) for stage in config.stages)}; {batch} per pass"
        + (f", {config.accumulate} passes per step." if config.accumulate > 1 else "."),
        f"Seed {recipe.seed}, precision {recipe.engine.precision}, torch {torch.__version__}, {hardware()}; the "
        f"steps took {steps_seconds(metrics_file) / 60:.1f} minutes.",
    ]


def _tower(source: Mapping[str, str], tuned: bool) -> str:
    origin = f"{source['source']} ({source['format']}), content hash {source['sha256'][:12]}"
    return f"started from {origin}, and trained further." if tuned else f"{origin}."


def _was_tuned(tower: str, recipe: Recipe) -> bool:
    return recipe.train.tune_towers and (tower == "clip" or any(stage.sam for stage in recipe.train.stages))


def _trained_categories(recipe: Recipe, training: ReferDataset) -> tuple[list[str], list[str]]:
    """Names of the categories whose referents were trained on, and of the data set's others."""
    rows = training.rows[recipe.data.train_split]
    there = set(np.unique(np.asarray(training.columns.ref_category)[rows]).tolist())
    names = training.categories
    return [names[key] for key in names if key in there], [names[key] for key in names if key not in there]


def _categories(recipe: Recipe, training: ReferDataset) -> str:
    shown, others = _trained_categories(recipe, training)
    if not shown:
        return "whose categories are not told"
    # RefShapes keeps some of its categories out of its training split by itself.
    seen = recipe.data.categories == "seen" or (recipe.data.name == "refshapes" and others)
    named = f"{len(shown)} of {len(shown) + len(others)}" if len(shown) > MOST_NAMED else ", ".join(shown)
    return f"{'seen ' if seen else ''}categories: {named}"


def _stage(stage: Stage) -> str:
    return f"{stage.epochs:g} epochs {'with' if stage.sam else 'without'} SAM"


def _scores(result: Evaluation, refine: bool) -> str:
    answer = "final mask" if refine else "coarse mask"
    rows = {answer: result.final, "coarse mask": result.coarse}
    rows |= {f"{answer}, {kind}": scores for kind, scores in result.by_kind.items()}
    lines = [["", *METRICS, "expressions"], ["---"] * (len(METRICS) + 2)]
    for name, scores in rows.items():
        lines.append([name, *(f"{100 * scores[metric]:.1f}" for metric in METRICS), str(scores["count"])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _limits(model: PromptRIS, recipe: Recipe, training: ReferDataset) -> list[str]:
    found = [ALWAYS_ANSWERS]
    if not model.config.sam_prompts.refine:
        found.append(
            "It answers with coarse masks, whose outlines are as rough as CLIP's grid: SAM's prompts were not "
            "trained, so it takes neither clicks nor a choice of prompts."
        )
    if recipe.data.name == "refshapes":
        found.append("It knows RefShapes: coloured shapes on noise. On a photograph its masks mean nothing.")
    shown, others = _trained_categories(recipe, training)
    if shown and others:
        named = f"{len(others)} of the data set's" if len(others) > MOST_NAMED else ", ".join(others)
        found.append(f"Categories that no sentence of its training was about: {named}.")
    return found
