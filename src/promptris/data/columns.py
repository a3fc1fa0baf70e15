"""A data set as a few flat arrays, which take little memory and can be mapped straight from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptris.data.records import NO_TARGET, Expression
from promptris.errors import InputError

Ints = NDArray[np.integer[Any]]
Bytes = NDArray[np.uint8]
Place = tuple[str | None, int | None]
"""Split and image id of a broken item, None for what cannot be told."""


@dataclass(frozen=True)
class Columns:
    """Images, targets, referents and sentences, one array per field.

    Row numbers join the tables. `X_start` has one entry more than its table: the values of row k are
    `[X_start[k] : X_start[k + 1]]` of the array it points into.

    Attributes:
        image_id, image_height, image_width: [images].
        image_file: UTF-8 of all file names, cut by `image_file_start`.
        target_id: [targets] annotation id, NO_TARGET, or the number of a set of annotations.
        target_rle: COCO's compressed run lengths of all masks, cut by `target_rle_start`.
        target_member: annotation ids that make up each target, cut by `target_member_start`.
        ref_id, ref_target, ref_image, ref_category, ref_split: [referents]; target, image and split are row
            numbers, the split one into `facts["splits"]`.
        ref_sentence_start: [referents + 1] into the sentences.
        sent_id, sent_kind: [sentences]; the kind is a row number into `facts["kinds"]`, -1 where none is told.
        sent_text: UTF-8 of all sentences, cut by `sent_text_start`.
        facts: plain JSON: splits, kinds, categories {id: name}; `broken`, one sentence per item left out;
            `broken_splits`, the split of each of these, null where it cannot be told; and `left_out`, the
            images of broken referents by split, where both can be told.
    """

    image_id: Ints
    image_height: Ints
    image_width: Ints
    image_file: Bytes
    image_file_start: Ints
    target_id: Ints
    target_rle: Bytes
    target_rle_start: Ints
    target_member: Ints
    target_member_start: Ints
    ref_id: Ints
    ref_target: Ints
    ref_image: Ints
    ref_category: Ints
    ref_split: Ints
    ref_sentence_start: Ints
    sent_id: Ints
    sent_kind: Ints
    sent_text: Bytes
    sent_text_start: Ints
    facts: dict[str, Any]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "facts"}

    def file_name(self, image_row: int) -> str:
        """File name of an image."""
        return _text(self.image_file, self.image_file_start, image_row)

    def expression(self, row: int) -> Expression:
        """A sentence."""
        kind = int(self.sent_kind[row])
        return Expression(
            int(self.sent_id[row]),
            _text(self.sent_text, self.sent_text_start, row),
            None if kind < 0 else self.facts["kinds"][kind],
        )

    def members(self, target_row: int) -> tuple[int, ...]:
        """Annotation ids of a target."""
        start, stop = self.target_member_start[target_row : target_row + 2]
        return tuple(self.target_member[start:stop].tolist())

    def run_lengths(self, target_row: int) -> bytes:
        """COCO's compressed run lengths of a target's mask."""
        start, stop = self.target_rle_start[target_row : target_row + 2]
        return self.target_rle[start:stop].tobytes()


class Collector:
    """Gathers a data set from a reader and checks it on the way.

    Each method takes one item. What is broken about an item is raised as InputError; `attempt` notes it
    instead and leaves the item out. Images and annotations are only kept where a referent needs them.
    """

    def __init__(self) -> None:
        self.broken: list[str] = []
        self._broken_splits: list[str | None] = []
        self._left_out: dict[str, list[int]] = {}
        self.categories: dict[int, str] = {}
        self._images: dict[int, tuple[str, int, int]] = {}
        self._image_rows: dict[int, int] = {}
        self._targets: dict[tuple[int, tuple[int, ...]], int] = {}
        self._target_ids: list[int] = []
        self._rles: list[bytes] = []
        self._splits: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._refs: list[tuple[int, int, int, int, int, int]] = []
        self._sentences: list[tuple[int, int]] = []
        self._texts: list[str] = []

    def attempt(self, add: Callable[..., None], *arguments: Any, place: Callable[[], Place]) -> None:
        """Call `add(*arguments)`; an InputError is noted as a broken item.

        `place` says where that item belongs, so that only those are stopped by it who use that split, and its
        image is not taken for one that nobody evaluates.
        """
        try:
            add(*arguments)
        except InputError as error:
            split, image_id = place()
            self.broken.append(str(error))
            self._broken_splits.append(split)
            if split is not None and image_id is not None:
                self._left_out.setdefault(split, []).append(image_id)

    def image(self, image_id: int, file_name: str, height: int, width: int) -> None:
        """Tell an image; a second one under the same id is ignored."""
        self._images.setdefault(image_id, (file_name, height, width))

    def has_image(self, image_id: int) -> bool:
        """Whether an image was told."""
        return image_id in self._images

    def image_size(self, image_id: int) -> tuple[int, int]:
        """(height, width) of an image that was told."""
        _, height, width = self._images[image_id]
        return height, width

    def referent(
        self,
        ref_id: int,
        image_id: int,
        category_id: int,
        split: str,
        expressions: Iterable[Expression],
        run_lengths: dict[int, bytes],
    ) -> None:
        """Tell a referent.

        Args:
            ref_id, image_id, category_id, split, expressions: see `Referent`; the image must be told before.
            run_lengths: COCO's compressed run lengths of each annotation that the target is made of, by its
                id; none of them means that there is no target.
        """
        if image_id not in self._image_rows:
            self._image_rows[image_id] = len(self._image_rows)
        target = self._target(image_id, run_lengths)
        split_row = self._splits.setdefault(split, len(self._splits))
        first = len(self._sentences)
        self._refs.append((ref_id, target, self._image_rows[image_id], category_id, split_row, first))
        for expression in expressions:
            kind = expression.kind
            kind_row = -1 if kind is None else self._kinds.setdefault(kind, len(self._kinds))
            self._sentences.append((expression.sent_id, kind_row))
            self._texts.append(expression.text)

    def _target(self, image_id: int, run_lengths: dict[int, bytes]) -> int:
        members = tuple(sorted(run_lengths))
        # "Nothing" is a target of each image by itself, because a mask has the size of its image.
        key = (image_id if not members else 0, members)
        if key in self._targets:
            return self._targets[key]
        target_id = NO_TARGET
        if members:
            target_id = members[0] if len(members) == 1 else -2 - len(self._targets)
        row = self._targets[key] = len(self._targets)
        self._target_ids.append(target_id)
        self._rles.append(_union(list(run_lengths.values()), *self.image_size(image_id)))
        return row

    def columns(self) -> Columns:
        """Everything that was told, as arrays."""
        images = [self._images[image_id] for image_id in self._image_rows]
        refs = np.array(self._refs, dtype=np.int64).reshape(-1, 6)
        sentences = np.array(self._sentences, dtype=np.int64).reshape(-1, 2)
        files, files_start = _joined([name.encode("utf-8", "surrogatepass") for name, _, _ in images])
        texts, texts_start = _joined([text.encode("utf-8", "surrogatepass") for text in self._texts])
        rles, rles_start = _joined(self._rles)
        members = [members for _, members in self._targets]
        return Columns(
            image_id=np.array(list(self._image_rows), dtype=np.int64),
            image_height=np.array([height for _, height, _ in images], dtype=np.int32),
            image_width=np.array([width for _, _, width in images], dtype=np.int32),
            image_file=files,
            image_file_start=files_start,
            target_id=np.array(self._target_ids, dtype=np.int64),
            target_rle=rles,
            target_rle_start=rles_start,
            target_member=np.array([ann_id for group in members for ann_id in group], dtype=np.int64),
            target_member_start=_starts([len(group) for group in members]),
            ref_id=refs[:, 0].copy(),
            ref_target=refs[:, 1].astype(np.int32),
            ref_image=refs[:, 2].astype(np.int32),
            ref_category=refs[:, 3].copy(),
            ref_split=refs[:, 4].astype(np.int32),
            ref_sentence_start=np.append(refs[:, 5], len(sentences)),
            sent_id=sentences[:, 0].copy(),
            sent_kind=sentences[:, 1].astype(np.int32),
            sent_text=texts,
            sent_text_start=texts_start,
            # Through JSON, so that what is read back from an index is the same to the last type.
            facts=json.loads(
                json.dumps(
                    {
                        "splits": list(self._splits),
                        "kinds": list(self._kinds),
                        "categories": {str(key): name for key, name in self.categories.items()},
                        "broken": self.broken,
                        "broken_splits": self._broken_splits,
                        "left_out": self._left_out,
                    }
                )
            ),
        )


def _union(run_lengths: Sequence[bytes], height: int, width: int) -> bytes:
    if len(run_lengths) == 1:
        return run_lengths[0]
    # Imported here: opening a data set from its index needs neither torch nor pycocotools.
    from promptris.ops.run_lengths import merge_run_lengths

    return merge_run_lengths(run_lengths, height, width)


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _joined(parts: Sequence[bytes]) -> tuple[Bytes, NDArray[np.int64]]:
    return np.frombuffer(b"".join(parts), dtype=np.uint8), _starts([len(part) for part in parts])


def _text(blob: Bytes, start: Ints, row: int) -> str:
    first, stop = start[row : row + 2]
    return blob[first:stop].tobytes().decode("utf-8", "surrogatepass")
