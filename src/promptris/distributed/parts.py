"""The folder of results: one parquet file per shard, each whole or not there, and what run they belong to."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pyarrow.fs import FileSelector, FileType

from promptris.distributed.locations import filesystem, first_line
from promptris.errors import InputError

ANSWERS = pa.schema(
    [
        ("row", pa.int64()),
        ("item", pa.int32()),
        ("image", pa.string()),
        ("expression", pa.string()),
        ("score", pa.float64()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.int32())),
        ("point", pa.list_(pa.int32())),
        ("size", pa.list_(pa.int32())),
        ("counts", pa.string()),
        ("error", pa.string()),
    ]
)
"""An answer: the question's row and item, image and expression; score in [0, 1]; area in pixels; bbox [x, y, width,
height] and point [x, y] in pixels; COCO's run lengths as size [H, W] and counts; or an error, and the rest null."""

# Readers of parquet folders pass over names that begin with an underscore or a dot.
RUN_FILE = "_run.json"
_PART, _FACTS, _READERS = "part-", b"promptris", 16


@dataclass(frozen=True)
class PartFacts:
    """What a part says about itself: the run, the shard's number and key, how many rows and errors it has."""

    run: str
    number: int
    key: str
    rows: int
    errors: int


class Results:
    """The folder of a batch's results, on any file system that pyarrow knows.

    Args:
        location: path or URI; made when something is written.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.system, self.path = filesystem(location)

    def begin(self, stamp: dict[str, Any], resume: bool) -> None:
        """Take the folder for a run, or take the run up that is in it.

        Args:
            stamp: what results depend on, as JSON values by the name a user knows them by.
            resume: whether there may be results of this very run.

        Raises:
            InputError: when the folder belongs to another run, or to something else, or cannot be written.
        """
        names, content = self._names(), (json.dumps(stamp, indent=1) + "\n").encode()
        if RUN_FILE not in names:
            if any(not name.startswith(".") for name in names):
                raise InputError(f"{self.location} has other files in it: give another --out")
            self._write(RUN_FILE, content)
            return
        before = self._stamp()
        if before != stamp and not any(name.startswith(_PART) for name in names):
            self._write(RUN_FILE, content)
            return
        other = [name for name in {**before, **stamp} if before.get(name) != stamp.get(name)]
        if other:
            raise InputError(
                f"the results in {self.location} are of a run that differs in {', '.join(other)} "
                f"({_differences(before, stamp, other)}): give another --out"
            )
        if not resume:
            raise InputError(f"{self.location} has results of this run: give another --out, or resume it")

    def _stamp(self) -> dict[str, Any]:
        try:
            with self.system.open_input_stream(f"{self.path}/{RUN_FILE}") as stream:
                stamp = json.loads(stream.read())
            if not isinstance(stamp, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise InputError(
                f"{self.location}/{RUN_FILE} is damaged ({error}): give another --out"
            ) from error
        except OSError as error:
            raise InputError(f"cannot read {self.location}: {first_line(error)}") from error
        return stamp

    def finished(self, run: str, keys: Sequence[str]) -> dict[int, PartFacts]:
        """The parts that are there and whole, by shard.

        Args:
            run: fingerprint of the run.
            keys: of its shards, by number.
        """
        there = set(self._names())
        wanted = [number for number in range(len(keys)) if part_name(number) in there]
        with ThreadPoolExecutor(_READERS) as pool:
            facts = pool.map(lambda number: self.facts(run, number, keys[number]), wanted)
            return {one.number: one for one in facts if one is not None}

    def facts(self, run: str, number: int, key: str) -> PartFacts | None:
        """What the part of a shard says; None where it is not there, damaged, or of something else."""
        try:
            with self.system.open_input_file(f"{self.path}/{part_name(number)}") as file:
                metadata = parquet.read_metadata(file)
            facts = PartFacts(**json.loads(metadata.metadata[_FACTS]))
        except (OSError, ValueError, KeyError, TypeError):  # also how a file cut off is told
            return None
        fits = (facts.run, facts.number, facts.key, facts.rows) == (run, number, key, metadata.num_rows)
        return facts if fits else None

    def write(self, run: str, number: int, key: str, answers: Sequence[dict[str, Any]]) -> PartFacts:
        """Write the part of a shard; one that is there is replaced.

        Raises:
            InputError: when it cannot be written.
        """
        errors = sum(answer["error"] is not None for answer in answers)
        facts = PartFacts(run, number, key, len(answers), errors)
        schema = ANSWERS.with_metadata({_FACTS: json.dumps(asdict(facts)).encode()})
        buffer = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(answers, schema), buffer, compression="zstd")
        self._write(part_name(number), buffer.getvalue())
        return facts

    def sweep(self) -> None:
        """Remove what killed writers have left behind."""
        for name in self._names():
            if name.startswith(".") and name.endswith(".partial"):
                with suppress(OSError):
                    self.system.delete_file(f"{self.path}/{name}")

    def errors(self, limit: int) -> list[tuple[str, str]]:
        """The first few (image, error) of the results, one per image."""
        from pyarrow import compute, dataset

        names = sorted(name for name in self._names() if name.startswith(_PART))
        table = dataset.dataset([f"{self.path}/{name}" for name in names], filesystem=self.system)
        rows = table.scanner(["image", "error"], filter=compute.field("error").is_valid(), use_threads=False)
        found: dict[str, str] = {}
        for batch in rows.to_batches():
            for image, error in zip(batch["image"].to_pylist(), batch["error"].to_pylist(), strict=True):
                found.setdefault(image or "", error)
                if len(found) == limit:
                    return list(found.items())
        return list(found.items())

    def _write(self, name: str, content: bytes | pa.Buffer) -> None:
        """All or nothing: written under another name, then renamed; an object store takes a whole object anyway."""
        partial = f"{self.path}/.{name}.{uuid.uuid4().hex[:12]}.partial"
        try:
            self.system.create_dir(self.path, recursive=True)
            with self.system.open_output_stream(partial) as stream:
                stream.write(content)
            self.system.move(partial, f"{self.path}/{name}")
        except OSError as error:
            with suppress(OSError):
                self.system.delete_file(partial)
            raise InputError(f"cannot write {self.location}/{name}: {first_line(error)}") from error

    def _names(self) -> list[str]:
        try:
            kind = self.system.get_file_info(self.path).type
            if kind == FileType.File:
                raise InputError(f"{self.location} is a file: give a folder for the results")
            if kind == FileType.NotFound:
                return []
            return [entry.base_name for entry in self.system.get_file_info(FileSelector(self.path))]
        except OSError as error:
            raise InputError(f"cannot read {self.location}: {first_line(error)}") from error


def part_name(number: int) -> str:
    """The file of a shard."""
    return f"{_PART}{number:06d}.parquet"


def _differences(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {before.get(name)} there, {now.get(name)} here" for name in names)
