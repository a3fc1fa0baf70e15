"""Reading a folder of one's own: photos, sentences, and what they mean as COCO annotations or mask pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from promptris.data.columns import Collector, Columns, Place
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, open_or_build, silent
from promptris.data.paths import is_file, is_folder
from promptris.data.readers.fields import whole_number
from promptris.data.readers.instances import Instances, no_pixel, read_instances
from promptris.data.readers.own_layout import (
    IMAGES,
    UnknownLayoutError,
    image_path,
    is_refer_layout,
    named_rows_file,
    needed_instances_file,
    other_rows_file,
    picture_files,
    what_is_missing,
)
from promptris.data.readers.own_masks import Header, decode_mask, foreground, read_header
from promptris.data.readers.own_rows import TARGETS, Row, checked_path, inner_path, read_rows
from promptris.data.readers.refer import read_refer
from promptris.data.records import Expression
from promptris.errors import InputError
from promptris.images import MAX_PIXELS

DEFAULT_SPLIT = "train"

_Size = tuple[int, int]


def read_own(
    folder: str | Path,
    split_by: str | None = None,
    *,
    splits: Sequence[str] | None = None,
    require_images: bool = True,
    skip_broken: bool = False,
    notify: Notify = silent,
) -> ReferDataset:
    """Read a folder of the user's own data; docs/own-data.md shows the layouts.

    Args:
        folder: holds the sentences (expressions.jsonl or expressions.csv, or the only other file of these
            types with such rows; also below annotations/), with their targets as annotations of a COCO file,
            as mask pictures or as COCO segmentations, and the images, in it or in its images/. A folder with
            refs(X).p and instances.json is read by `read_refer`.
        split_by: which refs(X).p, where there are several. Sentences of one's own have one partition, and so no
            name for it.
        splits: those that will be used, by default all; see `read_refer`.
        require_images: whether a missing image file is an error. Where only the image could tell the size of
            a mask, it is needed in any case.
        skip_broken: leave out rows that cannot be used, and list why in the result's `broken`.
        notify: told when an index is built.

    Sentences about the same target in one split are one referent; each sentence with no target is one by
    itself. Referents, and where the data gives no numbers also images, targets and sentences, are numbered
    from 1 in the order of the rows. A category is known only from COCO annotations; elsewhere its id is -1.

    Raises:
        InputError: the folder has none of the layouts or a file cannot be read at all; without skip_broken,
            also when a row is broken, naming file and line.
    """
    root = Path(folder)
    if not is_folder(root):
        raise InputError(f"{root} is not a folder")
    rows_file = named_rows_file(root)
    if rows_file is None and is_refer_layout(root):
        return _read_refer_layout(root, split_by, splits, require_images, skip_broken, notify)
    rows_file = rows_file or other_rows_file(root)
    if rows_file is None:
        raise UnknownLayoutError(what_is_missing(root))
    if split_by is not None:
        raise InputError(
            f"{rows_file} has only one partition, and none called {split_by!r}: leave split_by out"
        )
    rows = read_rows(rows_file)
    instances_file = needed_instances_file(root, rows)
    sources = [rows_file, *([instances_file] if instances_file else []), *picture_files(root, rows)]
    columns = open_or_build(
        sources, rows_file.name, lambda: _Builder(root, rows, instances_file).columns(), notify
    )
    dataset = ReferDataset.from_columns(root.absolute().name, "", root, columns, [root, root / IMAGES])
    return dataset.usable(require_images, skip_broken, splits)


def _read_refer_layout(
    root: Path,
    split_by: str | None,
    splits: Sequence[str] | None,
    require_images: bool,
    skip_broken: bool,
    notify: Notify,
) -> ReferDataset:
    folder = root.absolute()
    dataset = read_refer(
        folder.parent,
        folder.name,
        split_by,
        splits=splits,
        require_images=False,  # not yet: they may be beside the annotations too
        skip_broken=skip_broken,
        notify=notify,
    )
    folders = (*dataset.folders, folder, folder / IMAGES)
    return replace(dataset, folders=folders).usable(require_images, skip_broken, splits)


# ----------------------------------------------------------------------------------------------------- build


@dataclass
class _Referent:
    image_id: int
    split: str
    category_id: int
    ann_ids: tuple[int, ...]
    expressions: list[Expression] = field(default_factory=list)


class _Builder:
    """Makes columns out of rows; a broken row is left out and noted."""

    def __init__(
        self, root: Path, rows: Sequence[Row | InputError], instances_file: Path | None = None
    ) -> None:
        self.root, self.rows = root, rows
        self.collector = Collector()
        self.has_coco = instances_file is not None
        self.instances = read_instances(instances_file) if instances_file else Instances(root, {}, {}, {})
        self.collector.categories = self.instances.categories
        self.coco_images: dict[str, int] = {}  # by the path that the COCO file gives
        for image_id, entry in self.instances.images.items():
            self.coco_images.setdefault(inner_path(str(entry.get("file_name"))) or "", image_id)
        self.own_images: dict[str, int] = {}
        self.own_targets: dict[tuple[Any, ...], int] = {}
        self.image_ids = _free_numbers(self.instances.images)
        self.ann_ids = _free_numbers(self.instances.annotations)
        self.files: dict[int, Path] = {}
        self.masks: dict[tuple[int, int], bytes] = {}
        self.referents: dict[tuple[Any, ...], _Referent] = {}
        self.meanings: dict[tuple[int, str], tuple[tuple[int, ...], str]] = {}
        self.sentences: dict[int, str] = {}
        self.sent_ids = _free_numbers(set(self._given_sent_ids()))
        self.headers: dict[Path, Header | InputError | None] = {}
        self.last_mask: tuple[Path, Image.Image] | None = None
        self.unsettled = False

    def columns(self) -> Columns:
        for row in self.rows:
            self.collector.attempt(self._add, row, place=partial(self._place, row))
        for ref_id, found in enumerate(self.referents.values(), start=1):
            self.collector.referent(
                ref_id,
                found.image_id,
                found.category_id,
                found.split,
                found.expressions,
                {ann_id: self.masks[ann_id, found.image_id] for ann_id in found.ann_ids},
            )
        columns = self.collector.columns()
        return replace(columns, facts={**columns.facts, "unsettled": self.unsettled})

    def _add(self, row: Row | InputError) -> None:
        if isinstance(row, InputError):
            raise row
        text, kind = row.expression(), row.text("kind")
        split = row.text("split") or DEFAULT_SPLIT
        sent_id = row.number("sent_id")
        if sent_id is not None and sent_id in self.sentences:
            raise InputError(f"{row.where} has the sent_id {sent_id} of {self.sentences[sent_id]}")
        image_id, ann_ids, category_id = self._target(row)
        meaning = (image_id, " ".join(text.split()))
        known, before = self.meanings.setdefault(meaning, (ann_ids, row.where))
        if known != ann_ids:
            raise InputError(
                f"{row.where}: {text!r:.60} means something else on the same image in {before}; make the "
                "sentences tell them apart"
            )
        if sent_id is None:
            sent_id = next(self.sent_ids)
        self.sentences[sent_id] = row.where
        key = (split, image_id, ann_ids) if ann_ids else (row.where,)
        referent = self.referents.setdefault(key, _Referent(image_id, split, category_id, ann_ids))
        referent.expressions.append(Expression(sent_id, text, kind))

    @staticmethod
    def _place(row: Row | InputError) -> Place:
        try:
            return None if isinstance(row, InputError) else row.text("split") or DEFAULT_SPLIT, None
        except InputError:
            return None, None

    def _given_sent_ids(self) -> Iterator[int]:
        for row in self.rows:
            try:
                number = row.number("sent_id") if isinstance(row, Row) else None
            except InputError:
                continue  # told when the row is added
            if number is not None:
                yield number

    # ------------------------------------------------------------------------------------------- what is meant

    def _target(self, row: Row) -> tuple[int, tuple[int, ...], int]:
        """Image, annotations and category that a row is about."""
        ann_ids = row.annotations()
        given = [*(["ann_id"] if ann_ids else []), *(c for c in TARGETS[1:] if row.given(c))]
        if len(given) > 1:
            raise InputError(
                f"{row.where} tells its target twice, by {' and '.join(given)}; keep one of them"
            )
        if ann_ids:
            return self._annotated(row, ann_ids)
        segmentation = row.segmentation() if given == ["segmentation"] else None
        mask = row.path("mask") if given == ["mask"] else None
        image_id = self._image(row, lambda: self._size_of_target(row, mask, segmentation))
        if mask is not None:
            value = row.number("value")
            return image_id, (self._mask_target(row, image_id, mask, value),), -1
        if segmentation is not None:
            return image_id, (self._segmented_target(row, image_id, segmentation),), -1
        return image_id, (), -1

    def _annotated(self, row: Row, ann_ids: tuple[int, ...]) -> tuple[int, tuple[int, ...], int]:
        annotation = self.instances.annotations.get(ann_ids[0])
        if annotation is None:
            raise InputError(
                f"{row.where} has annotation {ann_ids[0]}, which {self.instances.where} does not hold"
            )
        where = f"{self.instances.where}, annotation {ann_ids[0]}"
        if row.given("image_id") or row.given("image"):
            image_id = self._image(row, lambda: None)
        else:
            try:
                image_id = whole_number(annotation.get("image_id"), "image_id")
            except InputError as error:
                raise InputError(f"{where} has no valid image_id ({error})") from None
            self._tell_coco_image(image_id, row.where)
        for ann_id in ann_ids:
            if (ann_id, image_id) not in self.masks:
                counts = self.instances.run_lengths(ann_id, image_id, row.where)
                what = f"{self.instances.where}, annotation {ann_id}"
                self.masks[ann_id, image_id] = self._with_pixels(counts, image_id, what)
        category_id = annotation.get("category_id")
        if category_id is None:
            return image_id, ann_ids, -1
        return image_id, ann_ids, whole_number(category_id, f"{where}: category_id")

    def _mask_target(self, row: Row, image_id: int, mask: str, value: int | None) -> int:
        key = (image_id, mask, value)
        if key in self.own_targets:
            return self.own_targets[key]
        # Imported here: it brings torch and pycocotools, which opening from an index does without.
        from promptris.ops.run_lengths import mask_to_rle

        path = self.root / mask
        header = self._header(path)
        if header is None:
            raise InputError(f"{row.where}: there is no mask at {path}")
        size = self.collector.image_size(image_id)
        if header.size != size:
            image = self._header(self.files[image_id]) or Header(size, False)
            raise InputError(
                f"{row.where}: mask {path} has {header}, but its image {image}; draw masks on the upright image "
                "at its own size"
            )
        counts = mask_to_rle(foreground(self._mask_picture(path), value, path))["counts"]
        return self._new_target(key, image_id, counts.encode("ascii"))

    def _segmented_target(self, row: Row, image_id: int, segmentation: Any) -> int:
        key = (image_id, json.dumps(segmentation, sort_keys=True))
        if key in self.own_targets:
            return self.own_targets[key]
        from promptris.ops.run_lengths import segmentation_to_run_lengths

        try:
            counts = segmentation_to_run_lengths(segmentation, *self.collector.image_size(image_id))
        except InputError as error:
            raise InputError(f"{row.where}: {error}") from error
        return self._new_target(key, image_id, self._with_pixels(counts, image_id, row.where))

    def _with_pixels(self, counts: bytes, image_id: int, what: str) -> bytes:
        from promptris.ops.run_lengths import covers_nothing

        size = self.collector.image_size(image_id)
        if covers_nothing(counts, *size):
            raise InputError(no_pixel(what, size))
        return counts

    def _new_target(self, key: tuple[Any, ...], image_id: int, counts: bytes) -> int:
        ann_id = self.own_targets[key] = next(self.ann_ids)
        self.masks[ann_id, image_id] = counts
        return ann_id

    # -------------------------------------------------------------------------------------------------- images

    def _image(self, row: Row, size_if_missing: Callable[[], _Size | None]) -> int:
        """Id of the image that a row names, which the collector then knows."""
        image_id = row.number("image_id")
        if image_id is not None:
            self._tell_coco_image(image_id, row.where)
            return image_id
        name = row.path("image")
        if name is None:
            raise InputError(f'{row.where} has no "image"; give its file name, relative to the folder')
        for spelling in (name, f"{IMAGES}/{name}", name.removeprefix(f"{IMAGES}/")):
            if spelling in self.coco_images:
                self._tell_coco_image(self.coco_images[spelling], row.where)
                return self.coco_images[spelling]
        if self.has_coco and not any(row.given(column) for column in TARGETS[1:]):
            raise InputError(f"{row.where} has image {name!r}, which {self.instances.where} does not hold")
        return self._own_image(name, row.where, size_if_missing)

    def _own_image(self, name: str, where: str, size_if_missing: Callable[[], _Size | None]) -> int:
        file_name = image_path(self.root, name)
        if file_name in self.own_images:
            return self.own_images[file_name]
        header = self._header(self.root / file_name)
        size = size_if_missing() if header is None else header.size
        if size is None:
            raise InputError(f"{where}: there is no image {name} in {self.root} or its {IMAGES}/")
        image_id = self.own_images[file_name] = next(self.image_ids)
        self.collector.image(image_id, file_name, *size)
        self.files[image_id] = self.root / file_name
        return image_id

    def _tell_coco_image(self, image_id: int, where: str) -> None:
        instances = self.instances
        entry = instances.images.get(image_id)
        # An image that only a row names has a number too, by which nobody else means it.
        if entry is None:
            raise InputError(f"{where} has image {image_id}, which {instances.where} does not hold")
        if self.collector.has_image(image_id):
            return
        owner = f"{instances.where}: the file_name of image {image_id}"
        file_name = checked_path(str(entry.get("file_name") or ""), owner)
        self.files[image_id] = self.root / image_path(self.root, file_name)
        self._compare_sizes(self.files[image_id], (entry.get("height"), entry.get("width")))
        # As it is written: where the file lies is asked for each time, because it may come or move later.
        instances.images[image_id] = {**entry, "file_name": file_name}
        instances.tell_image(self.collector, image_id, where, check_name=lambda _: True)

    def _compare_sizes(self, path: Path, size: tuple[Any, Any]) -> None:
        """Check an image of COCO, where it is there, against the (height, width) that it was annotated at."""
        try:
            header = self._header(path)
            if header is not None and header.size != size and None not in size:
                raise InputError(
                    f"{path} has {header}, but {self.instances.where} was made for "
                    f"{size[1]} x {size[0]}; annotate the upright image at its own size"
                )
        except InputError:
            # These images are not among the sources of the index, which would not notice a better one.
            self.unsettled = True
            raise

    def _size_of_target(self, row: Row, mask: str | None, segmentation: Any) -> _Size | None:
        """The size that a target must have been drawn for, where the image itself is not there to ask."""
        if mask is not None and (header := self._header(self.root / mask)) is not None:
            return header.size
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        is_size = (
            isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
        )
        return (size[0], size[1]) if is_size and size and size[0] * size[1] <= MAX_PIXELS else None

    def _header(self, path: Path) -> Header | None:
        """Size of a picture; None when there is no such file. InputError when it is no picture."""
        if path not in self.headers:
            try:
                self.headers[path] = read_header(path) if is_file(path) else None
            except InputError as error:
                self.headers[path] = error
        header = self.headers[path]
        if isinstance(header, InputError):
            raise header
        return header

    def _mask_picture(self, path: Path) -> Image.Image:
        """A decoded mask; the last one is kept, because a label map serves several rows."""
        if self.last_mask is None or self.last_mask[0] != path:
            self.last_mask = (path, decode_mask(path))
        return self.last_mask[1]


def _free_numbers(taken: Collection[int]) -> Iterator[int]:
    """Numbers that are not taken: those after the last one, if there is room for them in 64 bits."""
    last = max(taken, default=0)
    return (number for number in count(1 + last if last < 2**62 else 1) if number not in taken)
