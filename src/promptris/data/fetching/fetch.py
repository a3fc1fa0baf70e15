"""`promptris data fetch`: data sets from the addresses in sources.yaml, resumed, verified, unpacked safely."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from promptris.data.fetching.archives import extract, move_in_place
from promptris.data.fetching.download import (
    Download,
    FetchProgress,
    Patience,
    ProgressCallback,
    RemoteFile,
    download,
)
from promptris.data.paths import with_home
from promptris.errors import InputError

DOWNLOADS = "downloads"
_DIGITS = {"sha256": 64, "md5": 32}

Status = Literal["downloaded", "unpacked", "already there", "found in place"]


@dataclass(frozen=True)
class Gives:
    """What must be there in the end: `files`, or `count` files ending in `suffix` in one of `folders`."""

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    count: int = 0
    suffix: str = ""

    def missing(self, root: Path) -> str:
        """The first thing that is not there, in words; "" if nothing is missing."""
        for path in self.files:
            if not (root / path).is_file() or not (root / path).stat().st_size:
                return path
        if self.folders and not any(self._holds(root / folder) for folder in self.folders):
            return f"{self.count} files {self.suffix} in {self.folders[0]}"
        return ""

    def _holds(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(self.suffix) for entry in entries) >= self.count


@dataclass(frozen=True)
class SourceFile:
    """One download: a zip that is unpacked below `unpack_to`, or a plain file that goes to `place_at`."""

    remote: RemoteFile
    published: bool
    published_at: tuple[str, ...]
    unpack_to: str | None
    top_folder: str | None
    unpacked_limit: int | None
    place_at: str | None
    gives: Gives

    @property
    def name(self) -> str:
        return self.remote.name

    def identity(self) -> dict[str, Any]:
        """What makes this the same file, so that new addresses of a file with a hash mean no new download."""
        return {
            "name": self.name,
            "size": self.remote.size,
            "hashes": self.remote.hashes,
            "urls": [] if self.remote.hashes else list(self.remote.urls),
            "where": self.unpack_to if self.place_at is None else self.place_at,
        }


@dataclass(frozen=True)
class Source:
    """An entry of the list of sources; `images` names the entry with its images, if they are shared."""

    name: str
    about: str
    homepage: str
    licence: str
    images: str | None
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class FileReport:
    """What was done about one file.

    received: bytes that came over the network in this run; resumed_from: the byte at which they continue an
    earlier run. checked: the hashes that were right, ("size",) or (). written, kept: files unpacked now, and
    files that were there with the same content.
    """

    name: str
    status: Status
    received: int = 0
    resumed_from: int = 0
    url: str | None = None
    checked: tuple[str, ...] = ()
    written: int = 0
    kept: int = 0

    @property
    def sentence(self) -> str:
        """One line for people."""
        if self.status == "already there":
            return f"{self.name}: already there, nothing to do ({self.verdict})"
        if self.status == "found in place":
            return f"{self.name}: what it holds is already in place and was not downloaded here: not checked"
        how = f"{self.received} bytes downloaded" if self.status == "downloaded" else "was downloaded before"
        if self.resumed_from:
            how += f", continued at byte {self.resumed_from}"
        unpacked = ""
        if self.written or self.kept:
            unpacked = f"; {self.written} file{'s' * (self.written != 1)} unpacked"
            unpacked += f", {self.kept} kept" if self.kept else ""
        return f"{self.name}: {how}; {self.verdict}{unpacked}"

    @property
    def verdict(self) -> str:
        """How far the file is known to be the right one."""
        if self.checked == ("size",):
            return "no published hash is known: only its size was checked"
        if not self.checked:
            return "no published hash or size is known: not checked"
        return f"{' and '.join(self.checked)} as published"


@dataclass(frozen=True)
class FetchReport:
    """What was done about a data set, file by file."""

    name: str
    data_root: Path
    files: tuple[FileReport, ...]

    @property
    def nothing_to_do(self) -> bool:
        return all(file.status in ("already there", "found in place") for file in self.files)


def read_sources(path: str | Path | None = None) -> dict[str, Source]:
    """The list of sources by name: the package's own, or a YAML file in the same form.

    InputError naming the file, the entry and the field if it is not in that form: unknown or missing fields,
    addresses that are not http or https, paths that lead out of the data root, malformed hashes.
    """
    import yaml

    if path is None:
        where = "sources.yaml"
        text = resources.files("promptris.data.fetching").joinpath(where).read_text(encoding="utf-8")
    else:
        where = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the list of sources {where}: {error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"list of sources {where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"list of sources {where} is not a mapping from data set names to entries")
    found = {str(name): _source(str(name), entry, where) for name, entry in content.items()}
    for source in found.values():
        if source.images is not None and source.images not in found:
            raise InputError(f"{where}, {source.name}: images names {source.images!r}, which is no entry")
    seen: dict[str, str] = {}
    for source in found.values():
        for file in source.files:
            if file.name in seen:
                raise InputError(
                    f"{where}: {seen[file.name]} and {source.name} both have a file {file.name!r}"
                )
            seen[file.name] = source.name
    return found


def fetch(
    name: str,
    data_root: str | Path,
    sources: str | Path | None = None,
    with_images: bool = True,
    progress: ProgressCallback | None = None,
    *,
    patience: Patience | None = None,
) -> FetchReport:
    """Download a data set into `data_root`, in the layout that `read_refer` expects.

    name: refcoco, refcoco+, refcocog, grefcoco or coco-train2014, or an entry of the file `sources`.
    with_images: bring the images too. progress: called with a FetchProgress now and then.

    Downloads are kept in data_root/downloads. A run that was interrupted is continued by the next; when all is
    there nothing is done. Files that came in place in another way are left alone and reported as such.

    InputError with one sentence: an unknown name, a file that no address gives as it should be, an archive
    that is refused, a full disk, another fetch at work in the same folder.
    """
    root = with_home(data_root)
    known = read_sources(sources)
    if name not in known:
        hint = "; RefShapes is not downloaded: run  promptris refshapes DIR" if name == "refshapes" else ""
        raise InputError(
            f"there is no source for data set {name!r}; sources are known for {', '.join(known)}{hint}"
        )
    source = known[name]
    files = list(source.files)
    if with_images and source.images is not None:
        files += known[source.images].files
    report = progress or (lambda _: None)
    try:
        with _alone(root / DOWNLOADS):
            done = tuple(_fetch_file(file, root, report, patience or Patience()) for file in files)
    except OSError as error:
        raise InputError(f"cannot write below {root}: {error}") from error
    return FetchReport(name, root, done)


def _fetch_file(file: SourceFile, root: Path, progress: ProgressCallback, patience: Patience) -> FileReport:
    folder = root / DOWNLOADS
    marker = folder / f"{file.name}.done.json"
    if marker.exists():
        checked = _all_there(marker, file, root)
        if checked is not None:
            return FileReport(file.name, "already there", checked=checked)
    elif not (folder / file.name).exists() and not file.gives.missing(root):
        return FileReport(file.name, "found in place")
    got = download(file.remote, folder, patience=patience, progress=progress)
    report = FileReport(
        file.name,
        "unpacked" if got.url is None else "downloaded",
        received=got.received,
        resumed_from=got.resumed_from,
        url=got.url,
        checked=got.checked,
    )
    if file.place_at is not None:
        # The marker first: killed in between, the next run finds the download and moves it.
        _write_marker(marker, file, got, {file.place_at: got.path.stat().st_size})
        move_in_place(got.path, root / file.place_at)
        return report
    target = root / (file.unpack_to or ".")
    unpacked = extract(
        got.path,
        target,
        only=file.top_folder,
        max_bytes=file.unpacked_limit,
        progress=lambda done, total: progress(FetchProgress(file.name, "unpack", done, total)),
    )
    missing = file.gives.missing(root)
    if missing:
        raise InputError(
            f"{got.path} was unpacked into {target}, but {missing} did not come out of it: it is not the file that "
            "is expected"
        )
    below = PurePosixPath(file.unpack_to or ".")
    _write_marker(marker, file, got, {str(below / path): size for path, size in unpacked.files.items()})
    return replace(report, written=unpacked.written, kept=unpacked.kept)


def _all_there(marker: Path, file: SourceFile, root: Path) -> tuple[str, ...] | None:
    """What was checked when the marker was written, or None if the file is to be fetched (again)."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        whole = content["source"] == file.identity() and all(
            (root / path).is_file() and (root / path).stat().st_size == size
            for path, size in content["files"].items()
        )
        return tuple(content["checked"]) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError):
        # A marker cut short by a full disk says nothing.
        return None


def _write_marker(marker: Path, file: SourceFile, got: Download, files: dict[str, int]) -> None:
    content = {"source": file.identity(), "checked": list(got.checked), "files": files}
    fresh = marker.with_name(f"{marker.name}.new")
    fresh.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    fresh.replace(marker)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two runs that append to one .part would spoil it, so the second is told to wait."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another fetch is at work in {folder}; wait until it is done") from None


class _Fields:
    """Takes fields out of one entry, and names the entry and the field when something is wrong."""

    def __init__(
        self, content: Any, where: str, required: set[str], optional: set[str] | None = None
    ) -> None:
        self.where = where
        if not isinstance(content, dict):
            raise InputError(f"{where} is not a mapping of fields")
        self.content = content
        if missing := required - content.keys():
            raise InputError(f"{where} has no field {min(missing)!r}")
        if unknown := content.keys() - required - (optional or set()):
            raise InputError(f"{where} has an unknown field {min(map(str, unknown))!r}")

    def fail(self, field: str, why: str) -> InputError:
        return InputError(f"{self.where}: {field} {self.content.get(field)!r} {why}")

    def text(self, field: str) -> str:
        value = self.content[field]
        if not isinstance(value, str) or not value.strip():
            raise self.fail(field, "is not a text")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        value = self.content.get(field, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.fail(field, "is not a list of texts")
        return tuple(value)

    def number(self, field: str) -> int | None:
        value = self.content.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
            raise self.fail(field, "is not a number of bytes or files above 0")
        return value

    def path(self, field: str) -> str:
        value = self.text(field)
        if not _stays_below(value):
            raise self.fail(field, "is not a path below the data root")
        return value

    def paths(self, field: str) -> tuple[str, ...]:
        values = self.texts(field)
        if not all(_stays_below(value) for value in values):
            raise self.fail(field, "has a path that is not below the data root")
        return values


def _stays_below(path: str) -> bool:
    return not (path.startswith("/") or re.search(r"[\\:\0]", path) or ".." in path.split("/"))


def _source(name: str, entry: Any, where: str) -> Source:
    fields = _Fields(entry, f"{where}, {name}", {"about", "homepage", "licence", "files"}, {"images"})
    listed = fields.content["files"]
    if not isinstance(listed, list) or not listed:
        raise fields.fail("files", "is not a list with at least one file")
    files = tuple(
        _source_file(item, f"{where}, {name}, file {number}") for number, item in enumerate(listed, 1)
    )
    images = None if fields.content.get("images") is None else fields.text("images")
    return Source(name, fields.text("about"), fields.text("homepage"), fields.text("licence"), images, files)


def _source_file(content: Any, where: str) -> SourceFile:
    required = {"name", "urls", "size", "sha256", "md5", "verified", "gives"}
    zipped = {"unpack_to", "top_folder", "unpacked_limit"}
    fields = _Fields(content, where, required, zipped | {"place_at", "published_at"})
    name = fields.text("name")
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise fields.fail("name", "may only have letters, digits and _ . + -")
    urls = fields.texts("urls")
    if not urls or not all(re.match(r"https?://[^/\s]+/\S", url) for url in urls):
        raise fields.fail("urls", "is not a list of http or https addresses")
    hashes = {}
    for kind, digits in _DIGITS.items():
        value = content[kind]
        if value is None:
            continue
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", str(value)):
            raise fields.fail(kind, f"does not have {digits} hex digits")
        hashes[kind] = str(value).lower()
    size, verified = fields.number("size"), fields.text("verified")
    if verified not in ("published", "unknown"):
        raise fields.fail("verified", "is neither published nor unknown")
    if verified == "published" and (size is None or not hashes or not fields.texts("published_at")):
        raise fields.fail("verified", "needs a size, a hash and published_at")
    placed = "place_at" in content
    if placed == ("unpack_to" in content) or (placed and content.keys() & zipped):
        raise InputError(f"{where} needs either unpack_to (for a zip) or place_at (for a plain file)")
    return SourceFile(
        remote=RemoteFile(name, urls, size, hashes),
        published=verified == "published",
        published_at=fields.texts("published_at"),
        unpack_to=None if placed else fields.path("unpack_to"),
        top_folder=fields.path("top_folder") if "top_folder" in content else None,
        unpacked_limit=fields.number("unpacked_limit"),
        place_at=fields.path("place_at") if placed else None,
        gives=_gives(fields),
    )


def _gives(fields: _Fields) -> Gives:
    content = fields.content["gives"]
    if isinstance(content, list) and content:
        return Gives(files=fields.paths("gives"))
    inner = _Fields(content, f"{fields.where}, gives", {"folder", "count", "suffix"}, {"also_in"})
    folders = (inner.path("folder"), *inner.paths("also_in"))
    return Gives(folders=folders, count=inner.number("count") or 1, suffix=inner.text("suffix"))
