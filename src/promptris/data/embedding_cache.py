"""SAM's image embeddings on disk: computed once, read whenever a batch needs them.

A cache is a folder of shards (`promptris.data.embedding_shards`) and an `index.json` that says which image goes
into which of them. The index is a layout, not a record of what is done: it follows from what it was before and
from the images that are asked for, so processes that build a cache together agree on it without talking. What
is done is told by the shards themselves.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from promptris.data.dataset import ReferDataset
from promptris.data.embedding_shards import Shard, open_shard, shard_bytes, write_durably
from promptris.data.fetching.archives import free_bytes
from promptris.errors import InputError

FORMAT = "promptris-sam-embeddings-1"
"""Changes whenever the files do, or how images are prepared for SAM."""
INDEX_FILE = "index.json"
PER_SHARD = 64
"""Images in a shard: 128 MiB of embeddings of 256 x 64 x 64."""

Layout = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EmbeddingKind:
    """What all embeddings of a cache have in common.

    Attributes:
        sam: content hash of SAM (`promptris.modeling.content_hash.content_hash`).
        image_size: side of the square that SAM sees, in pixels.
        decode_size: sides that decoded images need not exceed (`Processor.enough`).
        shape: of one embedding, (D_S, H_S, W_S).
    """

    sam: str
    image_size: int
    decode_size: int
    shape: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the files."""
        return {"format": FORMAT, "dtype": "bfloat16", **asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class CachePlan:
    """What there is of a cache and what is still to be built.

    Attributes:
        folder: the cache.
        kind: of its embeddings.
        layout: the images of every shard.
        wanted: the images that are asked for, by the number of their shard.
        present: the shards that hold theirs, by number; their checksums have not been looked at.
        replaced: bytes of the files that new shards will replace.
        free: bytes that are free on the disk.
    """

    folder: Path
    kind: EmbeddingKind
    layout: Layout
    wanted: Mapping[int, tuple[int, ...]]
    present: Mapping[int, Shard]
    replaced: int
    free: int

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are to be built."""
        return [number for number in self.wanted if number not in self.present]

    @property
    def missing_images(self) -> list[int]:
        """The images that are to be encoded."""
        return [image_id for number in self.missing for image_id in self.wanted[number]]

    @property
    def bytes(self) -> int:
        """Size of the shards of all images that are asked for, about."""
        return sum(self._size(number) for number in self.wanted)

    @property
    def needed_bytes(self) -> int:
        """By how much the cache will grow at most. A shard that is replaced is there twice for a moment."""
        new = sum(self._size(number) for number in self.missing)
        largest = max((self._size(number) for number in self.missing), default=0)
        return max(new - self.replaced, 0) + (largest if self.replaced else 0)

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return shard_path(self.folder, number)

    def summary(self) -> str:
        """One sentence for the user."""
        images = sum(map(len, self.wanted.values()))
        done = images - len(self.missing_images)
        state = f"{done} of {images} images are there" if done else f"{images} images are to be encoded"
        return (
            f"SAM embedding cache {self.folder}: {_readable(self.bytes)} in all, "
            f"{_readable(self.needed_bytes)} more to be written, {_readable(self.free)} free on the disk; {state}"
        )

    def require_space(self) -> None:
        """InputError when the disk has no room for what is missing."""
        if self.needed_bytes > self.free:
            raise InputError(
                f"the SAM embedding cache needs {_readable(self.needed_bytes)} more in {self.folder}, but only "
                f"{_readable(self.free)} are free there: make room, give another folder, or train without the cache"
            )

    def _size(self, number: int) -> int:
        return shard_bytes(len(self.wanted[number]), self.kind.shape)


def plan_embedding_cache(
    folder: str | Path,
    kind: EmbeddingKind,
    dataset: ReferDataset,
    image_ids: Iterable[int],
    per_shard: int = PER_SHARD,
) -> CachePlan:
    """Look at what there is of a cache. Nothing is written.

    Args:
        folder: of the cache; need not exist.
        kind: of the embeddings.
        dataset: where the image files are.
        image_ids: images that embeddings are wanted of. They may be more or fewer than the cache was made for.
        per_shard: images in a new shard.

    Raises:
        InputError: the folder holds embeddings of another SAM or of other images, or is none.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the SAM embedding cache")
    wanted_ids = set(image_ids)
    layout = _extended(_read_index(folder, kind), wanted_ids, per_shard)
    wanted, present, replaced = {}, {}, 0
    for number, ids in enumerate(layout):
        if not (asked := tuple(image_id for image_id in ids if image_id in wanted_ids)):
            continue
        wanted[number] = asked
        path = shard_path(folder, number)
        shard = open_shard(path)
        if shard is not None and _holds(shard, kind, asked, dataset):
            present[number] = shard
        elif path.exists():
            replaced += path.stat().st_size
    return CachePlan(folder, kind, layout, wanted, present, replaced, free_bytes(folder))


class EmbeddingCache:
    """The embeddings of some images. Can be handed to other processes; keeps no file open.

    Args:
        plan: with nothing missing.
    """

    def __init__(self, plan: CachePlan) -> None:
        self.folder, self.kind = plan.folder, plan.kind
        self.shards = tuple(plan.present.values())
        self.left_out: dict[int, str] = {}
        """Images that cannot be read, and one sentence on each."""
        self._places: dict[int, tuple[int, int]] = {}
        for place, (number, shard) in enumerate(plan.present.items()):
            rows = {image_id: row for row, image_id in enumerate(shard.images)}
            for image_id in plan.wanted[number]:
                if image_id in rows:
                    self._places[image_id] = (place, rows[image_id])
                else:
                    self.left_out[image_id] = shard.left_out[image_id][1]

    @classmethod
    def open(
        cls, folder: str | Path, kind: EmbeddingKind, dataset: ReferDataset, image_ids: Iterable[int]
    ) -> EmbeddingCache:
        """A cache that is complete.

        Args:
            folder, kind, dataset, image_ids: see `plan_embedding_cache`.

        Raises:
            InputError: it is not complete, or holds other embeddings.
        """
        plan = plan_embedding_cache(folder, kind, dataset, image_ids)
        if missing := plan.missing_images:
            total = sum(map(len, plan.wanted.values()))
            raise InputError(
                f"the SAM embedding cache {folder} lacks {len(missing)} of {total} images, the first is "
                f"{missing[0]}: build it first"
            )
        return cls(plan)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __getitem__(self, image_id: int) -> BFloat16[Tensor, "D_S H_S W_S"]:
        return self.read([image_id])[0]

    def read(self, image_ids: Sequence[int]) -> BFloat16[Tensor, "I D_S H_S W_S"]:
        """The embeddings of some images, in memory of their own.

        Raises:
            InputError: an image has none, or its shard cannot be read.
        """
        out = torch.empty(len(image_ids), *self.kind.shape, dtype=torch.bfloat16)
        for image_id, row in zip(image_ids, out, strict=True):
            self.require(image_id)
            place, source = self._places[image_id]
            self.shards[place].read_row(source, row)
        return out

    def verify(self) -> list[Path]:
        """Read everything and return the shards that are damaged."""
        return [shard.path for shard in self.shards if not shard.is_intact()]

    def require(self, image_id: int) -> None:
        """InputError when an image has no embedding: saying what is wrong with it, or that it was not asked for."""
        if image_id in self.left_out:
            raise InputError(self.left_out[image_id])
        if image_id not in self._places:
            raise InputError(f"the SAM embedding cache {self.folder} was not opened for image {image_id}")


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


def write_index(plan: CachePlan) -> None:
    """Write the layout of a cache, unless it is there already; OSError when that is not possible."""
    content = json.dumps({"kind": plan.kind.to_dict(), "shards": plan.layout}).encode()
    path = plan.folder / INDEX_FILE
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        write_durably(path, content)


def _read_index(folder: Path, kind: EmbeddingKind) -> Layout:
    """The layout so far; an index that is damaged is as good as none, since most of it can be worked out again."""
    try:
        index = json.loads((folder / INDEX_FILE).read_bytes())
        there, layout = index["kind"], tuple(tuple(map(int, ids)) for ids in index["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    _check_kind(folder, there, kind)
    return layout


def _extended(layout: Layout, image_ids: Collection[int], per_shard: int) -> Layout:
    """The layout with shards for those images that have no place yet; the same from any state on the way."""
    new = sorted(set(image_ids).difference(*layout))
    return (*layout, *(tuple(new[k : k + per_shard]) for k in range(0, len(new), per_shard)))


def _holds(shard: Shard, kind: EmbeddingKind, image_ids: Iterable[int], dataset: ReferDataset) -> bool:
    """Whether a shard has all of some images as they are now; InputError when they are other images."""
    files = shard.images | {image_id: file for image_id, (file, _) in shard.left_out.items()}
    paths = {image_id: dataset.images[image_id].path for image_id in image_ids}
    try:
        _check_kind(shard.path.parent, shard.kind, kind)
        for image_id, path in paths.items():
            if image_id in files and files[image_id].name != path.name:
                raise InputError(
                    f"{shard.path.parent} holds SAM embeddings of other images: image {image_id} was "
                    f"{files[image_id].name} there and is {path.name} here; give another folder for the cache"
                )
    except InputError:
        if shard.is_intact():
            raise
        return False  # it only seems to be of something else
    return all(image_id in files and files[image_id].is_still(path) for image_id, path in paths.items())


_WORDS = {"sam": "SAM's weights", "image_size": "SAM's image size", "decode_size": "the decoded size"}


def _check_kind(folder: Path, there: Any, kind: EmbeddingKind) -> None:
    here = kind.to_dict()
    found = there if isinstance(there, dict) else {}
    differing = [name for name in here if found.get(name) != here[name]]
    if differing:
        facts = (
            f"{_WORDS.get(n, n)} ({_short(found.get(n))} there, {_short(here[n])} here)" for n in differing
        )
        raise InputError(
            f"{folder} holds SAM embeddings that this model cannot use, they differ in {', '.join(facts)}: give "
            "another folder for the cache"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a content hash


def _readable(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
