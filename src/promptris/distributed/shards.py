"""The work in numbered shards: the same input gives the same shards, whoever cuts it and when."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_HASHED = ("row", "item", "image", "expression", "error")


@dataclass(frozen=True)
class Shard:
    """Questions that are answered and written together.

    Attributes:
        number: from 0.
        key: a hash of the questions.
        questions: `QUESTIONS`; those about one image stand together.
    """

    number: int
    key: str
    questions: pa.Table


class Plan:
    """All questions, cut into shards.

    Args:
        questions: `QUESTIONS`, in the order of the input.
        size: questions per shard at most. An image is cut only when there are more about it alone.
    """

    def __init__(self, questions: pa.Table, size: int) -> None:
        # Codes come in the order of first appearance, so that an image stays where it is named first.
        codes = pc.fill_null(questions["location"].dictionary_encode().combine_chunks().indices, -1)
        codes = codes.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        self.questions = questions.take(pa.array(order))
        self.images = int(codes.max(initial=-1)) + 1
        self._starts = _cut(codes[order], size)
        self.keys, self.content = self._hash()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def shard(self, number: int) -> Shard:
        """The shard of a number."""
        return Shard(number, self.keys[number], self._rows(number))

    def size(self, number: int) -> int:
        """Questions of a shard."""
        return int(self._starts[number + 1] - self._starts[number])

    def _rows(self, number: int) -> pa.Table:
        return self.questions.slice(int(self._starts[number]), self.size(number))

    def _hash(self) -> tuple[list[str], str]:
        """A hash of every shard, and one of the whole input, which does not depend on how it is cut."""
        whole, keys = hashlib.sha256(), []
        for number in range(len(self)):
            content = "".join(_texts(self._rows(number))).encode()
            keys.append(hashlib.sha256(content).hexdigest()[:16])
            whole.update(content)
        return keys, whole.hexdigest()[:16]


def _texts(rows: pa.Table) -> Iterator[str]:
    """Rows as JSON: what Arrow has in memory may differ where the content does not."""
    for cells in zip(*(rows[name].to_pylist() for name in _HASHED), strict=True):
        yield json.dumps(cells) + "\n"


def _cut(codes: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Where shards of rows with these codes (equal ones together) start, and the end of the last one."""
    ends = [*(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    starts, begun = [0], 0
    for end in ends:
        if end - starts[-1] > size and begun > starts[-1]:
            starts.append(begun)
        while end - starts[-1] > size:
            starts.append(starts[-1] + size)
        begun = end
    return np.array([*starts, len(codes)])
