"""Where images and tables lie: paths, http(s), and whatever file systems pyarrow knows (s3, gs, hdfs ...)."""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from pathlib import Path

import certifi
import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowInvalid, ArrowNotImplementedError
from pyarrow.fs import FileSystem, LocalFileSystem

from promptris.errors import InputError
from promptris.images import load_image

MAX_BYTES = 256 << 20
"""Larger image files are refused: no picture of `images.MAX_PIXELS` pixels needs more."""

# Two letters at least: one and a colon is a drive of Windows.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_TIMEOUT, _FIRST_WAIT, _LONGEST_WAIT = 30.0, 0.5, 15.0
_COME_BACK_LATER = (408, 425, 429, 500, 502, 503, 504)

_filesystems: dict[str, FileSystem] = {}


class _PassingError(Exception):
    """May go better next time."""


def is_uri(name: str) -> bool:
    """Whether a name says by which means it is reached."""
    return _SCHEME.match(name) is not None


def absolute(name: str, folder: str) -> str:
    """Where a name leads that stands in a file of this folder: a path or a URI."""
    if is_uri(name) or Path(name).is_absolute():
        return name
    return f"{folder.rstrip('/')}/{name}" if is_uri(folder) else str(Path(folder) / name)


def filesystem(location: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        InputError: for an address of an unknown kind, or one that cannot be reached.
    """
    path = _local_path(location)
    if path is not None:
        return LocalFileSystem(), str(path.absolute())
    try:
        return FileSystem.from_uri(location)
    except (ArrowInvalid, ArrowNotImplementedError, ImportError) as error:
        raise InputError(f"{location} is no address that can be reached: {first_line(error)}") from error
    except OSError as error:
        raise InputError(f"cannot reach {location}: {first_line(error)}") from error


def read_image(location: str, retries: int) -> NDArray[np.uint8]:
    """The RGB pixels [H, W, 3] at a path or URI.

    Args:
        location: path or URI.
        retries: how often a remote address is tried again that does not answer, or asks to come back later.

    Raises:
        InputError: when it cannot be read or is no image; the message names the location.
    """
    path = _local_path(location)
    if path is not None:
        return load_image(path)
    content = fetch(location, retries)
    try:
        return load_image(content)
    except InputError as error:
        raise InputError(str(error).replace("the given bytes", location)) from error


def fetch(uri: str, retries: int) -> bytes:
    """The bytes at a URI.

    Raises:
        InputError: when it cannot be read, or is longer than `MAX_BYTES`.
    """
    read = _read_http if uri.lower().startswith(("http://", "https://")) else _read_filesystem
    wait = _FIRST_WAIT
    for tries in range(1, retries + 2):
        try:
            content = read(uri)
            break
        except _PassingError as error:
            if tries > retries:
                raise InputError(f"cannot read {uri}: {error} (tried {tries} times)") from error
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{uri} has more than the {MAX_BYTES >> 20} MiB that are accepted: make it smaller first"
        )
    return content


def _local_path(location: str) -> Path | None:
    if not is_uri(location):
        return Path(location)
    if location[:7].lower() != "file://":
        return None
    parts = urllib.parse.urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{location} lies on another machine: give file:/// and the whole path")
    return Path(urllib.request.url2pathname(parts.path))


def _read_http(uri: str) -> bytes:
    try:
        request = urllib.request.Request(
            uri, headers={"User-Agent": "promptris", "Accept": "image/*,*/*;q=0.5"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=_tls()) as answer:
            content: bytes = answer.read(MAX_BYTES + 1)
            return content
    except urllib.error.HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
        if error.code in _COME_BACK_LATER:
            raise _PassingError(reason) from error
        raise InputError(f"cannot read {uri}: {reason}") from error
    except urllib.error.URLError as error:
        raise _PassingError(str(error.reason)) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise InputError(f"{uri} is no address that can be reached: {first_line(error)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _PassingError(first_line(error)) from error


def _read_filesystem(uri: str) -> bytes:
    try:
        made, path = FileSystem.from_uri(uri)
    except (ArrowInvalid, ArrowNotImplementedError, ImportError) as error:
        raise InputError(f"{uri} is no address that can be reached: {first_line(error)}") from error
    except OSError as error:
        raise _PassingError(first_line(error)) from error
    # One per bucket, so that its connections are used again.
    system = _filesystems.setdefault("/".join(uri.split("/", 3)[:3]), made)
    try:
        with system.open_input_stream(path) as stream:
            content: bytes = stream.read(MAX_BYTES + 1)
            return content
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"there is no image at {uri}") from None
    except PermissionError as error:
        raise InputError(f"{uri} may not be read: {first_line(error)}") from error
    except OSError as error:
        raise _PassingError(first_line(error)) from error


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Some builds of Python come without the system's certificates.
    context.load_verify_locations(certifi.where())
    return context


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
