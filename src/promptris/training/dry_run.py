"""What a recipe would do: parameters, steps, memory and time, before anything is trained."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel, SamModel

from promptris.builtin_models import builtin_folder
from promptris.data.catalog import read_dataset
from promptris.data.combined import COMBINED
from promptris.data.open_vocabulary import select as select_categories
from promptris.data.published import PUBLISHED
from promptris.data.readers.refer import DEFAULT_SPLIT_BY
from promptris.modeling.build import (
    ParameterCount,
    build_from_sources,
    build_model,
    build_random,
    count_parameters,
)
from promptris.modeling.cost import StepShape, count_step
from promptris.modeling.presets import get_preset
from promptris.modeling.prompt_ris import PromptRIS
from promptris.processing import Processor
from promptris.structures import SegmentationTargets, TrainingBatch
from promptris.training.callbacks import peak_memory
from promptris.training.config import Recipe
from promptris.training.module import PromptRISTraining
from promptris.training.schedule import Schedule, make_schedule
from promptris.training.trainer import check_engine, world_size

TIMED_IMAGES = 2
"""Images of a timed step; the time of a whole step is that many times as long as it has more images."""
BYTES_PER_TRAINABLE = 16
"""float32 weight, gradient and both moments of AdamW."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: steps of the optimiser, and seconds per step as timed (None when nothing was timed)."""

    name: str
    steps: int
    seconds_per_step: float | None


@dataclass(frozen=True)
class DryRun:
    """What a recipe would do.

    Attributes:
        parameters: per part, the total last.
        images: training images, and where the number comes from.
        stages: steps and times; empty when the number of images is not known.
        weights_bytes: of weights, gradients and optimiser.
        step_bytes: counted: what pixels, activations and gradients of a whole backward pass take on one device.
        peak_bytes: most memory in use during a timed step of `timed_images` images; None when nothing was timed.
        timed_images: images of that step.
        notes: what could not be told, and why.
    """

    parameters: tuple[ParameterCount, ...]
    images: tuple[int, str] | None
    stages: tuple[StagePlan, ...]
    weights_bytes: int
    step_bytes: int
    peak_bytes: int | None
    timed_images: int
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Time of all stages together; None when it is not known."""
        if not self.stages or any(stage.seconds_per_step is None for stage in self.stages):
            return None
        return sum(stage.steps * (stage.seconds_per_step or 0.0) for stage in self.stages)


def dry_run(recipe: Recipe, device: torch.device, out: Path | None = None) -> DryRun:
    """Look at a recipe without training: reads what is there, downloads and writes nothing.

    Towers whose weights are not on this machine are counted by their preset's sizes; towers that the run would
    pretrain have random weights here, of the same sizes.

    Raises:
        InputError: when the recipe is not consistent, or its data are there and cannot be used.
    """
    check_engine(recipe.engine)
    notes: list[str] = []
    model, real = _model(recipe, notes)
    if recipe.train.tune_towers:
        model.unfreeze_towers()
    images = _count_images(recipe, out, notes)
    schedule = None if images is None else make_schedule(recipe.train, images[0], world_size(recipe.engine))
    seconds: list[float | None] = [None] * len(recipe.train.stages)
    peak = None
    if real:
        seconds, peak = _time_stages(recipe, model.to(device), device)
    elif images is not None:
        notes.append("nothing was timed, because the towers' weights are not here")
    stages = () if schedule is None else tuple(_plans(recipe, schedule, seconds))
    counts = count_parameters(model)
    total = counts[-1]
    return DryRun(
        parameters=tuple(counts),
        images=images,
        stages=stages,
        weights_bytes=total.trainable * BYTES_PER_TRAINABLE + total.frozen * 4,
        step_bytes=_step_bytes(recipe, model),
        peak_bytes=peak,
        timed_images=min(TIMED_IMAGES, recipe.train.images_per_step),
        notes=tuple(notes),
    )


def _model(recipe: Recipe, notes: list[str]) -> tuple[PromptRIS, bool]:
    """The model, and whether it has memory for its weights."""
    towers = recipe.towers
    if towers.clip is None or towers.sam is None:
        steps = [
            f"{name} {config.steps:,} steps"
            for name, source, config in (
                ("CLIP", towers.clip, towers.clip_pretraining),
                ("SAM", towers.sam, towers.sam_pretraining),
            )
            if source is None
        ]
        notes.append(
            f"before this the run pretrains its small towers ({', '.join(steps)}), which is not timed here"
        )
    if towers.clip is None and towers.sam is None:
        return build_random(towers.preset, recipe.seed, recipe.model), True
    clip, sam = towers.clip, towers.sam
    if clip is not None and sam is not None and _is_here(clip) and _is_here(sam):
        return build_from_sources(clip, sam, recipe.model, recipe.seed), True
    get_preset(towers.preset)
    notes.append(
        f"weights of CLIP and SAM: {clip or 'pretrained by the run'}, {sam or 'pretrained by the run'}; not both are "
        f"on this machine, so sizes are those of the preset {towers.preset}"
    )
    with nullcontext() if recipe.model.decoder.start_from_clip else torch.device("meta"):
        return build_random(towers.preset, recipe.seed, recipe.model), False


def _is_here(source: str) -> bool:
    return Path(source).exists() or builtin_folder(source) is not None


def _count_images(recipe: Recipe, out: Path | None, notes: list[str]) -> tuple[int, str] | None:
    data = recipe.data
    if data.root is None and data.name == "refshapes":
        if out is None or not (out / "data").is_dir():
            return data.generate.train, "to be generated"
        data = replace(data, root=str(out / "data"))
    if data.root is None and (data.name in DEFAULT_SPLIT_BY or data.name == COMBINED):
        return _published_images(recipe, notes)
    training = read_dataset(
        data.name, data.root, data.split_by, splits=[data.train_split], skip_broken=data.skip_broken
    )
    if data.val_share:
        training = training.hold_out(data.val_share, data.train_split, data.val_split)
    training = select_categories(training, data.categories)
    return len(training.by_image(data.train_split)), "found"


def _published_images(recipe: Recipe, notes: list[str]) -> tuple[int, str] | None:
    data = recipe.data
    key = (data.name, data.split_by or DEFAULT_SPLIT_BY.get(data.name, ""))
    counts = PUBLISHED.get(key, {}).get(data.train_split)
    notes.append("no --data.root is given, so the data were not looked at")
    if counts is None or data.categories != "all":
        notes.append(f"how many images {data.name} has is only known once the data are there")
        return None
    return counts[1], "published"


def _plans(recipe: Recipe, schedule: Schedule, seconds: list[float | None]) -> list[StagePlan]:
    starts = (0, *schedule.ends[:-1])
    plans = []
    for number, (stage, start, end) in enumerate(zip(schedule.stages, starts, schedule.ends, strict=True)):
        name = f"{number}: {stage.epochs:g} epochs {'with' if stage.sam else 'without'} SAM"
        plans.append(StagePlan(name, end - start, seconds[number]))
    return plans


def _step_bytes(recipe: Recipe, model: PromptRIS) -> int:
    """Counted on a copy that has sizes only, so for any model and batch on any machine."""
    train, engine = recipe.train, recipe.engine
    clip, sam = model.clip.clip.config, model.sam.sam.config

    def build() -> PromptRIS:
        copy = build_model(CLIPModel(clip), SamModel(sam), model.config, model.tokenizer)
        if not model.towers_are_frozen:
            copy.unfreeze_towers()
        return copy

    return count_step(
        build,
        StepShape(train.images_per_step, train.expressions_per_image),
        sam=any(stage.sam for stage in train.stages),
        cached=engine.embedding_cache is not None,
        recompute=engine.checkpoint_activations,
        precision="32" if engine.precision == "32" else "bf16",
    ).peak_bytes


def _time_stages(recipe: Recipe, model: PromptRIS, device: torch.device) -> tuple[list[float | None], int]:
    """Seconds per step of each stage, and the peak of memory: of steps on noise, forwards and backwards."""
    config = recipe.train
    images = min(TIMED_IMAGES, config.images_per_step)
    schedule = Schedule.from_epochs(config.stages, 1000, config.lr, config.decay_power)
    module = PromptRISTraining(model.train(), config, schedule).to(device)
    timed: dict[bool, float] = {}
    for with_sam in sorted({stage.sam for stage in config.stages}):
        batch = _noise_batch(model, images, config.expressions_per_image, with_sam).to(device)
        for attempt in range(2):  # the first one warms up
            started = time.perf_counter()
            loss = module.training_step(batch, 0)["loss"]
            loss.backward()
            # Reading the value waits for the device.
            loss.item()
            if attempt:
                timed[with_sam] = time.perf_counter() - started
            model.zero_grad(set_to_none=True)
    factor = config.images_per_step / images * config.accumulate
    return [timed[stage.sam] * factor for stage in config.stages], peak_memory()


def _noise_batch(model: PromptRIS, images: int, per_image: int, with_sam: bool) -> TrainingBatch:
    rng = np.random.default_rng(0)
    processor: Processor = model.processor()
    pixels = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(images)]
    count, side = images * per_image, model.sam.mask_size
    texts = ["the thing on the left"] * count
    index = np.repeat(np.arange(images), per_image).tolist()
    return TrainingBatch(
        images=processor.images(pixels, with_sam),
        expressions=processor.expressions(texts, index),
        truth=SegmentationTargets(torch.rand(count, side, side).round(), torch.arange(count)),
        image_ids=tuple(range(images)),
        seeds=tuple(range(images)),
    )
