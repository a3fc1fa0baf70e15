"""Reading the REFER layout: RefCOCO, RefCOCO+, RefCOCOg (G-Ref), RefShapes, and gRefCOCO's variant of it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from promptris.data.columns import Collector, Columns
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, open_or_build, silent
from promptris.data.readers.hub import find_parquet, read_hub
from promptris.data.readers.instances import Instances, read_instances, read_json
from promptris.data.readers.restricted_pickle import load_plain_pickle
from promptris.data.records import NO_TARGET, Expression
from promptris.errors import InputError

DEFAULT_SPLIT_BY: dict[str, str] = {
    "refcoco": "unc",
    "refcoco+": "unc",
    "refcocog": "umd",
    "grefcoco": "unc",
    "refshapes": "unc",
}
IMAGE_FOLDERS: tuple[str, ...] = ("images", "images/train2014", "images/mscoco/images/train2014", "train2014")
_REFS_NAME = re.compile(r"g?refs\((.+)\)\.(?:p|json)")


def read_refer(
    data_root: str | Path,
    name: str,
    split_by: str | None = None,
    *,
    require_images: bool = True,
    skip_broken: bool = False,
    notify: Notify = silent,
) -> ReferDataset:
    """Read `data_root/name/refs(split_by).p` and `data_root/name/instances.json`, or a hub copy in parquet.

    Large annotation files are indexed on the way, so that the next reading takes a fraction of a second.

    Args:
        data_root: folder that holds the images and the data sets.
        name: refcoco, refcoco+, refcocog, grefcoco or refshapes, or another folder in the same layout.
        split_by: partition; by default unc, umd for refcocog, and for other folders the only one there is.
        require_images: whether a missing image file is an error. Images are looked for by their COCO names in
            images/, images/train2014/, images/mscoco/images/train2014/ and train2014/ below data_root. When
            False, the record of a missing image has the path where it should be.
        skip_broken: leave out referents that cannot be used, and list why in the result's `broken`.
        notify: told when an index is built.

    Raises:
        InputError: naming what is wrong, when a folder or file is missing or damaged, the refs file is no
            pickle of plain data, or, without skip_broken, a referent cannot be used.
    """
    root = Path(data_root)
    folder = root / name
    if not name or PurePosixPath(name).name != name:
        raise InputError(f"data set name {name!r} is not the name of a folder below {root}")
    if not root.is_dir():
        raise InputError(f"data root {root} is not a folder")
    if not folder.is_dir():
        known = ", ".join(DEFAULT_SPLIT_BY)
        raise InputError(f"data root {root} has no folder {name!r}; known data sets are {known}")
    folders = [root / folder for folder in IMAGE_FOLDERS]
    there = _refs_files(folder)
    usual = split_by or DEFAULT_SPLIT_BY.get(name) or next(iter(there), None)
    if usual not in there and (files := find_parquet(folder)):
        return read_hub(
            root,
            name,
            split_by,
            files,
            folders,
            require_images=require_images,
            skip_broken=skip_broken,
            notify=notify,
        )
    split_by, refs_file = _refs_file(folder, there, name, split_by)
    instances_file, tags_file = folder / "instances.json", folder / "tags.json"
    sources = [refs_file, instances_file, *([tags_file] if tags_file.is_file() else [])]
    if not instances_file.is_file():
        raise InputError(f"cannot read {instances_file}: there is no such file")
    columns = open_or_build(
        sources, refs_file.stem, lambda: _read_columns(refs_file, instances_file, tags_file), notify
    )
    dataset = ReferDataset.from_columns(name, split_by, root, columns, folders)
    return dataset.usable(require_images, skip_broken)


def _refs_files(folder: Path) -> dict[str, Path]:
    """The refs files of a folder by partition."""
    names = {path: _REFS_NAME.fullmatch(path.name) for path in sorted(folder.iterdir())}
    return {found.group(1): path for path, found in names.items() if found}


def _refs_file(folder: Path, there: dict[str, Path], name: str, split_by: str | None) -> tuple[str, Path]:
    if not there:
        raise InputError(f"{folder} has no refs(...).p file; put the annotation files of {name} there")
    if split_by is None:
        split_by = DEFAULT_SPLIT_BY.get(name) or (next(iter(there)) if len(there) == 1 else None)
    if split_by is None or split_by not in there:
        wanted = "needs a split_by" if split_by is None else f"has no split_by {split_by!r}"
        raise InputError(f"{name} in {folder} {wanted}; there is {', '.join(there)}")
    return split_by, there[split_by]


def _read_columns(refs_file: Path, instances_file: Path, tags_file: Path) -> Columns:
    refs = load_plain_pickle(refs_file) if refs_file.suffix == ".p" else read_json(refs_file, list)
    if not isinstance(refs, list):
        raise InputError(f"{refs_file} does not hold a list of referents")
    instances = read_instances(instances_file)
    tags = read_json(tags_file, dict) if tags_file.is_file() else {}
    collector = Collector()
    collector.categories = instances.categories
    for entry in refs:
        worked = collector.attempt(_add, collector, entry, instances, tags, refs_file)
        if not worked and isinstance(entry, dict):
            split, image_id = entry.get("split"), entry.get("image_id")
            if isinstance(split, str) and isinstance(image_id, int):
                collector.leave_out(split, image_id)
    return collector.columns()


def _add(
    collector: Collector, entry: Any, instances: Instances, tags: dict[str, Any], refs_file: Path
) -> None:
    try:
        ref_id, image_id, split = int(entry["ref_id"]), int(entry["image_id"]), _as_text(entry["split"])
        ann_ids = [int(a) for a in _as_list(entry["ann_id"]) if a is not None and int(a) != NO_TARGET]
        category_id = int(next(iter(_as_list(entry["category_id"])), -1))
        expressions = [_expression(sentence, tags) for sentence in entry["sentences"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        label = entry.get("ref_id") if isinstance(entry, dict) else entry
        # Only numbers are shown: a pickle can hold a value whose text has no end in practice.
        label = label if isinstance(label, int) else "without a ref_id"
        raise InputError(
            f"{refs_file}: referent {label} lacks or spoils a field ({type(error).__name__}: {error})"
        ) from error
    owner = f"referent {ref_id} in {refs_file}"
    instances.tell_image(collector, image_id, owner)
    run_lengths = {ann_id: instances.run_lengths(ann_id, image_id, owner) for ann_id in ann_ids}
    collector.referent(ref_id, image_id, category_id if ann_ids else -1, split, expressions, run_lengths)


def _as_list(value: Any) -> list[Any]:
    """gRefCOCO gives lists where the others give one number."""
    return value if isinstance(value, list) else [value]


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} is no text")
    return value


def _expression(sentence: dict[str, Any], tags: dict[str, Any]) -> Expression:
    sent_id = int(sentence["sent_id"])
    # A few sentences of the benchmarks are empty after cleaning; they count, so they stay.
    text = sentence.get("sent") or sentence.get("raw") or ""
    if not isinstance(text, str):
        raise TypeError(f"sentence {sent_id} is no text")
    tag = tags.get(str(sent_id))
    kind = tag.get("kind") if isinstance(tag, dict) else None
    return Expression(sent_id, text, kind)
