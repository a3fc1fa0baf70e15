"""Training as data: stages, optimiser, and the recipe that names everything a run needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from promptris.config import PromptRISConfig
from promptris.training.pretraining import PretrainingConfig


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
        images_per_step: I, per process.
        expressions_per_image: b.
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
        workers: processes that prepare batches.
        checkpoint_seconds: time between checkpoints.
    """

    images_per_step: int = 16
    expressions_per_image: int = 4
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
    workers: int = 0
    checkpoint_seconds: float = 120.0


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
        save_full: write the frozen towers into the model folder too.
    """

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    model: PromptRISConfig = field(default_factory=PromptRISConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    save_full: bool = False
