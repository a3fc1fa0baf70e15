"""What a data set holds, row by row: images, referents and their expressions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NO_TARGET = -1
"""`ann_id` of a referent that is nowhere in the image."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence; `kind` ("attribute", "location", "relation") where the data set tells it."""

    sent_id: int
    text: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Referent:
    """What expressions mean. The same object has one `ann_id` in all data sets, but a `ref_id` in each.

    Attributes:
        ref_id: number in its data set.
        ann_id: identity of the target: the annotation's id; NO_TARGET (-1) when nothing is meant; for several
            annotations a number below -1 that belongs to this set of annotations alone.
        image_id: the image.
        category_id: category of the object (of the first, where there are several); -1 with no target
            or where no categories are told.
        split: the split it belongs to.
        expressions: its sentences.
        ann_ids: the annotations whose union is the mask: one in RIS, none or several in generalised RIS.
    """

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int
    split: str
    expressions: tuple[Expression, ...]
    ann_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image file and its size in pixels."""

    image_id: int
    path: Path
    height: int
    width: int
