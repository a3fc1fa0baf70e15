"""COCO's instances files: images, annotations and categories by id, each checked when it is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from promptris.data.columns import Collector
from promptris.data.readers.fields import whole_number
from promptris.errors import InputError
from promptris.images import MAX_PIXELS

Entry = dict[str, Any]


@dataclass(frozen=True)
class Instances:
    """What an instances file holds, not checked yet.

    Attributes:
        where: the file, to name it in errors.
        images, annotations: entries by id.
        categories: names by id.
    """

    where: Path
    images: dict[int, Entry]
    annotations: dict[int, Entry]
    categories: dict[int, str]

    def tell_image(
        self,
        collector: Collector,
        image_id: int,
        owner: str,
        check_name: Callable[[object], bool] | None = None,
    ) -> None:
        """Tell a collector an image that `owner` needs.

        `check_name` says whether a file name is acceptable; by default only plain names are, without folders.

        Raises:
            InputError: when the image is not in the file, or its name or size is no good.
        """
        if collector.has_image(image_id):
            return
        entry = self.images.get(image_id)
        if entry is None:
            raise InputError(f"{owner} has image {image_id}, which {self.where} does not hold")
        file_name = entry.get("file_name")
        if not (check_name or is_plain_name)(file_name):
            raise InputError(
                f"{self.where}: image {image_id} has file_name {file_name!r}, which is not a plain file name"
            )
        collector.image(image_id, str(file_name), *self.size(image_id))

    def size(self, image_id: int) -> tuple[int, int]:
        """(height, width) of an image that is there; InputError when there are none, or none that can be."""
        entry, what = self.images[image_id], f"{self.where}: image {image_id}"
        try:
            height, width = (whole_number(entry.get(side), side) for side in ("height", "width"))
        except InputError as error:
            raise InputError(f"{what} has no valid height and width ({error})") from None
        if height < 1 or width < 1:
            raise InputError(f"{what} has no valid height and width ({height} and {width})")
        if height * width > MAX_PIXELS:
            raise InputError(
                f"{what} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted"
            )
        return height, width

    def run_lengths(self, ann_id: int, image_id: int, owner: str) -> bytes:
        """COCO's compressed run lengths of an annotation that `owner` needs on an image that was told.

        Raises:
            InputError: when it is not in the file, is on another image, or its segmentation is damaged.
        """
        # Imported here: the masks module brings torch and pycocotools, which only the first reading needs.
        from promptris.ops.run_lengths import segmentation_to_run_lengths

        annotation = self.annotations.get(ann_id)
        if annotation is None or "segmentation" not in annotation:
            raise InputError(f"{owner} has annotation {ann_id}, which {self.where} does not hold")
        if ann_id < 0:
            raise InputError(
                f"{owner} has annotation {ann_id}: annotations have no numbers below 0, which mean other things"
            )
        if annotation.get("image_id") != image_id:
            raise InputError(
                f"{owner} is on image {image_id}, but its annotation {ann_id} on image "
                f"{annotation.get('image_id')}"
            )
        try:
            return segmentation_to_run_lengths(annotation["segmentation"], *self.size(image_id))
        except InputError as error:
            raise InputError(f"{self.where}, annotation {ann_id}: {error}") from error


def read_instances(path: Path) -> Instances:
    """Read a COCO instances file.

    Raises:
        InputError: naming it, if it cannot be read or is no such file, or says two things under one id.
    """
    content = read_json(path, dict)
    images, annotations, categories = (
        _by_id(content, key, path) for key in ("images", "annotations", "categories")
    )
    names = {key: _category_name(key, entry.get("name")) for key, entry in categories.items()}
    return Instances(path, images, annotations, names)


def _category_name(category_id: int, name: object) -> str:
    return name if isinstance(name, str) else f"category {category_id}"


def no_pixel(what: str, size: tuple[int, int]) -> str:
    """What to say of a segmentation that `covers_nothing` of its image of (height, width) pixels."""
    return (
        f"{what}: its mask has no pixel, or only that in the corner; are its coordinates pixels of the "
        f"{size[1]} x {size[0]} image?"
    )


def read_json(path: Path, kind: type[Any]) -> Any:
    """The content of a JSON file, which must be a `kind` (dict or list); InputError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, kind):
        raise InputError(f"{path} does not hold a JSON {'object' if kind is dict else 'list'}")
    return content


def is_plain_name(file_name: object) -> bool:
    """Whether it is the name of a file without any folder."""
    plain = isinstance(file_name, str) and file_name not in ("", "..", ".") and "\\" not in file_name
    return plain and "\0" not in str(file_name) and PurePosixPath(str(file_name)).name == file_name


def _by_id(instances: Entry, key: str, where: Path) -> dict[int, Entry]:
    entries = instances.get(key)
    unusual = f"{where} has no list of {key!r} with ids, so it is not in COCO format"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(unusual)
    found: dict[int, Entry] = {}
    for entry in entries:
        try:
            number = whole_number(entry.get("id"), "an id")
        except InputError as error:
            raise InputError(f"{unusual} ({error})") from None
        first = found.setdefault(number, entry)
        if first is not entry and first != entry:
            differing = [name for name in {**first, **entry} if first.get(name) != entry.get(name)]
            raise InputError(
                f"{where} has two entries with the id {number} in {key!r}, which differ in "
                f"{', '.join(differing[:3]) or 'their fields'}: remove the wrong one"
            )
    return found
