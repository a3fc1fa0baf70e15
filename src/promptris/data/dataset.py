"""A data set to train and evaluate on: referents by split, images by id, masks on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from promptris.data.columns import Columns
from promptris.data.paths import file_names, is_file, is_folder
from promptris.data.records import Expression, ImageRecord, Referent
from promptris.errors import InputError

Item = TypeVar("Item")
Rows = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class ReferDataset:
    """Referents by split over shared columns; making another selection of them copies nothing.

    Attributes:
        name: name of the data set.
        split_by: which of its partitions; "" where there is only one.
        root: folder below which the images were looked for.
        columns: the data.
        folders: where image files may be, the last one being the usual place.
        rows: rows of the referents of each split.
        broken: one sentence for each item that was left out because it cannot be used.
        broken_splits: the split of each of these, None (or nothing) where it cannot be told.
    """

    name: str
    split_by: str
    root: Path
    columns: Columns = field(repr=False)
    folders: tuple[Path, ...] = field(repr=False)
    rows: Mapping[str, Rows] = field(repr=False)
    broken: tuple[str, ...] = ()
    broken_splits: tuple[str | None, ...] = field(default=(), repr=False)

    @classmethod
    def from_columns(
        cls, name: str, split_by: str, root: Path, columns: Columns, folders: Sequence[Path]
    ) -> ReferDataset:
        """All referents of the columns, in the splits that they name."""
        codes, facts = np.asarray(columns.ref_split), columns.facts
        rows = {split: np.flatnonzero(codes == code) for code, split in enumerate(facts["splits"])}
        broken = tuple(facts["broken"]), tuple(facts["broken_splits"])
        return cls(name, split_by, root, columns, tuple(folders), rows, *broken)

    # ------------------------------------------------------------------------------------------- what it holds

    @property
    def splits(self) -> Mapping[str, Sequence[Referent]]:
        """The referents of every split, in the order of the files."""
        return {split: self.referents(split) for split in self.rows}

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names of the categories by id."""
        return {int(key): name for key, name in self.columns.facts["categories"].items()}

    @cached_property
    def images(self) -> Mapping[int, ImageRecord]:
        """Records of all images that a referent needs, by id."""
        return _Images(self)

    def referents(self, split: str) -> Sequence[Referent]:
        """The referents of a split; InputError naming the split and those there are."""
        return _Rows(self._rows(split), self.referent)

    def referent(self, row: int) -> Referent:
        """The referent in a row of the columns."""
        c = self.columns
        target = int(c.ref_target[row])
        first, stop = c.ref_sentence_start[row : row + 2]
        return Referent(
            ref_id=int(c.ref_id[row]),
            ann_id=int(c.target_id[target]),
            image_id=int(c.image_id[c.ref_image[row]]),
            category_id=int(c.ref_category[row]),
            split=c.facts["splits"][c.ref_split[row]],
            expressions=tuple(c.expression(k) for k in range(first, stop)),
            ann_ids=c.members(target),
        )

    def samples(self, split: str) -> Sequence[tuple[Referent, Expression]]:
        """Every (referent, sentence) pair of a split once; InputError if there is no such split."""
        rows = self._rows(split)
        counts = self._sentences(rows)
        owners = np.repeat(rows, counts)
        places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)

        def pair(number: int) -> tuple[Referent, Expression]:
            referent = self.referent(int(owners[number]))
            return referent, referent.expressions[places[number]]

        return _Rows(np.arange(len(owners)), pair)

    def image_ids(self, split: str) -> list[int]:
        """The images of a split, each once, by id."""
        rows = np.unique(np.asarray(self.columns.ref_image)[self._rows(split)])
        return sorted(np.asarray(self.columns.image_id)[rows].tolist())

    def by_image(self, split: str) -> Mapping[int, Sequence[Referent]]:
        """The referents of a split by image id, images in the order of their first referent.

        Referents without a sentence, and images with no others, are left out.
        """
        rows = self._rows(split)
        rows = rows[self._sentences(rows) > 0]
        images = np.asarray(self.columns.ref_image)[rows]
        order = np.argsort(images, kind="stable")
        found, starts = np.unique(images[order], return_index=True)
        groups = np.split(rows[order], starts[1:]) if len(found) else []
        ids = np.asarray(self.columns.image_id)[found].tolist()
        pairs = sorted(zip(ids, groups, strict=True), key=lambda pair: int(pair[1][0]))
        return _Groups(dict(pairs), self.referent)

    def count(self, split: str) -> tuple[int, int, int]:
        """Numbers of referents, images and sentences of a split."""
        rows = self._rows(split)
        images = np.unique(np.asarray(self.columns.ref_image)[rows])
        return len(rows), len(images), int(self._sentences(rows).sum())

    def is_generalised(self, split: str) -> bool:
        """Whether some expressions of a split mean several objects, or none (generalised RIS)."""
        targets = np.asarray(self.columns.ref_target)[self._rows(split)]
        return bool((np.diff(self.columns.target_member_start)[targets] != 1).any())

    def run_lengths(self, referent: Referent) -> dict[str, Any]:
        """COCO's compressed run lengths of the referent's mask: {"size": [H, W], "counts": str}."""
        key = (referent.ann_id, referent.image_id)
        try:
            target = self._target_rows[key]
        except KeyError:
            raise InputError(f"{self.name} has no annotation {key[0]} on image {key[1]}") from None
        record = self.images[referent.image_id]
        counts = self.columns.run_lengths(target).decode("ascii")
        return {"size": [record.height, record.width], "counts": counts}

    def mask(self, referent: Referent) -> NDArray[np.bool_]:
        """bool [H, W] at the image's own size: the union of the referent's polygons, or its decoded RLE.

        All false for a referent with no target.
        """
        # Imported here: the masks module brings torch and pycocotools, which reading does not need.
        from promptris.ops.run_lengths import rle_to_mask

        return rle_to_mask(self.run_lengths(referent))

    # --------------------------------------------------------------------------------------- other selections

    def with_rows(self, rows: Mapping[str, Rows]) -> ReferDataset:
        """The same data with other referents in the splits."""
        return replace(self, rows=dict(rows))

    def only_categories(self, category_ids: set[int]) -> ReferDataset:
        """Only the referents of some categories, in every split."""
        wanted = np.isin(np.asarray(self.columns.ref_category), sorted(category_ids))
        return self.with_rows({split: rows[wanted[rows]] for split, rows in self.rows.items()})

    def hold_out(self, share: float, split: str = "train", into: str = "val", seed: int = 0) -> ReferDataset:
        """Move the images of a random share of `split` into the new split `into`.

        The split is by images, so that no image is in both; each side keeps at least one.

        Raises:
            InputError: when the share is not between 0 and 1, `into` exists, or there are fewer than 2 images.
        """
        ids = self.image_ids(split)
        if not 0 < share < 1:
            raise InputError(f"the share {share:g} to hold out must lie between 0 and 1")
        if into in self.rows:
            raise InputError(f"{self.name} has a split {into!r} already, nothing needs to be held out for it")
        if len(ids) < 2:
            raise InputError(f"{self.name} has {len(ids)} image in {split!r}: too few to hold any out")
        count = min(max(round(share * len(ids)), 1), len(ids) - 1)
        held = np.random.default_rng(seed).permutation(ids)[:count]
        rows = self._rows(split)
        moved = np.isin(np.asarray(self.columns.image_id)[self.columns.ref_image[rows]], held)
        return self.with_rows({**self.rows, split: rows[~moved], into: rows[moved]})

    def usable(
        self, require_images: bool, skip_broken: bool, splits: Sequence[str] | None = None
    ) -> ReferDataset:
        """The data set after a last look: broken items and missing images are errors, or left out.

        Args:
            require_images: whether a missing image file matters at all.
            skip_broken: leave out what cannot be used and say so in `broken`, instead of raising.
            splits: those that will be used; by default all. Only their broken items and missing images count,
                and broken items of which the split is not known. The other splits are not looked at: they
                may lack items, and have images that are missing, of which `broken` says nothing. A name that
                the data set does not have is passed over.

        Raises:
            InputError: naming the first item that cannot be used and how many others there are.
        """
        broken = [
            (sentence, split)
            for sentence, split in zip_longest(self.broken, self.broken_splits)
            if splits is None or split is None or split in splits
        ]
        if broken and not skip_broken:
            others = f" (and {len(broken) - 1} more broken items)" if len(broken) > 1 else ""
            raise InputError(f"{broken[0][0]}{others}")
        looked_at = [split for split in self.rows if splits is None or split in splits]
        image_rows = self._images_of(looked_at) if require_images else []
        gone = [row for row in image_rows if not self._is_there(row)]
        where = f"looked in {self._searched()}"
        if gone and not skip_broken:
            raise InputError(
                f"{len(gone)} of {len(image_rows)} image files of {self.name} are missing, the first is "
                f"{self.columns.file_name(gone[0])}; {where}"
            )
        if not gone and len(broken) == len(self.broken):
            return self
        broken += [(f"image file {self.columns.file_name(row)} is missing; {where}", None) for row in gone]
        there = ~np.isin(np.asarray(self.columns.ref_image), gone)
        return replace(
            self,
            rows={
                split: rows[there[rows]] if split in looked_at else rows for split, rows in self.rows.items()
            },
            broken=tuple(sentence for sentence, _ in broken),
            broken_splits=tuple(split for _, split in broken),
        )

    # ------------------------------------------------------------------------------------------------- private

    def _searched(self) -> str:
        names = ", ".join(os.path.relpath(folder, self.root) for folder in self.folders)
        return f"{names} below {self.root}" if names else f"{self.root}"

    def _rows(self, split: str) -> Rows:
        try:
            return self.rows[split]
        except KeyError:
            there = ", ".join(self.rows) or "none"
            partition = f" ({self.split_by})" if self.split_by else ""
            raise InputError(f"{self.name}{partition} has no split {split!r}; it has {there}") from None

    def _sentences(self, rows: Rows) -> Rows:
        start = np.asarray(self.columns.ref_sentence_start)
        return np.asarray(start[rows + 1] - start[rows])

    @cached_property
    def _target_rows(self) -> dict[tuple[int, int], int]:
        c = self.columns
        image_ids = np.asarray(c.image_id)[c.ref_image].tolist()
        targets = np.asarray(c.ref_target).tolist()
        ann_ids = np.asarray(c.target_id)[c.ref_target].tolist()
        return dict(zip(zip(ann_ids, image_ids, strict=True), targets, strict=True))

    @cached_property
    def _image_rows(self) -> dict[int, int]:
        return {image_id: row for row, image_id in enumerate(np.asarray(self.columns.image_id).tolist())}

    @cached_property
    def _listings(self) -> list[tuple[Path, set[str]]]:
        """File names in the image folders: one listing is much faster than a look for every file."""
        return [(folder, file_names(folder)) for folder in self.folders if is_folder(folder)]

    def path_of(self, image_row: int) -> Path | None:
        """The file of an image; None when it is missing.

        Raises:
            InputError: naming a folder that cannot be listed.
        """
        name = self.columns.file_name(image_row)
        if "/" in name:
            return next((path for folder in self.folders if is_file(path := folder / name)), None)
        return next((folder / name for folder, there in self._listings if name in there), None)

    def _is_there(self, image_row: int) -> bool:
        name = self.columns.file_name(image_row)
        return any(name in there for _, there in self._listings) or (
            "/" in name and self.path_of(image_row) is not None
        )

    def _images_of(self, splits: Iterable[str]) -> list[int]:
        rows = [np.asarray(self.columns.ref_image)[self.rows[split]] for split in splits]
        return np.unique(np.concatenate(rows)).tolist() if rows else []

    def missing_images(self, splits: Sequence[str] | None = None) -> list[str]:
        """Names of the image files that are nowhere, of all splits or of some."""
        chosen = [split for split in self.rows if splits is None or split in splits]
        return [self.columns.file_name(row) for row in self._images_of(chosen) if not self._is_there(row)]

    def image_record(self, image_id: int) -> ImageRecord:
        """The record of an image; where the file is missing, its path is where it should be."""
        row = self._image_rows[image_id]
        c = self.columns
        path = self.path_of(row)
        if path is None:
            name = c.file_name(row)
            path = self.root / name if "/" in name or not self.folders else self.folders[-1] / name
        return ImageRecord(image_id, path, int(c.image_height[row]), int(c.image_width[row]))


class _Rows(Sequence[Item]):
    """A sequence whose items are made from row numbers when they are asked for."""

    def __init__(self, rows: Rows, make: Callable[[int], Item]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        if isinstance(place, slice):
            return _Rows(self._rows[place], self._make)
        return self._make(int(self._rows[place]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"<{len(self)} items>"

    __hash__ = None  # type: ignore[assignment]


class _Groups(Mapping[int, Sequence[Referent]]):
    def __init__(self, groups: dict[int, Rows], make: Callable[[int], Referent]) -> None:
        self._groups, self._make = groups, make

    def __getitem__(self, image_id: int) -> Sequence[Referent]:
        return _Rows(self._groups[image_id], self._make)

    def __iter__(self) -> Iterator[int]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


class _Images(Mapping[int, ImageRecord]):
    def __init__(self, dataset: ReferDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, image_id: int) -> ImageRecord:
        return self._dataset.image_record(image_id)

    def __iter__(self) -> Iterator[int]:
        return iter(np.asarray(self._dataset.columns.image_id).tolist())

    def __len__(self) -> int:
        return len(self._dataset.columns.image_id)
