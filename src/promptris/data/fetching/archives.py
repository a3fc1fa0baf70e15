"""Unpacking downloaded zip archives without trusting them: no path out of the target, no link, no bomb."""

from __future__ import annotations

import copy
import errno
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from promptris.errors import InputError

_CHUNK = 1 << 20
_DRIVE = re.compile(r"^[A-Za-z]:")
# The others inflate a whole block at once, whatever was declared; none of the sources uses them.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class ExtractReport:
    """What an archive became: `files` maps each path below `target` (with "/") to its size in bytes.

    written: files that were unpacked now; kept: files that were already there with the same content;
    skipped: members outside the folder that was asked for.
    """

    archive: Path
    target: Path
    files: dict[str, int]
    written: int
    kept: int
    skipped: int


def extract(
    archive: str | Path,
    target: str | Path,
    *,
    only: str | None = None,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExtractReport:
    """Unpack a zip archive below `target`, which is made if it is missing.

    only: top folder of the archive to unpack; members elsewhere are left out. max_bytes: the most that the
    members may declare together. progress: called with (bytes done, bytes in all).

    Every name is checked before the first byte is written. Each member goes into a hidden folder in `target`,
    its size and checksum are compared, and then it is moved in place in one step, so a file is either whole or
    absent and an interrupted run is finished by the next. A file that is there with the same size and checksum
    is kept; one that differs is replaced.

    InputError naming the archive, and the member if one is at fault: no zip, damaged, encrypted, a path that
    is absolute or leads out of the target, a link or device, two members with one name, more data than
    `max_bytes`, the disk or the member's own declaration allows.
    """
    archive, target = Path(archive), Path(target)
    if not archive.is_file():
        raise InputError(f"archive {archive} is not a file")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(archive, opened)
            wanted = {
                path: info for path, info in members.items() if only is None or path.split("/", 1)[0] == only
            }
            skipped = len(members) - len(wanted)
            total = _check_space(archive, target, wanted, max_bytes)
            written = _unpack(archive, opened, wanted, target, total, progress)
    except _DAMAGE as error:
        raise InputError(
            f"archive {archive} is damaged or no zip file ({error}); download it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot unpack {archive} into {target}: {error}") from error
    files = {path: info.file_size for path, info in wanted.items()}
    return ExtractReport(archive, target, files, written, len(wanted) - written, skipped)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds the folder, or would hold it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def move_in_place(source: Path, final: Path) -> None:
    """Rename a whole file to its place in one step, also where the place is on another disk."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder that links to another disk: the last step must be a rename on that disk.
        beside = final.with_name(f".{final.name}.moving")
        try:
            shutil.copyfile(source, beside)
            beside.replace(final)
        finally:
            beside.unlink(missing_ok=True)
        source.unlink()


def _checked_members(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Files by their normal path, in the archive's order; InputError naming the first that is refused."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for info in opened.infolist():
        # ZipInfo cuts `filename` at a NUL and turns the system's separators; the raw name hides nothing.
        name = info.orig_filename
        parts = [part for part in name.split("/") if part not in ("", ".")]
        path = "/".join(parts)
        reason = _reason_to_refuse(name, parts, info)
        if not reason and path in members:
            reason = "comes twice"
        if reason:
            raise InputError(
                f"archive {archive} is refused: its member {name!r} {reason}; nothing was unpacked"
            )
        folders.update(str(folder) for folder in PurePosixPath(path).parents)
        if info.is_dir():
            folders.add(path)
        else:
            members[path] = info
    for path in members:
        if path in folders:
            raise InputError(
                f"archive {archive} is refused: its member {path!r} is a file and a folder; nothing was unpacked"
            )
    return members


def _reason_to_refuse(name: str, parts: list[str], info: zipfile.ZipInfo) -> str:
    if "\0" in name:
        return "has a NUL in its name"
    if "\\" in name:
        return "has a backslash in its path"
    if name.startswith("/"):
        return "has an absolute path"
    if any(_DRIVE.match(part) for part in parts):
        return "has a drive letter in its path"
    if ".." in parts:
        return "leads out of the folder by '..'"
    if not parts:
        return "has no name"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is neither a file nor a folder"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is packed by method {info.compress_type}, which is neither stored nor deflated"
    return ""


def _check_space(
    archive: Path, target: Path, members: dict[str, zipfile.ZipInfo], max_bytes: int | None
) -> int:
    """The bytes that the members declare together; InputError if the limit or the disk is too small."""
    total = sum(info.file_size for info in members.values())
    if max_bytes is not None and total > max_bytes:
        largest = max(members, key=lambda path: members[path].file_size)
        raise InputError(
            f"archive {archive} is refused: its members declare {total} bytes, the largest is {largest!r}, but at "
            f"most {max_bytes} are expected; nothing was unpacked"
        )
    needed = sum(
        info.file_size for path, info in members.items() if not _same_size(target / path, info.file_size)
    )
    free = free_bytes(target)
    if needed > free:
        raise InputError(
            f"archive {archive} needs {needed} more bytes in {target}, but only {free} are free there; make room "
            "and run again"
        )
    return total


def _unpack(
    archive: Path,
    opened: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    target: Path,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    stage = target / f".{archive.name}.unpacking"
    stage.mkdir(parents=True, exist_ok=True)
    written = done = 0
    try:
        for path, info in members.items():
            final = target / path
            if final.is_dir():
                raise InputError(f"{final} is a folder, but archive {archive} has a file there; move it away")
            if not (_same_size(final, info.file_size) and _crc_of(final) == info.CRC):
                _unpack_one(archive, opened, info, path, stage / "member")
                move_in_place(stage / "member", final)
                written += 1
            done += info.file_size
            if progress is not None:
                progress(done, total)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return written


def _unpack_one(
    archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: str, staged: Path
) -> None:
    # zipfile would cut a longer member at the declared size; with room for one byte more it shows.
    roomy = copy.copy(info)
    roomy.file_size += 1
    try:
        with opened.open(roomy) as source, staged.open("wb") as out:
            count = _copy(source, out, info.file_size)
    except _DAMAGE as error:
        raise InputError(
            f"archive {archive} is damaged at its member {path!r} ({error}); download it again"
        ) from error
    if count != info.file_size:
        raise InputError(
            f"archive {archive} is damaged: its member {path!r} declares {info.file_size} bytes and holds "
            f"{'more' if count > info.file_size else count}; download it again"
        )


def _copy(source: IO[bytes], out: IO[bytes], declared: int) -> int:
    """Bytes that were read; no more than `declared` are written."""
    count = 0
    while chunk := source.read(_CHUNK):
        count += len(chunk)
        if count > declared:
            break
        out.write(chunk)
    return count


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
