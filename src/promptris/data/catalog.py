"""Opening any data set by what its user calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from promptris.data.combined import COMBINED, combined_training_set
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, silent
from promptris.data.paths import is_folder, with_home
from promptris.data.readers.hub import find_parquet
from promptris.data.readers.own import read_own
from promptris.data.readers.own_layout import looks_like_own_data
from promptris.data.readers.refer import DEFAULT_SPLIT_BY, read_refer, refs_files
from promptris.errors import InputError

_TELL_ROOT = "say where it and its images are with --data-root FOLDER (--data.root FOLDER in training)"


def read_dataset(
    name: str,
    data_root: str | Path | None = None,
    split_by: str | None = None,
    *,
    splits: Sequence[str] | None = None,
    require_images: bool = True,
    skip_broken: bool = False,
    notify: Notify = silent,
) -> ReferDataset:
    """Open a data set.

    Args:
        name: a benchmark below `data_root` (refcoco, refcoco+, refcocog, grefcoco, refshapes), COMBINED, a
            folder below `data_root`, or the path of a folder with the user's own data.
        data_root: folder with the images and the data sets' folders; not needed for a path.
        split_by, require_images, skip_broken, notify: see `read_refer`.
        splits: those that will be used, by default all; see `read_refer`. COMBINED has only "train", and needs
            all splits of the data sets that it is made of.

    Raises:
        InputError: see `read_refer`; also when it cannot be told what `name` means, or it has no partitions
            and yet there is a `split_by`.
    """
    name = name.rstrip("/") or name
    root = None if data_root is None else with_home(data_root)

    def own(folder: Path) -> ReferDataset:
        return read_own(
            folder,
            split_by,
            splits=splits,
            require_images=require_images,
            skip_broken=skip_broken,
            notify=notify,
        )

    def refer(root: Path, folder: str) -> ReferDataset:
        return read_refer(
            root,
            folder,
            split_by,
            splits=splits,
            require_images=require_images,
            skip_broken=skip_broken,
            notify=notify,
        )

    if name == COMBINED:
        if root is None:
            raise InputError(f"{name} is made of three data sets: {_TELL_ROOT}")
        if split_by is not None:
            raise InputError(
                f"{name} has no partition {split_by!r}, as it is made of fixed ones: leave split_by out"
            )
        dataset, report = combined_training_set(
            root, require_images=require_images, skip_broken=skip_broken, notify=notify
        )
        for line in report.lines():
            notify(line)
        return dataset
    if name in DEFAULT_SPLIT_BY:
        if root is not None:
            return refer(root, name)
        if not is_folder(name):
            raise InputError(f"no folder is given for {name}: {_TELL_ROOT}")
    folder = with_home(name) if root is None else root / name
    if root is not None and not is_folder(folder) and is_folder(with_home(name)):
        # A root that is always set, as by the environment, is not meant for a path.
        root, folder = None, with_home(name)
    if name not in DEFAULT_SPLIT_BY and looks_like_own_data(folder):
        return own(folder)
    if root is not None and Path(name).name == name:
        return refer(root, name)
    if not is_folder(folder):
        raise InputError(f"{name!r} is neither a known data set ({', '.join(DEFAULT_SPLIT_BY)}) nor a folder")
    if refs_files(folder) or find_parquet(folder):
        return refer(folder.resolve().parent, folder.resolve().name)
    return own(folder)  # explains what is missing
