"""Reading data sets in the REFER layout: RefCOCO, RefCOCO+, RefCOCOg (G-Ref) and RefShapes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptris.data.restricted_pickle import load_plain_pickle
from promptris.errors import InputError

DEFAULT_SPLIT_BY: dict[str, str] = {
    "refcoco": "unc",
    "refcoco+": "unc",
    "refcocog": "umd",
    "refshapes": "unc",
}
IMAGE_FOLDERS: tuple[str, ...] = ("images", "images/train2014", "images/mscoco/images/train2014", "train2014")


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence; `kind` ("attribute", "location", "relation") where the data set tells it."""

    sent_id: int
    text: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Referent:
    """A described object. The same object has one `ann_id` in all data sets, but a `ref_id` in each."""

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int
    split: str
    expressions: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image file and its size in pixels."""

    image_id: int
    path: Path
    height: int
    width: int


@dataclass(frozen=True)
class ReferDataset:
    """A data set as read: referents by split, images by id, category names by id.

    `root` is the folder that holds the images folder and the annotation folder `name`.
    """

    name: str
    split_by: str
    root: Path
    splits: dict[str, tuple[Referent, ...]]
    images: dict[int, ImageRecord]
    categories: dict[int, str]
    segmentations: dict[int, Any] = field(repr=False)

    def referents(self, split: str) -> tuple[Referent, ...]:
        """The referents of a split; InputError naming the split and those there are."""
        try:
            return self.splits[split]
        except KeyError:
            there = ", ".join(self.splits)
            raise InputError(
                f"{self.name} ({self.split_by}) has no split {split!r}; it has {there}"
            ) from None

    def mask(self, referent: Referent) -> NDArray[np.bool_]:
        """bool [H, W] at the image's own size: the union of the referent's polygons, or its decoded RLE.

        InputError naming the annotation if its segmentation is damaged.
        """
        # Imported here: the masks module brings torch and pycocotools, which reading does not need.
        from promptris.ops.masks import segmentation_to_mask

        image = self.images[referent.image_id]
        try:
            return segmentation_to_mask(self.segmentations[referent.ann_id], image.height, image.width)
        except InputError as error:
            raise InputError(f"{self.name}, annotation {referent.ann_id}: {error}") from error

    def samples(self, split: str) -> list[tuple[Referent, Expression]]:
        """Every (referent, sentence) pair of a split once; InputError if there is no such split."""
        return [
            (referent, expression)
            for referent in self.referents(split)
            for expression in referent.expressions
        ]


def read_refer(
    data_root: str | Path, name: str, split_by: str | None = None, *, require_images: bool = True
) -> ReferDataset:
    """Read `data_root/name/refs(split_by).p` and `data_root/name/instances.json`.

    name: refcoco, refcoco+, refcocog or refshapes, or another folder in the same layout. split_by defaults to
    unc, unc, umd and unc; for other folders to the only one there is. Image files are looked for by their
    COCO names in images/, images/train2014/, images/mscoco/images/train2014/ and train2014/ below data_root.
    With require_images=False a missing image file is no error; its record has the path where it should be.

    InputError, naming what is wrong, if a folder or file is missing or damaged, the refs file is no pickle of
    plain data, or a referent lacks its annotation or image.
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
    split_by, refs_file = _refs_file(folder, name, split_by)
    instances = _read_json(folder / "instances.json")
    tags = _read_json(folder / "tags.json") if (folder / "tags.json").is_file() else {}
    refs = load_plain_pickle(refs_file)
    if not isinstance(refs, list):
        raise InputError(f"{refs_file} does not hold a list of referents")

    where = folder / "instances.json"
    annotations = _by_id(instances, "annotations", where)
    image_entries = _by_id(instances, "images", where)
    categories = {
        key: str(entry.get("name")) for key, entry in _by_id(instances, "categories", where).items()
    }
    splits: dict[str, list[Referent]] = {}
    segmentations: dict[int, Any] = {}
    used_images: dict[int, None] = {}
    for entry in refs:
        referent = _referent(entry, tags, refs_file)
        annotation = annotations.get(referent.ann_id)
        owner = f"referent {referent.ref_id} in {refs_file}"
        if annotation is None or "segmentation" not in annotation:
            raise InputError(f"{owner} has annotation {referent.ann_id}, which {where} does not hold")
        if referent.image_id not in image_entries:
            raise InputError(f"{owner} has image {referent.image_id}, which {where} does not hold")
        if annotation.get("image_id") != referent.image_id:
            raise InputError(
                f"{owner} is on image {referent.image_id}, but its annotation {referent.ann_id} on image "
                f"{annotation.get('image_id')}"
            )
        segmentations[referent.ann_id] = annotation["segmentation"]
        used_images[referent.image_id] = None
        splits.setdefault(referent.split, []).append(referent)
    images = _image_records(root, name, [image_entries[key] for key in used_images], where, require_images)
    return ReferDataset(
        name=name,
        split_by=split_by,
        root=root,
        splits={split: tuple(items) for split, items in splits.items()},
        images=images,
        categories=categories,
        segmentations=segmentations,
    )


def _refs_file(folder: Path, name: str, split_by: str | None) -> tuple[str, Path]:
    there = sorted(path.name[len("refs(") : -len(").p")] for path in folder.glob("refs(*).p"))
    if not there:
        raise InputError(f"{folder} has no refs(...).p file; put the annotation files of {name} there")
    if split_by is None:
        split_by = DEFAULT_SPLIT_BY.get(name) or (there[0] if len(there) == 1 else None)
    if split_by not in there:
        wanted = "needs a split_by" if split_by is None else f"has no split_by {split_by!r}"
        raise InputError(f"{name} in {folder} {wanted}; there is {', '.join(there)}")
    return split_by, folder / f"refs({split_by}).p"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return content


def _by_id(instances: dict[str, Any], key: str, where: Path) -> dict[int, dict[str, Any]]:
    entries = instances.get(key)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), int) for entry in entries
    ):
        raise InputError(f"{where} has no list of {key!r} with ids, so it is not in COCO format")
    return {entry["id"]: entry for entry in entries}


def _referent(entry: Any, tags: dict[str, Any], where: Path) -> Referent:
    try:
        expressions = tuple(_expression(sentence, tags) for sentence in entry["sentences"])
        return Referent(
            ref_id=int(entry["ref_id"]),
            ann_id=int(entry["ann_id"]),
            image_id=int(entry["image_id"]),
            category_id=int(entry["category_id"]),
            split=str(entry["split"]),
            expressions=expressions,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        label = entry.get("ref_id", "without a ref_id") if isinstance(entry, dict) else f"{entry!r:.40}"
        raise InputError(
            f"{where}: referent {label} lacks or spoils a field ({type(error).__name__}: {error})"
        ) from error


def _expression(sentence: dict[str, Any], tags: dict[str, Any]) -> Expression:
    sent_id = int(sentence["sent_id"])
    # A few sentences of the benchmarks are empty after cleaning; they count, so they stay.
    text = sentence.get("sent") or sentence.get("raw") or ""
    if not isinstance(text, str):
        raise TypeError(f"sentence {sent_id} is no text")
    tag = tags.get(str(sent_id))
    kind = tag.get("kind") if isinstance(tag, dict) else None
    return Expression(sent_id, text, kind)


def _image_records(
    root: Path, name: str, entries: Iterable[dict[str, Any]], where: Path, require: bool
) -> dict[int, ImageRecord]:
    folders = [root / folder for folder in IMAGE_FOLDERS if (root / folder).is_dir()]
    records: dict[int, ImageRecord] = {}
    missing: list[str] = []
    for entry in entries:
        image_id, file_name = entry["id"], entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        plain = isinstance(file_name, str) and file_name not in ("", "..") and "\\" not in file_name
        plain = plain and PurePosixPath(str(file_name)).name == file_name
        if not plain:
            raise InputError(
                f"{where}: image {image_id} has file_name {file_name!r}, which is not a plain file name"
            )
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise InputError(f"{where}: image {image_id} has no valid height and width")
        path = next((found for folder in folders if (found := folder / str(file_name)).is_file()), None)
        if path is None:
            missing.append(str(file_name))
            path = (folders[-1] if folders else root / IMAGE_FOLDERS[0]) / str(file_name)
        records[image_id] = ImageRecord(image_id, path, height, width)
    if missing and require:
        searched = ", ".join(IMAGE_FOLDERS)
        raise InputError(
            f"{len(missing)} of {len(records)} image files of {name} are missing, the first is {missing[0]}; "
            f"looked in {searched} below {root}"
        )
    return records
