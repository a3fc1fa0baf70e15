"""Reading the RefCOCO family from the parquet copies on the Hugging Face hub, in the two forms there are.

"exact" (jxu124/refcoco, refcocoplus, refcocog) has everything the REFER files have. "polygon"
(lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg) has evaluation splits only, one polygon per object, no annotation
ids and no categories, and the images themselves.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from promptris.data import coco
from promptris.data.columns import Collector, Columns, Place
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, open_or_build, silent
from promptris.data.paths import is_file
from promptris.data.readers.fields import spoiled, valid_text, whole_number
from promptris.data.readers.instances import Instances
from promptris.data.records import Expression
from promptris.errors import InputError, MissingExtraError
from promptris.images import MAX_PIXELS

EXACT, POLYGON = "exact", "polygon"
COLUMNS: dict[str, tuple[str, ...]] = {
    EXACT: (
        "ref_id",
        "ann_id",
        "image_id",
        "category_id",
        "split",
        "sentences",
        "raw_anns",
        "raw_image_info",
    ),
    POLYGON: ("file_name", "answer", "segmentation", "image"),
}
"""The columns that are read of each form."""
PARTITIONS: dict[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Which partition of a data set the exact copies hold."""
MIXED = "mixed"
"""Name for the partition of the polygon copies, whose splits mix those of several."""

_UNKNOWN_CATEGORY = 0  # an id that COCO does not use
_LAYOUTS = ("*.parquet", "data/*.parquet", "*/*/*.parquet")
_SHARD = re.compile(r"(?P<split>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?:-[0-9a-f]+)?")
_COCO_NAME = re.compile(r"(?P<stem>\w+_(?P<image_id>\d{12}))(?:_\d+)?\.\w+", re.ASCII)
_SPLIT_ORDER = ("train", "val", "testA", "test", "testB")  # a file "test" may hold testA
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}

Row = dict[str, Any]


def find_parquet(folder: Path) -> list[Path]:
    """The parquet files of a hub copy: in the folder, in data/, or in one default/SPLIT/ for each split.

    Sorted by split, train first. An empty list when there are none.

    Raises:
        InputError: when a split has a part twice or lacks one, or there are several configurations.
    """
    for layout in _LAYOUTS:
        try:
            found = list(folder.glob(layout))
        except OSError as error:
            raise InputError(f"cannot list the folder {folder}: {error.strerror or error}") from error
        files = [
            path
            for path in found
            if is_file(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        if files:
            break
    else:
        return []
    configurations = sorted({path.relative_to(folder).parts[0] for path in files})
    if layout == _LAYOUTS[-1] and len(configurations) > 1:
        raise InputError(
            f"{folder} has parquet files of several data sets ({', '.join(configurations)}): keep one of them"
        )
    files.sort(key=lambda path: (_rank(_split_of(path)), str(path)))
    _check_shards(files)
    return files


def read_hub(
    root: Path,
    name: str,
    split_by: str | None,
    files: Sequence[Path],
    image_folders: Sequence[Path],
    *,
    splits: Sequence[str] | None = None,
    require_images: bool = True,
    skip_broken: bool = False,
    notify: Notify = silent,
) -> ReferDataset:
    """Read a hub copy as a data set.

    Images that a polygon copy embeds and that are in none of the folders are written to `root/name/images`,
    once, unless require_images is False. `notify` is told that masks of such a copy are not exact.

    Args:
        root, name, split_by, splits, require_images, skip_broken, notify: see `read_refer`.
        files: those of `find_parquet`.
        image_folders: where image files may be.

    Raises:
        InputError: when the copy holds another partition, or a file or referent cannot be used.
        MissingExtraError: without pyarrow, when the files have not been indexed.
    """
    columns = open_or_build(files, "hub", lambda: read_hub_columns(files, image_folders), notify)
    exact = columns.facts["hub"] == EXACT
    partition = PARTITIONS.get(name, "") if exact else MIXED
    if split_by not in (None, partition):
        raise InputError(
            f"the parquet files of {name} in {files[0].parent} have no split_by {split_by!r}; there is "
            f"{partition or 'only one, without a name'}"
        )
    own_images = root / name / "images"
    folders = [*([] if exact else [own_images]), *image_folders]
    dataset = ReferDataset.from_columns(name, partition, root, columns, folders)
    if not exact:
        notify(
            f"{files[0].parent} has one polygon per object and no annotation ids: masks are not exact, and "
            "scores cannot be compared with published ones"
        )
        missing = dataset.missing_images(splits) if require_images else []
        if missing:
            notify(f"writing {len(missing)} images of {name} to {own_images}")
            unpack_images(files, missing, own_images)
            dataset = ReferDataset.from_columns(name, partition, root, columns, folders)
    return dataset.usable(require_images, skip_broken, splits)


def read_hub_columns(files: Sequence[Path], image_folders: Sequence[Path] = ()) -> Columns:
    """The columns of a hub copy, with its form as `facts["hub"]`.

    A polygon copy names neither referents nor annotations: they are numbered from 1 in the order of the files,
    every row being a referent, and rows with the same polygon on the same image being of one annotation.
    Categories are unknown (0). An image is named like COCO's, with the suffix of what is embedded, unless
    `image_folders` have it as COCO's .jpg.

    Raises:
        InputError: naming a file that cannot be read or has other columns.
        MissingExtraError: without pyarrow.
    """
    forms = {form_of(file) for file in files}
    if len(forms) != 1:
        raise InputError(
            f"the parquet files in {files[0].parent} are of different data sets: keep one of them"
        )
    form = forms.pop()
    collector = Collector()
    reader: _ExactReader | _PolygonReader
    reader = _ExactReader(collector) if form == EXACT else _PolygonReader(collector, image_folders)
    for file in files:
        for row in _rows(file, COLUMNS[form], reader.batch_size):
            collector.attempt(reader.add, row, file, place=partial(reader.place, row, file))
    columns = collector.columns()
    return replace(columns, facts={**columns.facts, "hub": form})


def form_of(file: Path) -> str:
    """The form of a parquet file, EXACT or POLYGON; InputError naming its columns if it is neither."""
    names = _open(file, lambda table: set(table.schema_arrow.names))
    for form, needed in COLUMNS.items():
        if names.issuperset(needed):
            return form
    raise InputError(
        f"{file} has the columns {', '.join(sorted(names))}, which are not those of a copy of RefCOCO, "
        "RefCOCO+ or RefCOCOg"
    )


def unpack_images(files: Sequence[Path], names: Collection[str], folder: Path) -> int:
    """Write images that a polygon copy embeds, as they are, and return how many.

    Each appears in the folder whole or not at all; one that is there already is kept.

    Args:
        names: file names as the data set has them.
        folder: where to write; made if it is missing.

    Raises:
        InputError: naming a file that cannot be read or written.
    """
    wanted = {Path(name).stem: name for name in names}
    written = 0
    for file in files:
        for row in _rows(file, ("file_name", "image"), _PolygonReader.batch_size):
            found = _COCO_NAME.fullmatch(str(row["file_name"]))
            target = wanted.get(found["stem"]) if found else None
            if target is None:
                continue
            if not (folder / target).exists():
                try:
                    _header(_embedded(row), file.name)
                except InputError:
                    continue  # a row that was left out; another may have the image
                _write(folder / target, _embedded(row))
                written += 1
            del wanted[Path(target).stem]
            if not wanted:
                return written
    return written


class _ExactReader:
    """One row after the other of a copy that holds all of the REFER fields."""

    batch_size = 1000

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._seen: set[int] = set()
        self._images: dict[int, tuple[Any, ...]] = {}

    def add(self, row: Row, file: Path) -> None:
        try:
            ids = ("ref_id", "ann_id", "image_id", "category_id")
            ref_id, ann_id, image_id, category_id = (whole_number(row[name], name) for name in ids)
            split = _refer_split(row["split"])
            expressions = [_expression(sentence) for sentence in row["sentences"]]
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise spoiled(f"{file}: referent {row['ref_id']}", error) from error
        owner = f"referent {ref_id} in {file}"
        if ref_id in self._seen:
            raise InputError(f"{owner} is there twice")
        self._seen.add(ref_id)
        image = _json_object(row["raw_image_info"], f"raw_image_info of {owner}")
        annotation = _json_object(row["raw_anns"], f"raw_anns of {owner}")
        instances = Instances(
            file,
            {image_id: image} if image.get("id", image_id) == image_id else {},
            {ann_id: annotation} if annotation.get("id", ann_id) == ann_id else {},
            coco.CATEGORIES,
        )
        instances.tell_image(self._collector, image_id, owner)
        facts = tuple(image.get(key) for key in ("file_name", "height", "width"))
        if not instances.images or self._images.setdefault(image_id, facts) != facts:
            raise InputError(f"raw_image_info of {owner} is not what other rows say of image {image_id}")
        masks = {ann_id: instances.run_lengths(ann_id, image_id, owner)}
        self._collector.categories.setdefault(
            category_id, coco.CATEGORIES.get(category_id, f"category {category_id}")
        )
        self._collector.referent(ref_id, image_id, category_id, split, expressions, masks)

    @staticmethod
    def place(row: Row, file: Path) -> Place:
        """Where a row belongs that may be broken."""
        split, image_id = row["split"], row["image_id"]
        return (
            _refer_split(split) if isinstance(split, str) else None,
            image_id if isinstance(image_id, int) else None,
        )


class _PolygonReader:
    """One row after the other of a copy with one polygon per object and the image itself."""

    batch_size = 32  # rows carry whole images

    def __init__(self, collector: Collector, image_folders: Sequence[Path]) -> None:
        self._collector = collector
        self._folders = image_folders
        self._annotations: dict[tuple[int, tuple[float, ...]], int] = {}
        self._rows = 0
        self._sentences = 0

    def add(self, row: Row, file: Path) -> None:
        # Imported here: the masks module brings torch and pycocotools, which only the first reading needs.
        from promptris.ops.run_lengths import segmentation_to_run_lengths

        self._rows += 1
        owner = f"referent {self._rows} ({row['file_name']}) in {file}"
        found = _COCO_NAME.fullmatch(str(row["file_name"]))
        if found is None:
            raise InputError(f"{owner} has a file_name that is not one of COCO")
        texts, polygon = row["answer"], row["segmentation"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{owner} has no list of sentences as its answer")
        image_id = int(found["image_id"])
        if not self._collector.has_image(image_id):
            self._tell_image(image_id, found["stem"], _embedded(row), owner)
        try:
            run_lengths = segmentation_to_run_lengths([polygon], *self._collector.image_size(image_id))
        except InputError as error:
            raise InputError(f"{owner}: {error}") from error
        key = (image_id, tuple(polygon))
        ann_id = self._annotations.setdefault(key, len(self._annotations) + 1)
        expressions = [Expression(self._sentences + k, text) for k, text in enumerate(texts, start=1)]
        self._sentences += len(texts)
        self._collector.referent(
            self._rows, image_id, _UNKNOWN_CATEGORY, _split_of(file), expressions, {ann_id: run_lengths}
        )

    def _tell_image(self, image_id: int, stem: str, content: bytes, owner: str) -> None:
        opened = _header(content, owner)
        if opened.height * opened.width > MAX_PIXELS:
            raise InputError(
                f"{owner} embeds an image of {opened.width} x {opened.height} pixels, more than the "
                f"{MAX_PIXELS:,} that are accepted"
            )
        name = f"{stem}.jpg"
        if not any(is_file(folder / name) for folder in self._folders):
            kind = str(opened.format)
            name = stem + _SUFFIXES.get(kind, f".{kind.lower()}")
        self._collector.image(image_id, name, opened.height, opened.width)

    @staticmethod
    def place(row: Row, file: Path) -> Place:
        """Where a row belongs that may be broken."""
        found = _COCO_NAME.fullmatch(str(row["file_name"]))
        return _split_of(file), int(found["image_id"]) if found else None


def _expression(sentence: Row) -> Expression:
    # Cleaning leaves a few sentences empty; they count, so the raw form stands in.
    sent_id = whole_number(sentence["sent_id"], "sent_id")
    text = sentence["sent"] or sentence["raw"] or ""
    return Expression(sent_id, valid_text(text, f"sentence {sent_id}"))


def _refer_split(split: object) -> str:
    split = valid_text(split, "split")
    return "val" if split == "validation" else split


def _split_of(file: Path) -> str:
    """The split that a file is named after: val-00000-of-00002.parquet, val/0000.parquet or val.parquet."""
    found = _SHARD.fullmatch(file.stem)
    return _refer_split(found["split"] if found else file.parent.name if file.stem.isdigit() else file.stem)


def _rank(split: str) -> tuple[int, str]:
    return (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split)


def _check_shards(files: Sequence[Path]) -> None:
    """Uploads leave old files behind and downloads are cut short: both would change the counts silently."""
    parts: dict[str, dict[int, Path]] = {}
    sizes: dict[str, int] = {}
    for file in files:
        if (found := _SHARD.fullmatch(file.stem)) is None:
            continue
        split, part = found["split"], int(found["part"])
        if sizes.setdefault(split, int(found["parts"])) != int(found["parts"]) or part in parts.get(
            split, {}
        ):
            other = next(iter(parts[split].values()))
            raise InputError(
                f"{file} and {parts[split].get(part, other).name} beside it are two versions of the {split} "
                "split: delete the older one"
            )
        parts.setdefault(split, {})[part] = file
    for split, there in parts.items():
        missing = [part for part in range(sizes[split]) if part not in there]
        if missing:
            raise InputError(
                f"{next(iter(there.values())).parent} lacks part {missing[0]:05d} of the {sizes[split]} parts "
                f"of the {split} split: download it too"
            )


def _json_object(text: object, what: str) -> Row:
    """The object in a JSON text; of a list, the one that it holds."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid JSON ({error})") from error
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise InputError(f"{what} is not the JSON of one object")
    return value


def _embedded(row: Row) -> bytes:
    """The file of the image in a row; nothing where there is none."""
    image = row["image"]
    content = image.get("bytes") if isinstance(image, dict) else None
    return content if isinstance(content, bytes) else b""


def _header(content: bytes, owner: str) -> Image.Image:
    """An embedded image, opened but not decoded."""
    if not content:
        raise InputError(f"{owner} embeds no image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{owner} embeds an image that cannot be read") from error


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the image {path}: {error.strerror or error}") from error


def _rows(file: Path, columns: Sequence[str], batch_size: int) -> Iterator[Row]:
    """The rows of a file, a few at a time."""
    batches = _open(file, lambda table: table.iter_batches(batch_size, columns=list(columns)))
    while True:
        batch = _guarded(file, lambda: next(batches, None))
        if batch is None:
            return
        yield from _guarded(file, batch.to_pylist)


def _open(file: Path, use: Callable[[Any], Any]) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    return _guarded(file, lambda: use(ParquetFile(file)))


def _guarded(file: Path, step: Callable[[], Any]) -> Any:
    """Do one step of reading; what goes wrong becomes an InputError naming the file."""
    from pyarrow import ArrowException

    try:
        return step()
    except (OSError, ValueError, ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read {file}: {reason}") from error
