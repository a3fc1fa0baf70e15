"""Reading the REFER layout: RefCOCO, RefCOCO+, RefCOCOg (G-Ref), RefShapes, and gRefCOCO's variant of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from promptris.data.columns import Collector, Columns, Place
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, open_or_build, silent
from promptris.data.paths import is_file, is_folder, listed
from promptris.data.readers.fields import spoiled, valid_text, whole_number
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
    splits: Sequence[str] | None = None,
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
        splits: those that will be used, by default all: what is broken or missing in others is no error then,
            and they are not to be used; see `ReferDataset.usable`.
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
    if not is_folder(root):
        raise InputError(f"data root {root} is not a folder")
    if not is_folder(folder):
        known = ", ".join(DEFAULT_SPLIT_BY)
        raise InputError(f"data root {root} has no folder {name!r}; known data sets are {known}")
    folders = [root / folder for folder in IMAGE_FOLDERS]
    there = refs_files(folder)
    usual = split_by or DEFAULT_SPLIT_BY.get(name) or next(iter(there), None)
    if usual not in there and (files := find_parquet(folder)):
        return read_hub(
            root,
            name,
            split_by,
            files,
            folders,
            splits=splits,
            require_images=require_images,
            skip_broken=skip_broken,
            notify=notify,
        )
    split_by, refs_file = _refs_file(folder, there, name, split_by)
    instances_file, tags_file = folder / "instances.json", folder / "tags.json"
    sources = [refs_file, instances_file, *([tags_file] if is_file(tags_file) else [])]
    if not is_file(instances_file):
        raise InputError(f"cannot read {instances_file}: there is no such file")
    columns = open_or_build(
        sources, refs_file.stem, lambda: _read_columns(refs_file, instances_file, tags_file), notify
    )
    dataset = ReferDataset.from_columns(name, split_by, root, columns, folders)
    return dataset.usable(require_images, skip_broken, splits)


def refs_files(folder: Path) -> dict[str, Path]:
    """The refs files of a folder by partition; InputError naming it if it cannot be listed."""
    names = {name: _REFS_NAME.fullmatch(name) for name in sorted(entry.name for entry in listed(folder))}
    return {found.group(1): folder / name for name, found in names.items() if found}


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
    tags = read_json(tags_file, dict) if is_file(tags_file) else {}
    collector = Collector()
    collector.categories = instances.categories
    several = refs_file.name.startswith("grefs") or any(map(_has_list_of_annotations, refs))
    reader = _Referents(collector, instances, tags, refs_file, several)
    for entry in refs:
        collector.attempt(reader.add, entry, place=partial(_place, entry))
    return collector.columns()


class _Referents:
    """One referent after the other.

    `several` says that the file may give a list of annotations where there would be one, and that no
    annotation means that there is no target. Elsewhere that is an annotation that got lost.
    """

    def __init__(
        self, collector: Collector, instances: Instances, tags: dict[str, Any], where: Path, several: bool
    ) -> None:
        self._collector, self._instances, self._tags = collector, instances, tags
        self._where, self._several = where, several
        self._seen: set[int] = set()

    def add(self, entry: Any) -> None:
        try:
            ref_id, image_id = (whole_number(entry[name], name) for name in ("ref_id", "image_id"))
            split = valid_text(entry["split"], "split")
            given = _as_list(entry["ann_id"])
            ann_ids = [whole_number(ann_id, "ann_id") for ann_id in given if ann_id is not None]
            targets = [ann_id for ann_id in ann_ids if ann_id != NO_TARGET]
            category_id = next(iter(_as_list(entry["category_id"])), -1)
            category_id = whole_number(category_id, "category_id") if targets else -1
            expressions = [self._expression(sentence) for sentence in entry["sentences"]]
        except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
            raise spoiled(f"{self._where}: referent {_label(entry)}", error) from error
        owner = f"referent {ref_id} in {self._where}"
        if ref_id in self._seen:
            raise InputError(f"{owner} is there twice")
        self._seen.add(ref_id)
        if not ann_ids and not self._several:
            raise InputError(f"{owner} has no annotation, which only grefs(...) files may leave out")
        self._instances.tell_image(self._collector, image_id, owner)
        masks = {ann_id: self._instances.run_lengths(ann_id, image_id, owner) for ann_id in targets}
        self._collector.referent(ref_id, image_id, category_id, split, expressions, masks)

    def _expression(self, sentence: dict[str, Any]) -> Expression:
        sent_id = whole_number(sentence["sent_id"], "sent_id")
        # A few sentences of the benchmarks are empty after cleaning; they count, so they stay.
        text = valid_text(sentence.get("sent") or sentence.get("raw") or "", f"sentence {sent_id}")
        tag = self._tags.get(str(sent_id))
        kind = tag.get("kind") if isinstance(tag, dict) else None
        return Expression(sent_id, text, None if kind is None else valid_text(kind, f"kind of {sent_id}"))


def _label(entry: Any) -> str:
    ref_id = entry.get("ref_id") if isinstance(entry, dict) else entry
    try:
        return str(whole_number(ref_id, "ref_id"))
    except InputError:
        return "without a ref_id"


def _place(entry: Any) -> Place:
    split, image_id = (entry.get("split"), entry.get("image_id")) if isinstance(entry, dict) else (None, None)
    try:
        known = whole_number(image_id, "image_id")
    except InputError:
        known = None
    return split if isinstance(split, str) else None, known


def _has_list_of_annotations(entry: Any) -> bool:
    given = entry.get("ann_id") if isinstance(entry, dict) else None
    return isinstance(given, list) and any(ann_id is not None for ann_id in given)


def _as_list(value: Any) -> list[Any]:
    """gRefCOCO gives lists where the others give one number."""
    return value if isinstance(value, list) else [value]
