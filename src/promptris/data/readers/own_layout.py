"""Which files of a folder of one's own are the sentences, the annotations and the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from promptris.data.paths import files_in, is_file, is_folder, listed
from promptris.data.readers.own_rows import Row, has_expressions, inner_path
from promptris.data.readers.refer import refs_files
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
IMAGES = "images"


class UnknownLayoutError(InputError):
    """A folder has none of the layouts of LAYOUT_HELP."""


def looks_like_own_data(folder: str | Path) -> bool:
    """Whether a path is a folder that `read_own` would try to read: it has rows, or the REFER layout."""
    root = Path(folder)
    if not is_folder(root):
        return False
    named = any(is_file(place / name) for place in _places(root) for name in ROWS_FILES)
    return named or is_refer_layout(root) or any(has_expressions(path) for path in _other_tables(root))


def _places(root: Path) -> tuple[Path, Path]:
    return root, root / "annotations"


def named_rows_file(root: Path) -> Path | None:
    """The file of sentences that has one of the usual names; InputError if there are two."""
    there = [path for place in _places(root) for name in ROWS_FILES if is_file(path := place / name)]
    return _only(there, root, "files of expressions")


def _other_tables(root: Path) -> list[Path]:
    return [path for place in _places(root) for path in files_in(place, ".jsonl", ".csv")]


def other_rows_file(root: Path) -> Path | None:
    """The only other table with sentences; InputError if there are two."""
    there = [path for path in _other_tables(root) if has_expressions(path)]
    return _only(there, root, "files with expressions")


def _only(paths: list[Path], root: Path, what: str) -> Path | None:
    if len(paths) > 1:
        names = " and ".join(str(path.relative_to(root)) for path in paths)
        raise InputError(f"{root} has several {what}, {names}: keep one of them there")
    return paths[0] if paths else None


def needed_instances_file(root: Path, rows: Sequence[Row | InputError]) -> Path | None:
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
            if is_file(place / name):
                return place / name
    others = [path for place in _places(root) for path in files_in(place, ".json")]
    coco = others if len(others) == 1 else [path for path in others if _is_coco(path)]
    return _only(coco, root, "COCO files")


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def is_refer_layout(root: Path) -> bool:
    """Whether a folder has a refs file and its annotations."""
    return is_file(root / "instances.json") and bool(refs_files(root))


def what_is_missing(root: Path) -> str:
    """Why a folder is no data set, in a sentence; InputError if it cannot be listed."""
    folders = (Path(entry.path) for entry in listed(root) if is_folder(entry.path))
    below = sorted(path for path in folders if is_refer_layout(path))
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


def picture_files(root: Path, rows: Sequence[Row | InputError]) -> list[Path]:
    """The image and mask files that rows name and that are there, each once."""
    found: dict[Path, None] = {}
    for row in rows:
        for column in ("image", "mask"):
            name = row.cells.get(column) if isinstance(row, Row) else None
            inner = inner_path(name.strip()) if isinstance(name, str) else None
            if inner is not None:
                path = root / (image_path(root, inner) if column == "image" else inner)
                if path not in found and is_file(path):
                    found[path] = None
    return list(found)


def image_path(root: Path, name: str) -> str:
    """Path of an image relative to the folder: as it is written, or in images/; as written if nowhere."""
    inside = f"{IMAGES}/{name}"
    return inside if not is_file(root / name) and is_file(root / inside) else name
