"""Looking at files and folders that may not be there, may be closed to us, or may have no possible name."""

from __future__ import annotations

import os
from pathlib import Path

from promptris.errors import InputError


def is_file(path: str | Path) -> bool:
    """Whether there is a file; False too where nobody can tell, as under a name that is too long."""
    return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises in those cases)


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder; False too where nobody can tell."""
    return os.path.isdir(path)  # noqa: PTH112  (Path.is_dir raises in those cases)


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; InputError naming it if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"cannot list the folder {folder}: {error.strerror or error}") from error


def file_names(folder: Path) -> set[str]:
    """Names of the files in a folder, links to files included; InputError naming it if it cannot be listed."""
    # Listing tells files from folders; only links have to be looked at one by one.
    return {
        entry.name
        for entry in listed(folder)
        if entry.is_file(follow_symlinks=False) or (entry.is_symlink() and is_file(entry.path))
    }


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The files in a folder with one of the suffixes, sorted; none where there is no such folder.

    Raises:
        InputError: naming the folder if it cannot be listed.
    """
    names = file_names(folder) if is_folder(folder) else set()
    return [folder / name for name in sorted(names) if name.lower().endswith(suffixes)]


def with_home(path: str | Path) -> Path:
    """The path with a leading ~ replaced, as a shell does where it sees it; unchanged without such a home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises without a home)
