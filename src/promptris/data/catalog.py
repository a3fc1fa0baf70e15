"""Opening any data set by what its user calls it."""

from __future__ import annotations

from pathlib import Path

from promptris.data.combined import COMBINED, combined_training_set
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, silent
from promptris.data.readers.own import looks_like_own_data, read_own
from promptris.data.readers.refer import DEFAULT_SPLIT_BY, read_refer
from promptris.errors import InputError

_TELL_ROOT = "say where it and its images are with --data-root FOLDER (--data.root FOLDER in training)"


def read_dataset(
    name: str,
    data_root: str | Path | None = None,
    split_by: str | None = None,
    *,
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

    Raises:
        InputError: see `read_refer`; also when it cannot be told what `name` means.
    """

    def own(folder: Path) -> ReferDataset:
        return read_own(folder, require_images=require_images, skip_broken=skip_broken, notify=notify)

    def refer(root: Path, folder: str) -> ReferDataset:
        return read_refer(
            root, folder, split_by, require_images=require_images, skip_broken=skip_broken, notify=notify
        )

    if name == COMBINED:
        if data_root is None:
            raise InputError(f"{name} is made of three data sets: {_TELL_ROOT}")
        dataset, report = combined_training_set(
            data_root, require_images=require_images, skip_broken=skip_broken, notify=notify
        )
        for line in report.lines():
            notify(line)
        return dataset
    if data_root is None and name in DEFAULT_SPLIT_BY and not Path(name).is_dir():
        raise InputError(f"no folder is given for {name}: {_TELL_ROOT}")
    folder = Path(name) if data_root is None else Path(data_root) / name
    if name not in DEFAULT_SPLIT_BY and looks_like_own_data(folder):
        return own(folder)
    if data_root is None:
        if not folder.is_dir():
            raise InputError(
                f"{name} is neither a known data set ({', '.join(DEFAULT_SPLIT_BY)}) nor a folder"
            )
        if not any(folder.glob("*refs(*")):
            return own(folder)  # explains what is missing
        return refer(folder.resolve().parent, folder.resolve().name)
    return refer(Path(data_root), name)
