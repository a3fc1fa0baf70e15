"""A shard: the SAM embeddings of some images in one file, which says whose they are and has a checksum.

The file is in safetensors form, one bfloat16 tensor "embeddings" [n, D_S, H_S, W_S], so other programs can open
it too. Shards are read with plain reads rather than mapped into memory: that is as fast for whole embeddings, a
failing disk gives an error instead of killing the process, and nothing stays open.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from promptris.errors import InputError

TENSOR = "embeddings"
PARTIAL = ".partial"
STALE_SECONDS = 600.0
"""A partial file that nobody has written to for so long was left behind by a process that was killed."""
_BYTES = 2  # of a bfloat16
_CHUNK = 1 << 24


@dataclass(frozen=True)
class ImageFile:
    """What tells whether an image file is the one that was encoded.

    Attributes:
        name: without the folder, so that data can be moved.
        size: bytes; -1 for a file that could not be read.
        changed_ns: time of the last change.
        sha256: of the content.
    """

    name: str
    size: int
    changed_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> ImageFile:
        """The file as it is now."""
        try:
            stat = path.stat()
            sha256 = _content_hash(path, stat.st_size, stat.st_mtime_ns)
            return cls(path.name, stat.st_size, stat.st_mtime_ns, sha256)
        except OSError:
            return cls(path.name, -1, 0, "")

    def is_still(self, path: Path) -> bool:
        """Whether a file has the same content; it is read only when its time of change differs."""
        try:
            stat = path.stat()
        except OSError:
            return self.size == -1
        if stat.st_size != self.size:
            return False
        return stat.st_mtime_ns == self.changed_ns or ImageFile.of(path).sha256 == self.sha256


@dataclass(frozen=True)
class Shard:
    """A whole shard on disk.

    Attributes:
        path: the file.
        kind: what all embeddings of the cache have in common.
        images: the images it holds, in the order of its rows.
        left_out: images that cannot be read, and one sentence on each.
        shape: of one embedding, (D_S, H_S, W_S).
        sha256: of everything above and the embeddings.
        start: where the embeddings begin, in bytes.
        stamp: size and time of change of the file, which a replaced file does not share.
    """

    path: Path
    kind: dict[str, Any]
    images: dict[int, ImageFile]
    left_out: dict[int, tuple[ImageFile, str]]
    shape: tuple[int, ...]
    sha256: str
    start: int
    stamp: tuple[int, int]

    def read_row(self, row: int, out: BFloat16[Tensor, "D_S H_S W_S"]) -> None:
        """Read one embedding into a contiguous tensor.

        Raises:
            InputError: the file cannot be read, or another one has taken its place.
        """
        target = out.view(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb") as file:
                if _stamp(file.fileno()) != self.stamp:
                    raise InputError(
                        f"{self.path} was replaced while it was in use: resume the run, which then reads the new one"
                    )
                file.seek(self.start + row * len(target))
                if file.readinto(target) != len(target):
                    raise InputError(f"{self.path} is cut off: resume the run, which then builds it again")
        except OSError as error:
            raise InputError(
                f"cannot read the SAM embeddings in {self.path}: {error.strerror or error}"
            ) from error

    def is_intact(self) -> bool:
        """Whether the file, all of which is read, still says what it said and has its checksum."""
        if open_shard(self.path) != self:
            return False
        try:
            with self.path.open("rb") as file:
                digest = hashlib.sha256(_facts(self.kind, self.images, self.left_out).encode())
                file.seek(self.start)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError:
            return False
        return digest.hexdigest() == self.sha256


def shard_bytes(images: int, shape: tuple[int, ...]) -> int:
    """About how large a shard is: the embeddings, and some 250 bytes on each image."""
    return images * (_BYTES * math.prod(shape) + 250) + 1000


def write_shard(
    path: Path,
    kind: Mapping[str, Any],
    images: Mapping[int, ImageFile],
    left_out: Mapping[int, tuple[ImageFile, str]],
    embeddings: BFloat16[Tensor, "n D_S H_S W_S"],
) -> None:
    """Write a shard so that it is there as a whole or not at all, also after a power cut.

    Args:
        path: where to; a file of this name is replaced.
        kind, images, left_out: see `Shard`.
        embeddings: one row for each of `images`, in their order, on the CPU.

    Raises:
        OSError: the disk is full or cannot be written; what was written of the file is removed.
    """
    facts = _facts(kind, images, left_out)
    content = embeddings.contiguous().view(-1).view(torch.uint8).numpy().data
    digest = hashlib.sha256(facts.encode())
    digest.update(content)
    tensor = {"dtype": "BF16", "shape": list(embeddings.shape), "data_offsets": [0, len(content)]}
    header = json.dumps(
        {"__metadata__": {"facts": facts, "sha256": digest.hexdigest()}, TENSOR: tensor}
    ).encode()
    header += b" " * (-len(header) % 8)
    write_durably(path, struct.pack("<Q", len(header)), header, content)


def open_shard(path: Path) -> Shard | None:
    """What a shard says of itself; None when there is none, or not a whole one. The checksum is not looked at."""
    try:
        with path.open("rb") as file:
            stamp = _stamp(file.fileno())
            (length,) = struct.unpack("<Q", file.read(8))
            if length > stamp[0]:
                return None
            header = json.loads(file.read(length))
        facts = json.loads(header["__metadata__"]["facts"])
        images = {row[0]: ImageFile(*row[1:]) for row in facts["images"]}
        left_out = {row[0]: (ImageFile(*row[1:-1]), row[-1]) for row in facts["left_out"]}
        tensor, shape = header[TENSOR], tuple(facts["kind"]["shape"])
        end = len(images) * _BYTES * math.prod(shape)
        if [tensor["dtype"], tensor["shape"]] != ["BF16", [len(images), *shape]]:
            return None
        if tensor["data_offsets"] != [0, end] or stamp[0] != 8 + length + end:
            return None
        sha256 = header["__metadata__"]["sha256"]
        return Shard(path, facts["kind"], images, left_out, shape, sha256, 8 + length, stamp)
    except (OSError, struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file under another name, down to the disk, and only then give it its own name."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    # The new name has to reach the disk as well. Some systems and network disks offer no way to ask for that.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stale(path: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left behind."""
    for partial in path.parent.glob(f"{path.name}.*{PARTIAL}"):
        with suppress(OSError):  # another process may be faster
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()


def _facts(
    kind: Mapping[str, Any],
    images: Mapping[int, ImageFile],
    left_out: Mapping[int, tuple[ImageFile, str]],
) -> str:
    rows = [[image_id, *astuple(file)] for image_id, file in images.items()]
    others = [[image_id, *astuple(file), why] for image_id, (file, why) in left_out.items()]
    return json.dumps({"kind": dict(kind), "images": rows, "left_out": others})


@cache
def _content_hash(path: Path, size: int, changed_ns: int) -> str:
    """The sha256 of a file, read once as long as its size and time of change are what they were."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stamp(descriptor: int) -> tuple[int, int]:
    stat = os.fstat(descriptor)
    return stat.st_size, stat.st_mtime_ns
