"""A training run from recipe to model folder."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L

from promptris.data.batches import ReferBatches
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, silent
from promptris.errors import InputError
from promptris.evaluation.protocol import Evaluation, evaluate
from promptris.modeling.build import build_from_sources
from promptris.modeling.card import CARD_FILE
from promptris.modeling.prompt_ris import PromptRIS
from promptris.predictor import Predictor
from promptris.team import connected, launched_rank
from promptris.training.boards import Boards, open_boards
from promptris.training.callbacks import SkippedItems
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.config import Recipe
from promptris.training.data import prepare_data
from promptris.training.embedding_cache import BuildEmbeddings
from promptris.training.guard import BadLossGuard
from promptris.training.model_card import model_card
from promptris.training.module import PromptRISTraining
from promptris.training.recipes import dump_recipe, load_recipe, plain
from promptris.training.schedule import make_schedule
from promptris.training.towers import prepare_towers
from promptris.training.trainer import AUTOCAST, METRICS_FILE, check_engine, fit_steps, world_size
from promptris.training.validation import Pictures, Validation

RECIPE_FILE, RESULT_FILE, SKIPPED_FILE = "recipe.yaml", "result.json", "skipped.txt"
VALIDATION_FILE = "validation.csv"
READY_FILE = ".prepared"
"""Made by the first process when data and towers are there."""


def run_recipe(
    recipe: Recipe, out: Path, resume: bool = False, device: str = "auto", notify: Notify = silent
) -> Evaluation:
    """Do everything a recipe asks for and evaluate the result on its validation split.

    `out` gets recipe.yaml, metrics.csv, last.ckpt, model/ (as `save_pretrained`), result.json, and what had to
    be made first: data/ and towers/.

    Of several processes the first one makes and writes everything; the others wait for it, and all of them train
    and evaluate.

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
    check_engine(recipe.engine, device)
    _check_tuned_towers(recipe)
    first = launched_rank() == 0
    if first:
        _claim(recipe, out, resume)
    else:
        wait_for(out / READY_FILE)
    training, validation = prepare_data(recipe.data, out / "data", notify)
    clip, sam = prepare_towers(recipe.towers, out / "towers", recipe.seed, resume)
    if first:
        (out / READY_FILE).touch()
    model = build_from_sources(clip, sam, recipe.model, recipe.seed)
    tune(recipe, model, training, validation, out, resume, device, notify)
    team, started_from = connected(), model.sources
    if team.rank == 0:
        if recipe.train.tune_towers:
            model.sources = {}  # they are no longer what these name
        model.save_pretrained(out / "model", full=recipe.save_full)
    split, folder = recipe.data.val_split, out / "evaluation"
    result = evaluate(Predictor(model), validation, split, folder=folder, team=team)
    if team.rank == 0:
        report = {"seconds": round(time.perf_counter() - started, 1), "metrics": result.to_dict()}
        card = model_card(model, recipe, training, started_from, result, out / METRICS_FILE)
        (out / "model" / CARD_FILE).write_text(card, encoding="utf-8")
        (out / RESULT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return result


def tune(
    recipe: Recipe,
    model: PromptRIS,
    training: ReferDataset,
    validation: ReferDataset,
    out: Path,
    resume: bool,
    device: str,
    notify: Notify = silent,
) -> None:
    """Train the learned parts of a model, stage by stage; afterwards it is on the device it was trained on.

    Where no stage uses SAM, the model's configuration says from then on that its answer is the coarse mask.
    """
    config, engine = recipe.train, recipe.engine
    if not uses_sam(recipe):
        # A configuration of its own: the recipe, which is compared when the run is resumed, stays as it was given.
        model.config = replace(model.config, sam_prompts=replace(model.config.sam_prompts, refine=False))
    image_ids = list(training.by_image(recipe.data.train_split))
    schedule = make_schedule(config, len(image_ids), world_size(engine))
    embeddings = None
    if engine.embedding_cache is not None and any(stage.sam for stage in config.stages):
        embeddings = BuildEmbeddings(
            engine.embedding_cache,
            model,
            training,
            image_ids,
            engine.workers,
            AUTOCAST[engine.precision],
            recipe.data.skip_broken,
            notify,
        )

    def make(rank: int, size: int) -> ReferBatches:
        return ReferBatches(
            training,
            recipe.data.train_split,
            model.processor(),
            model.sam.mask_size,
            config.images_per_step,
            config.expressions_per_image,
            config.word_deletion,
            recipe.seed,
            needs_sam=partial(schedule.item_needs_sam, config.accumulate),
            rank=rank,
            world_size=size,
            skip_broken=recipe.data.skip_broken,
            embeddings=None if embeddings is None else embeddings.cache,
        )

    facts = {"recipe": dump_recipe(recipe), "towers": model.sources}
    checkpoint = StepCheckpoint(out / "last.ckpt", engine.checkpoint_seconds, engine.keep_last, facts)
    model.checkpoint_activations(engine.checkpoint_activations)
    if config.tune_towers:
        model.unfreeze_towers()
    model.train()
    if engine.compile:
        # The one part whose shapes never change. Compiled whole, the model failed on the CPU as soon as the length
        # of the expressions made some of them symbolic (docs/log.md).
        model.sam.compile_encoder()
    with ExitStack() as stack:
        sinks: list[Boards] = []
        if launched_rank() == 0:
            done = checkpoint.saved_step() if resume else 0
            sinks = [stack.enter_context(open_boards(engine.log, out, out.name, plain(recipe), done))]
        boards = sinks[0] if sinks else None
        callbacks: list[L.Callback] = [BadLossGuard(config.bad_steps)]
        if embeddings is not None:
            callbacks.insert(0, embeddings)
        if recipe.data.skip_broken:
            callbacks.append(SkippedItems(out / SKIPPED_FILE, training.broken))
        split = recipe.data.val_split
        if config.validate_every:
            every = max(1, round(config.validate_every * schedule.steps_per_epoch))
            path = out / VALIDATION_FILE
            callbacks.append(Validation(validation, split, every, path, checkpoint, boards))
        if engine.log:
            callbacks.append(Pictures(validation, split, schedule.steps_per_epoch, boards))
        fit_steps(
            PromptRISTraining(model, config, schedule),
            make,
            schedule.total,
            out,
            "prompts",
            recipe.seed,
            checkpoint,
            resume,
            gradient_clip=config.gradient_clip,
            accumulate=config.accumulate,
            engine=engine,
            accelerator=device,
            callbacks=callbacks,
            sinks=sinks,
            stages=len(config.stages),
        )


def wait_for(path: Path, seconds: float = 24 * 3600.0) -> None:
    """Wait until the first process has made a file; InputError when it never does."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise InputError(f"the first process has not prepared the run: {path} never appeared")
        time.sleep(0.5)


def uses_sam(recipe: Recipe) -> bool:
    """Whether SAM's prompts are trained at all; otherwise the coarse mask is the model's answer."""
    return any(stage.sam for stage in recipe.train.stages)


def _check_tuned_towers(recipe: Recipe) -> None:
    """InputError where a run that changes its towers would lose or ruin them, or use outdated features of them."""
    if not 0 < recipe.train.towers_lr <= 1:
        raise InputError(
            f"train.towers_lr is {recipe.train.towers_lr}: give a share of train.lr, above 0, at most 1"
        )
    if recipe.train.tune_towers and not recipe.save_full:
        raise InputError(
            "train.tune_towers changes CLIP and SAM, so the model has to hold them: set save_full too"
        )
    if recipe.train.tune_towers and recipe.engine.embedding_cache is not None:
        raise InputError(
            "train.tune_towers and engine.embedding_cache exclude each other: SAM's features change"
        )


def _claim(recipe: Recipe, out: Path, resume: bool) -> None:
    """Make the run's folder; a run is only resumed under the recipe it was started with.

    What it is computed on may change: the engine is left out of the comparison.
    """
    text = dump_recipe(recipe)
    path = out / RECIPE_FILE
    if resume:
        if not path.exists():
            raise InputError(f"there is no run to resume in {out}: it has no {RECIPE_FILE}")
        before = load_recipe(str(path))
        if dump_recipe(replace(before, engine=recipe.engine)) != text:
            raise InputError(
                f"{out} was started with another recipe or other options: give the same ones to resume it, "
                "or another --out folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: give another --out folder, or --resume to go on with its run")
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
