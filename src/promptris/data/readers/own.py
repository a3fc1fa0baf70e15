"""Reading a folder of one's own: photos, sentences, and what they mean as COCO annotations or mask pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from promptris.data.columns import Collector, Columns
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, open_or_build, silent
from promptris.data.readers.instances import Instances, read_instances
from promptris.data.readers.own_masks import Header, decode_mask, foreground, read_header
from promptris.data.readers.own_rows import TARGETS, Row, checked_path, has_expressions, inner_path, read_rows
from promptris.data.readers.refer import read_refer
from promptris.data.records import Expression
from promptris.errors import InputError

LAYOUT_HELP = """\
A folder of your own data holds images and one file that says what each sentence means. Either

  masks as pictures      expressions.csv    image,mask,expression,split
                                            photos/desk.jpg,masks/mug.png,the red mug,train
                                            photos/desk.jpg,,the green mug,train          (nothing is meant)
  or COCO annotations    instances.json     images, annotations, categories
                         expressions.jsonl  {"ann_id": 7, "expression": "the red mug", "split": "train"}
                                            {"ann_id": [7, 8], "expression": "both mugs", "split": "train"}
                                            {"ann_id": null, "image": "desk.jpg", "expression": "the dog"}

Both layouts can be written as .csv (columns) or .jsonl (one JSON object per line). Paths are relative to the
folder; images may also be in its images/. Without a split, a sentence is in "train".
"""

ROWS_FILES = ("expressions.jsonl", "expressions.csv")
INSTANCES_FILES = ("instances.json", "annotations.json", "_annotations.coco.json")
DEFAULT_SPLIT = "train"
IMAGES = "images"

_Size = tuple[int, int]


def read_own(
    folder: str | Path,
    *,
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
    if not root.is_dir():
        raise InputError(f"{root} is not a folder")
    rows_file = _named_rows_file(root)
    if rows_file is None and _is_refer_layout(root):
        return _read_refer_layout(root, require_images, skip_broken, notify)
    rows_file = rows_file or _other_rows_file(root)
    if rows_file is None:
        raise InputError(_what_is_missing(root))
    rows = read_rows(rows_file)
    instances_file = _needed_instances_file(root, rows)
    sources = [rows_file, *([instances_file] if instances_file else []), *_pictures(root, rows)]
    columns = open_or_build(
        sources, rows_file.name, lambda: _Builder(root, rows, instances_file).columns(), notify
    )
    dataset = ReferDataset.from_columns(root.absolute().name, "", root, columns, [root, root / IMAGES])
    return dataset.usable(require_images, skip_broken)


def looks_like_own_data(folder: str | Path) -> bool:
    """Whether a path is a folder that `read_own` would try to read: it has rows, or the REFER layout."""
    root = Path(folder)
    if not root.is_dir():
        return False
    named = any((place / name).is_file() for place in _places(root) for name in ROWS_FILES)
    return named or _is_refer_layout(root) or any(has_expressions(path) for path in _other_tables(root))


# ---------------------------------------------------------------------------------------------- which files


def _places(root: Path) -> tuple[Path, Path]:
    return root, root / "annotations"


def _named_rows_file(root: Path) -> Path | None:
    there = [path for place in _places(root) for name in ROWS_FILES if (path := place / name).is_file()]
    return _only(there, root, "files of expressions")


def _other_tables(root: Path) -> list[Path]:
    return [
        path
        for place in _places(root)
        for path in sorted(place.glob("*"))
        if path.suffix.lower() in (".jsonl", ".csv") and path.is_file()
    ]


def _other_rows_file(root: Path) -> Path | None:
    there = [path for path in _other_tables(root) if has_expressions(path)]
    return _only(there, root, "files with expressions")


def _only(paths: list[Path], root: Path, what: str) -> Path | None:
    if len(paths) > 1:
        names = " and ".join(str(path.relative_to(root)) for path in paths)
        raise InputError(f"{root} has several {what}, {names}: keep one of them there")
    return paths[0] if paths else None


def _needed_instances_file(root: Path, rows: Sequence[Row | InputError]) -> Path | None:
    """The COCO file that some row speaks of; None when no row does."""
    named = [row for row in rows if isinstance(row, Row) and {"ann_id", "image_id"} & row.cells.keys()]
    if not named:
        return None
    found = _instances_file(root)
    needing = [row for row in named if row.given("ann_id") or row.given("image_id")]
    if found is None and needing:
        names = ", ".join(INSTANCES_FILES)
        raise InputError(
            f"{needing[0].where} names an annotation or image by its id, but {root} has no COCO file: put one "
            f"there as {names}"
        )
    return found


def _instances_file(root: Path) -> Path | None:
    for name in INSTANCES_FILES:
        for place in _places(root):
            if (place / name).is_file():
                return place / name
    others = [path for place in _places(root) for path in sorted(place.glob("*.json"))]
    coco = others if len(others) == 1 else [path for path in others if _is_coco(path)]
    return _only(coco, root, "COCO files")


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _is_refer_layout(root: Path) -> bool:
    patterns = ("refs(*).p", "refs(*).json", "grefs(*).p", "grefs(*).json")
    refs = [path for pattern in patterns for path in root.glob(pattern)]
    return bool(refs) and (root / "instances.json").is_file()


def _what_is_missing(root: Path) -> str:
    below = sorted(path for path in root.iterdir() if path.is_dir() and _is_refer_layout(path))
    if below:
        return (
            f"{root} is a data root, not a data set: name one of the data sets in it, such as {below[0].name}"
        )
    coco = _instances_file(root)
    if coco is not None and _is_coco(coco):
        return (
            f"{root} has annotations in {coco.name} but no sentences: write expressions.jsonl with lines like "
            '{"ann_id": 7, "expression": "the red mug"}'
        )
    return (
        f"{root} has no expressions.jsonl or expressions.csv with one row per sentence, which names either a "
        "mask (image, mask, expression) or an annotation of a COCO file beside it (ann_id, expression)"
    )


def _read_refer_layout(root: Path, require_images: bool, skip_broken: bool, notify: Notify) -> ReferDataset:
    folder = root.absolute()
    dataset = read_refer(
        folder.parent, folder.name, require_images=False, skip_broken=skip_broken, notify=notify
    )
    folders = (*dataset.folders, folder, folder / IMAGES)
    return replace(dataset, folders=folders).usable(require_images, skip_broken)


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
        self.next_image_id = 1 + max(self.instances.images, default=0)
        self.next_ann_id = 1 + max(self.instances.annotations, default=0)
        self.files: dict[int, Path] = {}
        self.masks: dict[tuple[int, int], bytes] = {}
        self.referents: dict[tuple[Any, ...], _Referent] = {}
        self.meanings: dict[tuple[int, str], tuple[tuple[int, ...], str]] = {}
        self.sentences: dict[int, str] = {}
        self.next_sent_id = 1 + max(self._given_sent_ids(), default=0)
        self.headers: dict[Path, Header | InputError | None] = {}
        self.last_mask: tuple[Path, Image.Image] | None = None

    def columns(self) -> Columns:
        for row in self.rows:
            self.collector.attempt(self._add, row)
        for ref_id, found in enumerate(self.referents.values(), start=1):
            self.collector.referent(
                ref_id,
                found.image_id,
                found.category_id,
                found.split,
                found.expressions,
                {ann_id: self.masks[ann_id, found.image_id] for ann_id in found.ann_ids},
            )
        return self.collector.columns()

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
            sent_id, self.next_sent_id = self.next_sent_id, self.next_sent_id + 1
        self.sentences[sent_id] = row.where
        key = (split, image_id, ann_ids) if ann_ids else (row.where,)
        referent = self.referents.setdefault(key, _Referent(image_id, split, category_id, ann_ids))
        referent.expressions.append(Expression(sent_id, text, kind))

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
        image_id = annotation.get("image_id")
        if row.given("image_id") or row.given("image"):
            image_id = self._image(row, lambda: None)
        elif isinstance(image_id, int):
            self._tell_coco_image(image_id, row.where)
        else:
            raise InputError(f"{self.instances.where}, annotation {ann_ids[0]} has no valid image_id")
        for ann_id in ann_ids:
            if (ann_id, image_id) not in self.masks:
                self.masks[ann_id, image_id] = self.instances.run_lengths(ann_id, image_id, row.where)
        category_id = annotation.get("category_id")
        return image_id, ann_ids, category_id if isinstance(category_id, int) else -1

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
        return self._new_target(key, image_id, counts)

    def _new_target(self, key: tuple[Any, ...], image_id: int, counts: bytes) -> int:
        ann_id = self.own_targets[key] = self.next_ann_id
        self.next_ann_id += 1
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
        file_name = _find(self.root, name)
        if file_name in self.own_images:
            return self.own_images[file_name]
        header = self._header(self.root / file_name)
        size = size_if_missing() if header is None else header.size
        if size is None:
            raise InputError(f"{where}: there is no image {name} in {self.root} or its {IMAGES}/")
        image_id = self.own_images[file_name] = self.next_image_id
        self.next_image_id += 1
        self.collector.image(image_id, file_name, *size)
        self.files[image_id] = self.root / file_name
        return image_id

    def _tell_coco_image(self, image_id: int, where: str) -> None:
        if self.collector.has_image(image_id):
            return
        instances = self.instances
        entry = instances.images.get(image_id)
        if entry is not None:
            owner = f"{instances.where}: the file_name of image {image_id}"
            file_name = _find(self.root, checked_path(str(entry.get("file_name") or ""), owner))
            path = self.files[image_id] = self.root / file_name
            header = self._header(path)
            size = (entry.get("height"), entry.get("width"))
            if header is not None and header.size != size and None not in size:
                raise InputError(
                    f"{path} has {header}, but {instances.where} was made for "
                    f"{size[1]} x {size[0]}; annotate the upright image at its own size"
                )
            instances.images[image_id] = {**entry, "file_name": file_name}
        instances.tell_image(self.collector, image_id, where, check_name=lambda _: True)

    def _size_of_target(self, row: Row, mask: str | None, segmentation: Any) -> _Size | None:
        """The size that a target must have been drawn for, where the image itself is not there to ask."""
        if mask is not None and (header := self._header(self.root / mask)) is not None:
            return header.size
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        is_size = (
            isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
        )
        return (size[0], size[1]) if is_size and size else None

    def _header(self, path: Path) -> Header | None:
        """Size of a picture; None when there is no such file. InputError when it is no picture."""
        if path not in self.headers:
            try:
                self.headers[path] = read_header(path) if path.is_file() else None
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


def _pictures(root: Path, rows: Sequence[Row | InputError]) -> list[Path]:
    """The image and mask files that rows name and that are there, each once."""
    found: dict[Path, None] = {}
    for row in rows:
        for column in ("image", "mask"):
            name = row.cells.get(column) if isinstance(row, Row) else None
            inner = inner_path(name.strip()) if isinstance(name, str) else None
            if inner is not None:
                path = root / (_find(root, inner) if column == "image" else inner)
                if path not in found and path.is_file():
                    found[path] = None
    return list(found)


def _find(root: Path, name: str) -> str:
    """Path of an image relative to the folder: as it is written, or in images/; as written if nowhere."""
    inside = f"{IMAGES}/{name}"
    return inside if not (root / name).is_file() and (root / inside).is_file() else name
