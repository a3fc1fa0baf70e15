"""The data sets of a run."""

from __future__ import annotations

from pathlib import Path

from promptris.data.catalog import read_dataset
from promptris.data.combined import COMBINED
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, silent
from promptris.data.open_vocabulary import select as select_categories
from promptris.data.pictures import load_record
from promptris.errors import InputError
from promptris.training.config import DataConfig, GeneratedData


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
    used = None if config.val_share else [config.train_split]
    training = read_dataset(
        config.name, root, config.split_by, skip_broken=config.skip_broken, splits=used, notify=notify
    )
    if config.val_share:
        training = training.hold_out(config.val_share, config.train_split, config.val_split)
    val_name = config.val_name or ("refcoco" if config.name == COMBINED else config.name)
    if config.val_share:
        validation = training
    else:
        # Nothing that is evaluated on is ever left out; what else is broken is no matter here.
        split_by = config.split_by if val_name == config.name else None
        validation = read_dataset(val_name, root, split_by, splits=[config.val_split], notify=notify)
    training = select_categories(training, config.categories)
    for dataset, split in ((training, config.train_split), (validation, config.val_split)):
        if not len(dataset.samples(split)):
            raise InputError(f"{dataset.name} has no expression in its split {split!r}")
    check_images(validation, config.val_split)
    _tell_shared_images(training, validation, config, notify)
    return training, validation


def check_images(dataset: ReferDataset, split: str) -> None:
    """Decode every image of a split: a run is not to fail at its end over an image it evaluates on.

    Raises:
        InputError: naming the first one that cannot be read.
    """
    for image_id in dataset.image_ids(split):
        load_record(dataset.images[image_id])


def _tell_shared_images(
    training: ReferDataset, validation: ReferDataset, config: DataConfig, notify: Notify
) -> None:
    shared = set(training.image_ids(config.train_split)) & set(validation.image_ids(config.val_split))
    same = training.root == validation.root
    if shared and same and (training.name, config.train_split) != (validation.name, config.val_split):
        notify(
            f"{len(shared)} images are trained on and evaluated on: scores on {validation.name} "
            f"{config.val_split} are partly those of seen images"
        )


def _generate(wanted: GeneratedData, folder: Path) -> Path:
    from promptris.data.refshapes import WorldOptions
    from promptris.data.refshapes.writer import write_refshapes

    if not (
        folder / "refshapes"
    ).is_dir():  # it appears last; what a killed writer left is cleared by the next
        options = WorldOptions(size=wanted.size, level=wanted.level)
        write_refshapes(folder, {"train": wanted.train, "val": wanted.val}, wanted.seed, options)
    return folder
