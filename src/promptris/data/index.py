"""The index of a data set: its columns in one file that is mapped into memory, and rebuilt when stale.

The file is in safetensors form, so other programs can open it too. It lies beside the data, or in the user's
cache folder where the data cannot be written. Annotation files that parse in no time get none.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptris.data.columns import Columns
from promptris.data.paths import with_home

FORMAT = "promptris-index-2"
"""Changes whenever the columns do; an index of another format is rebuilt."""
FOLDER = ".promptris"
WORTH_INDEXING = 4_000_000
"""Bytes of annotation files from which on an index is kept."""

Notify = Callable[[str], None]


def silent(_: str) -> None:
    """Where nobody wants to be told."""


def open_or_build(
    sources: Sequence[Path], stem: str, build: Callable[[], Columns], notify: Notify = silent
) -> Columns:
    """The columns of a data set, from its index when that is fresh.

    Args:
        sources: annotation files that `build` reads; an index is fresh while their names, sizes and times of
            change are what they were. The index lies beside the first.
        stem: name of the index among those beside the same files.
        build: reads the sources. What it returns is not kept when its facts have "unsettled": something that
            is broken now may be mended without a change of the sources.
        notify: told in one sentence when an index is built.

    An index that is damaged, stale or of an older version is rebuilt; one that cannot be written anywhere is
    done without.
    """
    key = _key(sources)
    if sum(size for _, size, _ in key["sources"]) < WORTH_INDEXING:
        return build()
    places = _places(sources[0], stem)
    for place in places:
        if (columns := _open(place, key)) is not None:
            return columns
    notify(f"reading {sources[0].parent} for the first time and indexing it")
    columns = build()
    for place in places if not columns.facts.get("unsettled") else ():
        if _save(columns, place, key):
            return _open(place, key) or columns
    return columns


def _key(sources: Sequence[Path]) -> dict[str, Any]:
    beside = sources[0].parent
    stats = [(os.path.relpath(source, beside), source.stat()) for source in sources]
    return {"format": FORMAT, "sources": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}


def _places(source: Path, stem: str) -> list[Path]:
    """Where the index may be: beside the data, then in the user's cache, where there is one."""
    name = f"{stem}.safetensors"
    places = [source.parent / FOLDER / name]
    where = hashlib.sha256(str(source.parent.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:20]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or with_home("~/.cache"))
    if cache.is_absolute():  # without a home it is not
        places.append(cache / "promptris" / "indexes" / where / name)
    return places


def _save(columns: Columns, place: Path, key: dict[str, Any]) -> bool:
    from safetensors.numpy import save

    content = save(columns.arrays(), {"key": json.dumps(key), "facts": json.dumps(columns.facts)})
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not by tempfile, whose files nobody else may read: people share data sets.
        partial = place.with_name(f"{place.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("xb") as file:
                file.write(content)
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError:
        return False
    return True


def _open(place: Path, key: dict[str, Any]) -> Columns | None:
    """The mapped columns; None when there are none, or not those of `key`."""
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks the header against the file before anything is mapped by it.
        with safe_open(place, "numpy") as file:
            metadata = file.metadata() or {}
        if json.loads(metadata["key"]) != key:
            return None
        arrays = _mapped(place)
        return Columns(**arrays, facts=json.loads(metadata["facts"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


_DTYPES = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "U8": np.uint8}


def _mapped(place: Path) -> dict[str, Any]:
    """Views of the tensors in a safetensors file, which are read from disk as they are touched."""
    data = np.memmap(place, dtype=np.uint8, mode="r")
    header_size = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + header_size].tobytes())
    body = np.asarray(data)[8 + header_size :]
    return {
        name: body[slice(*entry["data_offsets"])].view(np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<"))
        for name, entry in header.items()
        if name != "__metadata__"
    }
