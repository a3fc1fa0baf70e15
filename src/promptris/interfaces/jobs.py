"""What `promptris segment` is asked: images from files, folders, globs or standard input, and expressions."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptris.errors import InputError
from promptris.interfaces.terminal import say

STDIN = "-"
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""Files of a folder that are taken for images."""
LINE_EXAMPLE = '{"image": "photo.jpg", "expressions": ["the dog on the left"]}'


@dataclass(frozen=True)
class Job:
    """An image and what is asked about it."""

    image: str
    expressions: tuple[str, ...]


def find_jobs(image: str, expressions: Sequence[str], out: Path) -> tuple[Iterable[Job | InputError], int]:
    """What is to be done, and how many images that are: 0 where the end is not known.

    A line of standard input that is no job is the error to report.

    Raises:
        InputError: when there is no image or no expression.
    """
    if image == STDIN:
        if expressions:
            raise InputError("with '-' the expressions come from standard input, not from the command line")
        return _jobs_from_lines(sys.stdin.buffer), 0
    example = "for example 'the red circle'"
    if not expressions:
        raise InputError(f"no expression is given: say what to segment in {image}, {example}")
    for number, expression in enumerate(expressions, start=1):
        if problem := _problem_with(expression):
            raise InputError(f"expression {number} of {len(expressions)} {problem}: give words, {example}")
        if Path(expression).suffix.lower() in IMAGE_SUFFIXES and _is_file(expression):
            raise InputError(
                f"the expression {expression!r} is a file: put a glob in quotes, 'photos/*.jpg', so that the "
                "shell leaves it to promptris"
            )
    try:
        paths = find_images(image, out)
    except OSError as error:
        raise InputError(f"cannot read {image[:80]!r}: {error.strerror or error}") from error
    asked = tuple(expressions)
    return (Job(path, asked) for path in paths), len(paths)


def find_images(image: str, out: Path) -> list[str]:
    """The files that a path, folder or glob stands for, in the order of their names.

    Links whose target is gone are among them, so that they are told. What a glob finds below `out` is left out.

    Raises:
        InputError: when there are none, or a folder would get the results beside its own images.
    """
    path = Path(image)
    if path.is_dir():
        names = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and _is_item(p))
        found = [str(p) for p in names if not p.name.startswith(".")]
        if not found:
            raise InputError(f"the folder {image} holds no images (JPEG, PNG, WebP ...)")
        if path.resolve() == out.resolve():
            raise InputError(f"the results would land among the images in {image}: give another --out folder")
        return found
    if path.exists():
        return [image]
    if glob.has_magic(image):
        return _from_glob(image, out)
    raise InputError(f"there is no image, folder or glob {image!r}")


def _from_glob(pattern: str, out: Path) -> list[str]:
    results = out.resolve()
    folders: dict[Path, Path] = {}
    seen: set[Path] = set()
    found, left_out = [], 0
    # pathlib's glob takes no absolute patterns. Short ways come first: a folder that is linked into itself is found
    # over and over.
    for name in sorted(glob.iglob(pattern, recursive=True), key=lambda n: (n.count("/"), n)):  # noqa: PTH207
        path = Path(name)
        if not _is_item(path):
            continue
        folder = folders.setdefault(path.parent, path.parent.resolve())
        place = folder / path.name
        if folder == results or results in folder.parents:
            left_out += 1
        elif place not in seen:
            seen.add(place)
            found.append(name)
    if left_out and not found:
        raise InputError(
            f"{pattern!r} matches only files in {out}: the results go there, so give another --out"
        )
    if not found:
        raise InputError(f"no file matches {pattern!r}")
    if left_out:
        say(f"{left_out} files in {out} are left out, as the results go there")
    return sorted(found)


def _is_item(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())


def _jobs_from_lines(lines: Iterable[bytes]) -> Iterator[Job | InputError]:
    """Jobs from JSON lines as they come."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _job_from_line(line)
            except InputError as error:
                yield InputError(f"line {number} of standard input {error}; a line is {LINE_EXAMPLE}")


def _job_from_line(line: bytes) -> Job:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})") from error
    image = content.get("image") if isinstance(content, dict) else None
    expressions = content.get("expressions") if isinstance(content, dict) else None
    if not isinstance(image, str) or not image:
        raise InputError('has no "image" with a path')
    if not isinstance(expressions, list) or not expressions:
        raise InputError('has no "expressions" with a list of texts')
    for expression in expressions:
        if problem := _problem_with(expression):
            raise InputError(f"has an expression that {problem}")
    return Job(image, tuple(expressions))


def _problem_with(expression: object) -> str | None:
    """What keeps something from being an expression, as the end of a sentence."""
    if not isinstance(expression, str):
        return "is not text"
    if not expression.strip():
        return "is empty"
    try:
        expression.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode text"
    return None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a long expression is no possible file name
        return False
