"""Converted encoders on disk, by the content of the weights that they were made from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from promptris.errors import InputError
from promptris.modeling.content_hash import content_hash
from promptris.modeling.prompt_ris import PromptRIS

CONVERSION = 1
"""Changes when the graphs that are converted do."""


def converted(
    model: PromptRIS,
    engine: str,
    version: str,
    convert: Callable[[Path], None],
    notify: Callable[[str], None],
) -> Path:
    """The folder of the converted encoder; made now if it is not there.

    Args:
        model: its SAM's image encoder is what is converted.
        engine: for whom.
        version: of the engine; another one converts anew.
        convert: writes into a folder.
        notify: told when there is something to convert.

    Raises:
        InputError: when the folder cannot be written.
    """
    key = content_hash(model.sam.sam.vision_encoder)[:16]
    folder = cache_folder() / f"{engine}-{version}-{CONVERSION}-{key}"
    if folder.is_dir():
        return folder
    notify(f"converting SAM's image encoder for {engine}, once for these weights (kept in {folder})")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    except OSError as error:
        raise InputError(
            f"cannot write to {folder.parent} ({error.strerror or error}): set XDG_CACHE_HOME to a folder that can "
            "be written, or choose --engine torch"
        ) from error
    try:
        convert(partial)
        with suppress(FileExistsError, NotADirectoryError):
            partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # somebody else may have been faster
            raise InputError(
                f"cannot write to {folder.parent}: {error.strerror or error}; choose --engine torch, or make room"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """Where converted encoders are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "promptris" / "engines"
