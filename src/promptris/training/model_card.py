"""The card of a trained model: what it is, how it was made, what it scores, where it ends."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from promptris.evaluation.protocol import Evaluation
from promptris.modeling.build import count_parameters
from promptris.modeling.prompt_ris import PromptRIS
from promptris.training.config import Recipe, Stage
from promptris.training.recipes import dump_recipe

CARD_FILE = "README.md"
METRICS = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")
_HEAD = """---
library_name: promptris
pipeline_tag: image-segmentation
tags: [referring-image-segmentation, prompt-ris, clip, sam]
---
"""


def model_card(model: PromptRIS, recipe: Recipe, result: Evaluation, metrics_file: Path) -> str:
    """Markdown, with the header that the hub reads.

    Args:
        model: as trained.
        recipe: that it was trained by.
        result: of the recipe's validation split.
        metrics_file: the run's `metrics.csv`, for the time that the steps took.
    """
    validation = f"{recipe.data.val_name or recipe.data.name}, split {recipe.data.val_split}"
    total = count_parameters(model)[-1]
    sections = [
        _HEAD + f"# Prompt-RIS, trained on {recipe.data.name}",
        "An image and a sentence in, the mask of the one thing the sentence means out: CLIP and SAM "
        + ("were trained too." if recipe.train.tune_towers else "as they were, bridged by learned prompts.")
        + f" {total.trainable:,} parameters were trained, {total.frozen:,} were not.",
        _usage(),
        "## How it was made",
        _list(_origin(model, recipe, metrics_file)),
        "<details><summary>The recipe</summary>\n\n```yaml\n"
        + dump_recipe(recipe).rstrip()
        + "\n```\n\n</details>",
        f"## What it scores on {validation}",
        "Every (referent, sentence) pair once, masks at the images' own size, in percent. One training seed.",
        _scores(result),
        "## Where it ends",
        _list(_limits(recipe)),
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


def _usage() -> str:
    return (
        "```python\nimport promptris\n\n"
        'predictor = promptris.load("path/to/this/folder")\n'
        'predictor.set_image("scene.png")\n'
        'predictor.predict("the red circle").mask  # bool [H, W]\n```'
    )


def _origin(model: PromptRIS, recipe: Recipe, metrics_file: Path) -> list[str]:
    config = recipe.train
    batch = f"{config.images_per_step} images x {config.expressions_per_image} expressions"
    return [
        f"Data: {recipe.data.name}, split {recipe.data.train_split}, categories: {recipe.data.categories}.",
        *(f"{name.upper()}: {_tower(source)}" for name, source in model.sources.items()),
        f"Stages: {', then '.join(_stage(stage) for stage in config.stages)}; {batch} per pass"
        + (f", {config.accumulate} passes per step." if config.accumulate > 1 else "."),
        f"Seed {recipe.seed}, precision {recipe.engine.precision}, torch {torch.__version__}, {hardware()}; the "
        f"steps took {steps_seconds(metrics_file) / 60:.1f} minutes.",
    ]


def _tower(source: Mapping[str, str]) -> str:
    return f"{source['source']} ({source['format']}), content hash {source['sha256'][:12]}."


def _stage(stage: Stage) -> str:
    return f"{stage.epochs:g} epochs {'with' if stage.sam else 'without'} SAM"


def _scores(result: Evaluation) -> str:
    rows = {"final mask": result.final, "coarse mask": result.coarse}
    rows |= {f"final mask, {kind}": scores for kind, scores in result.by_kind.items()}
    lines = [["", *METRICS, "expressions"], ["---"] * (len(METRICS) + 2)]
    for name, scores in rows.items():
        lines.append([name, *(f"{100 * scores[metric]:.1f}" for metric in METRICS), str(scores["count"])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _limits(recipe: Recipe) -> list[str]:
    found = [
        "It always answers with one mask, also where the sentence means nothing in the image, or several things."
    ]
    if recipe.data.name == "refshapes":
        found.append("It knows RefShapes: coloured shapes on noise. On a photograph its masks mean nothing.")
    if recipe.data.categories != "all":
        found.append(f"It was trained on referents of {recipe.data.categories} categories only.")
    return found


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
