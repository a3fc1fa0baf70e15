"""What a run has finished, kept beside its results, so that a stopped run can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptris.errors import InputError
from promptris.outputs import make_folder

INDEX_FILE = ".promptris-done.jsonl"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Item:
    """An image that was answered.

    Attributes:
        key: of `item_key`.
        image: its path, as the user gave it.
        stem: what the names of its files begin with.
        size: its [height, width].
        records: for each expression what is told about it: expression, score, area, bbox, point.
        files: for each expression the names of its files below the folder.
        segmentations: for each expression COCO's run lengths, where a file of the whole run needs them.
    """

    key: str
    image: str
    stem: str
    size: list[int]
    records: list[dict[str, Any]]
    files: list[list[str]]
    segmentations: list[dict[str, Any]]


class FinishedItems:
    """The finished items of a folder, by key: an index on disk that is only ever appended to.

    An item is added after its files are there, in one line; a line that was cut off when the process was killed is
    skipped. Before files are written that belong to another item, that item is taken out (`claim`). In memory are
    keys, names and places in the file, no results.

    Args:
        folder: of the results.

    Raises:
        InputError: when there is an index that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / INDEX_FILE
        self._places: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._whole = True
        self.stems: dict[str, str] = {}
        """Stems in lower case, each with the image that has it."""
        try:
            with self.path.open("rb") as file:
                self._read(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str) -> Item | None:
        """The item of this key, if it is finished and its files are there."""
        if key not in self._places:
            return None
        (item,) = self.items([key])
        names = [name for group in item.files for name in group]
        return item if all((self.folder / name).is_file() for name in names) else None

    def items(self, keys: Iterable[str]) -> Iterator[Item]:
        """The items of finished keys, one after the other."""
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self._places[key])
                yield Item(**json.loads(file.readline()))

    def claim(self, key: str, files: Sequence[Path]) -> None:
        """The files are about to be written for this key: whatever other item they belong to is no longer finished.

        Raises:
            InputError: when this cannot be noted.
        """
        owners = {self._owners.get(path.name, key) for path in files} - {key}
        if owners:
            self._append({"replaced": sorted(owners)})
            self._forget(owners)

    def add(self, item: Item) -> None:
        """Note a finished item, whose files are there.

        Raises:
            InputError: when this cannot be noted.
        """
        self._note(item, self._append(asdict(item)))

    def _append(self, content: dict[str, Any]) -> int:
        """Write one line; returns where it begins."""
        make_folder(self.folder)
        line = json.dumps(content).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                if not self._whole:
                    file.write(b"\n")
                place = file.tell()
                self._whole = False
                file.write(line)
            self._whole = True
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error
        return place

    def _read(self, file: Iterable[bytes]) -> None:
        place = 0
        for line in file:
            self._whole = line.endswith(b"\n")
            try:
                content = json.loads(line)
                if "replaced" in content:
                    self._forget(content["replaced"])
                else:
                    self._note(Item(**content), place)
            except (ValueError, TypeError):  # cut off or damaged: what it tells of is done again
                pass
            place += len(line)

    def _note(self, item: Item, place: int) -> None:
        self._places[item.key] = place
        self._owners.update((name, item.key) for group in item.files for name in group)
        self.stems[item.stem.casefold()] = item.image

    def _forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._places.pop(key, None)


def item_key(
    settings: dict[str, Any], image: str, content: str, expressions: Sequence[str], number: int
) -> str:
    """What a finished item is known by: the same for the same question about the same content, else another.

    Args:
        settings: everything that answers depend on beside image and expressions, as plain values.
        image: the image's path, as the user gave it.
        content: of `file_digest`.
        expressions: the texts.
        number: how many times this very question came before in the same run.
    """
    told = [settings, image, content, list(expressions), number]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def file_digest(path: Path) -> str | None:
    """A hash of a file's bytes; None where there is no regular file, or one that cannot be read."""
    digest = hashlib.blake2b(digest_size=20)
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except (OSError, ValueError):
        return None
    return digest.hexdigest()
