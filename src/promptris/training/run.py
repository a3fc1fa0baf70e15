"""A training run from recipe to model folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

from promptris.data.batches import ReferBatches
from promptris.data.catalog import read_dataset
from promptris.data.combined import COMBINED
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, silent
from promptris.data.open_vocabulary import select as select_categories
from promptris.errors import InputError
from promptris.evaluation.protocol import Evaluation, evaluate
from promptris.modeling.build import build_from_sources
from promptris.modeling.prompt_ris import PromptRIS
from promptris.predictor import Predictor
from promptris.training.callbacks import SkippedItems
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.config import DataConfig, GeneratedData, Recipe
from promptris.training.module import PromptRISTraining
from promptris.training.recipes import dump_recipe
from promptris.training.schedule import Schedule
from promptris.training.towers import prepare_towers
from promptris.training.trainer import fit_steps

RECIPE_FILE, RESULT_FILE, SKIPPED_FILE = "recipe.yaml", "result.json", "skipped.txt"


def run_recipe(
    recipe: Recipe, out: Path, resume: bool = False, device: str = "auto", notify: Notify = silent
) -> Evaluation:
    """Do everything a recipe asks for and evaluate the result on its validation split.

    `out` gets recipe.yaml, metrics.csv, last.ckpt, model/ (as `save_pretrained`), result.json, and what had to
    be made first: data/ and towers/.

    Args:
        recipe: what to do.
        out: folder of the run; new or empty, unless resuming.
        resume: go on with the interrupted run in `out`.
        device: Lightning accelerator, "auto", "cpu", "cuda" or "mps".
        notify: told what is worth knowing about the data, in sentences.

    Raises:
        InputError: when `out` holds another run, or data or weights cannot be read.
    """
    started = time.perf_counter()
    _claim(recipe, out, resume)
    training, validation = prepare_data(recipe.data, out / "data", notify)
    clip, sam = prepare_towers(recipe.towers, out / "towers", recipe.seed, resume)
    model = build_from_sources(clip, sam, recipe.model, recipe.seed)
    tune(recipe, model, training, out, resume, device)
    model.save_pretrained(out / "model", full=recipe.save_full)
    result = evaluate(Predictor(model.eval()), validation, recipe.data.val_split, folder=out / "evaluation")
    report = {"seconds": round(time.perf_counter() - started, 1), "metrics": result.to_dict()}
    (out / RESULT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return result


def tune(
    recipe: Recipe, model: PromptRIS, dataset: ReferDataset, out: Path, resume: bool, device: str
) -> None:
    """Train the learned parts of a model, stage by stage."""
    config = recipe.train
    batches = ReferBatches(
        dataset,
        recipe.data.train_split,
        model.processor(),
        model.sam.mask_size,
        config.images_per_step,
        config.expressions_per_image,
        config.word_deletion,
        recipe.seed,
        # Looked up when a batch is made; the schedule needs the number of images first.
        needs_sam=lambda step: schedule.needs_sam(step),
        skip_broken=recipe.data.skip_broken,
    )
    schedule = Schedule.from_epochs(
        config.stages, batches.schedule.steps_per_epoch, config.lr, config.decay_power, config.warmup
    )
    checkpoint = StepCheckpoint(out / "last.ckpt", config.checkpoint_seconds)
    model.train()
    fit_steps(
        PromptRISTraining(model, config, schedule),
        batches,
        schedule.total,
        out,
        "prompts",
        recipe.seed,
        checkpoint,
        resume,
        config.gradient_clip,
        config.workers,
        device,
        [SkippedItems(out / SKIPPED_FILE, dataset.broken)] if recipe.data.skip_broken else [],
    )


def prepare_data(
    config: DataConfig, folder: Path, notify: Notify = silent
) -> tuple[ReferDataset, ReferDataset]:
    """The data sets to train and to evaluate on; RefShapes is generated below `folder` unless it is there.

    Raises:
        InputError: when they cannot be read, or lack the splits that the recipe names.
    """
    root = config.root
    if config.name == "refshapes" and root is None:
        root = str(_generate(config.generate, folder))
    training = read_dataset(config.name, root, config.split_by, skip_broken=config.skip_broken, notify=notify)
    if config.val_share:
        training = training.hold_out(config.val_share, config.train_split, config.val_split)
    val_name = config.val_name or ("refcoco" if config.name == COMBINED else config.name)
    validation = training if val_name == config.name else read_dataset(val_name, root, notify=notify)
    training = select_categories(training, config.categories)
    for dataset, split in ((training, config.train_split), (validation, config.val_split)):
        if not len(dataset.samples(split)):
            raise InputError(f"{dataset.name} has no expression in its split {split!r}")
    return training, validation


def _generate(wanted: GeneratedData, folder: Path) -> Path:
    from promptris.data.refshapes import WorldOptions
    from promptris.data.refshapes.writer import write_refshapes

    if not folder.is_dir():
        options = WorldOptions(size=wanted.size, level=wanted.level)
        write_refshapes(folder, {"train": wanted.train, "val": wanted.val}, wanted.seed, options)
    return folder


def _claim(recipe: Recipe, out: Path, resume: bool) -> None:
    """Make the run's folder; a run is only resumed under the recipe it was started with."""
    text = dump_recipe(recipe)
    path = out / RECIPE_FILE
    if resume:
        if not path.exists():
            raise InputError(f"there is no run to resume in {out}: it has no {RECIPE_FILE}")
        if path.read_text() != text:
            raise InputError(
                f"{out} was started with another recipe or other options: give the same ones to resume it, "
                "or another --out folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: give another --out folder, or --resume to go on with its run")
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
