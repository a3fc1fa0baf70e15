"""Training as data: stages, optimiser, and the recipe that names everything a run needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from promptris.config import PromptRISConfig


@dataclass
class PretrainingConfig:
    """Optimisation of one tower.

    Attributes:
        steps: optimiser steps.
        scenes: scenes per step.
        lr: highest learning rate.
        final_lr: learning rate at the end of the cosine.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW.
        gate_scenes: held-out scenes on which the result is measured.
        levels: difficulties of the scenes, taken in turn.
    """

    steps: int = 1500
    scenes: int = 24
    lr: float = 1.5e-3
    final_lr: float = 2e-5
    warmup: int = 100
    weight_decay: float = 0.02
    gate_scenes: int = 200
    levels: tuple[str, ...] = ("standard",)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from `lr` to `final_lr`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.final_lr + (self.lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass
class Stage:
    """A stretch of training.

    Attributes:
        epochs: passes over the training images; may be a fraction.
        sam: run SAM and train its prompts; without it only the coarse losses are used.
        lr: learning rate at the start of the stage, which then has a decay of its own; None goes on with
            the decay of the whole run.
    """

    epochs: float = 1.0
    sam: bool = True
    lr: float | None = None


@dataclass
class TrainConfig:
    """Optimisation (SPEC: the paper's schedule is the default).

    Attributes:
        images_per_step: I, per process and backward pass.
        expressions_per_image: b.
        accumulate: backward passes per step of the optimiser.
        stages: one after the other.
        lr: learning rate at the start.
        warmup: steps over which the learning rate rises from 0 at the start of the run.
        decay_power: of the polynomial decay.
        weight_decay: of AdamW, on matrices.
        gradient_clip: largest norm of the gradient; 0 leaves it alone.
        word_deletion: chance of each word of a repeated expression to be left out.
        prompt_dropout: chance of each SAM prompt to be left out, per sample; at least one stays.
        icl_weight: weight of instance contrastive learning.
        icl_ramp: share of the run over which that weight grows from 0.
        validate_every: epochs between evaluations on the validation split; 0 evaluates at the end only.
        bad_steps: steps with a loss that is no number that are left out before the run stops.
        tune_towers: train CLIP and SAM too: an upper bound to compare with, not the paper's method.
        towers_lr: their learning rate then, as a share of `lr`.
    """

    images_per_step: int = 16
    expressions_per_image: int = 4
    accumulate: int = 1
    stages: tuple[Stage, ...] = (Stage(20, sam=False), Stage(30, sam=True))
    lr: float = 1e-4
    warmup: int = 0
    decay_power: float = 0.9
    weight_decay: float = 0.01
    gradient_clip: float = 0.0
    word_deletion: float = 0.15
    prompt_dropout: float = 0.2
    icl_weight: float = 1.0
    icl_ramp: float = 0.0
    validate_every: float = 0.0
    bad_steps: int = 3
    tune_towers: bool = False
    towers_lr: float = 0.1


@dataclass
class EngineConfig:
    """What a run is computed on and how; a resumed run may change it.

    Attributes:
        devices: processes per machine, each with a GPU of its own or a share of the CPU; -1 takes all GPUs.
        nodes: machines.
        strategy: auto, ddp or fsdp.
        precision: 32, bf16 or fp16 (mixed: weights stay float32).
        checkpoint_activations: compute the frozen towers twice instead of keeping what is inside them.
        compile: let torch compile SAM's image encoder.
        onednn: on a CPU, linear layers by oneDNN in place of torch's own.
        workers: processes per device that prepare batches.
        embedding_cache: folder for SAM's image embeddings, which are then computed once; None computes them in
            every step.
        checkpoint_seconds: time between checkpoints.
        keep_last: how many checkpoints are kept beside the best one.
        log: where curves and pictures go: tensorboard, wandb, mlflow, trackio; metrics.csv is always written.
    """

    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32"
    checkpoint_activations: bool = False
    compile: bool = False
    onednn: bool = True
    workers: int = 0
    embedding_cache: str | None = None
    checkpoint_seconds: float = 120.0
    keep_last: int = 2
    log: tuple[str, ...] = ("tensorboard",)


@dataclass
class GeneratedData:
    """RefShapes scenes made for this run.

    Attributes:
        train: scenes of the training split.
        val: scenes of the validation split.
        seed: of the world.
        size: side of the scenes, in pixels.
        level: "easy", "standard" or "hard".
    """

    train: int = 2000
    val: int = 100
    seed: int = 0
    size: int = 128
    level: str = "standard"


@dataclass
class DataConfig:
    """Where the data comes from.

    Attributes:
        name: refcoco, refcoco+, refcocog, grefcoco, refshapes, refcoco-combined (the paper's training set), or
            the path of a folder with your own data.
        root: folder that holds the data set and its images; None generates RefShapes below the run's folder.
        split_by: partition of the data set; None takes its usual one.
        train_split: split to train on.
        categories: referents to train on: all, or only those of seen categories (Table 2).
        val_name: data set to evaluate on at the end; None takes the one that is trained on, and refcoco for
            refcoco-combined, which has nothing else.
        val_split: split to evaluate on.
        val_share: share of the training images that is held out as the split "val", where there is none.
        skip_broken: train without the items that cannot be used, which are listed, instead of stopping.
        generate: what to generate when `root` is None.
    """

    name: str = "refshapes"
    root: str | None = None
    split_by: str | None = None
    train_split: str = "train"
    categories: str = "all"
    val_name: str | None = None
    val_split: str = "val"
    val_share: float = 0.0
    skip_broken: bool = False
    generate: GeneratedData = field(default_factory=GeneratedData)


@dataclass
class TowersConfig:
    """The frozen towers: pretrained weights, or small towers pretrained on RefShapes as part of the run.

    Attributes:
        clip: folder, hub id or original file of CLIP; None pretrains a small one.
        sam: the same for SAM.
        preset: sizes of the small towers.
        clip_pretraining: how the small CLIP is pretrained.
        sam_pretraining: how the small SAM is pretrained.
    """

    clip: str | None = None
    sam: str | None = None
    preset: str = "refshapes"
    clip_pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    sam_pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)


@dataclass
class Recipe:
    """Everything a run needs; saved with it.

    Attributes:
        seed: of everything random.
        data: training and validation data.
        towers: the frozen towers.
        model: the learned parts.
        train: optimisation.
        engine: what it is computed on.
        save_full: write the frozen towers into the model folder too.
    """

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    model: PromptRISConfig = field(default_factory=PromptRISConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    save_full: bool = False
