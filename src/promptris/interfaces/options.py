"""Values of command-line options, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from re import match

from promptris.config import PromptName, check_prompt_names
from promptris.errors import InputError, MissingExtraError

TRAIN_DEVICES = ("auto", "cpu", "cuda", "mps")
"""Kinds of device that training takes."""


def parse_clicks(texts: Sequence[str]) -> list[tuple[float, float, int]]:
    """Clicks from "X,Y,LABEL" texts; whether they lie inside the image is seen later."""
    clicks = []
    for text in texts:
        parts = text.split(",")
        try:
            x, y, label = float(parts[0]), float(parts[1]), int(parts[2])
        except (ValueError, IndexError):
            label = -1
        if label not in (0, 1) or len(parts) != 3:
            raise InputError(
                f"--point {text!r} is not X,Y,LABEL: give pixels and a label of 1 (part of the referent) or 0, "
                "for example 120,80,1"
            )
        clicks.append((x, y, label))
    return clicks


def parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    """A box from "X,Y,WIDTH,HEIGHT"; None stays None, and whether it lies inside the image is seen later."""
    if text is None:
        return None
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        raise InputError(
            f"--box {text!r} is not X,Y,WIDTH,HEIGHT in pixels, for example 40,30,120,80"
        ) from None
    return x, y, width, height


def parse_prompts(text: str | None) -> tuple[PromptName, ...] | None:
    """SAM prompts from a comma list; None stays None, which means the model's own."""
    if text is None:
        return None
    names = check_prompt_names([name.strip() for name in text.split(",") if name.strip()])
    if not names:
        raise InputError("--prompts is empty: give at least one of mask, point, text")
    return names


def parse_splits(text: str) -> dict[str, int]:
    """Scenes per split from "train:2000,val:200"."""
    splits: dict[str, int] = {}
    for part in text.split(","):
        name, colon, count = (piece.strip() for piece in part.partition(":"))
        if not (name and colon and count.isascii() and count.isdigit()):
            raise InputError(
                f"--splits {text!r}: {part.strip()!r} is not NAME:SCENES, for example train:2000,val:200"
            )
        if name in splits:
            raise InputError(f"--splits {text!r} names {name!r} twice")
        splits[name] = int(count)
    return splits


def check_threshold(threshold: float) -> float:
    """The threshold itself; InputError unless it lies between 0 and 1."""
    if not 0 < threshold < 1:
        raise InputError(f"--threshold {threshold:g} must lie between 0 and 1, both left out")
    return threshold


def extras() -> dict[str, list[str]]:
    """The packages of every optional extra, from the installed package's own metadata."""
    found: dict[str, list[str]] = {}
    for line in _requirements():
        if parts := match(r"([A-Za-z0-9._-]+).*\bextra\s*==\s*['\"]([\w-]+)['\"]", line):
            package, extra = parts.groups()
            if package != "promptris":
                found.setdefault(extra, []).append(package)
    return found


def missing_packages(extra: str) -> list[str]:
    """Those packages of an extra that are not installed."""
    return [package for package in extras().get(extra, []) if installed_version(package) is None]


def require_extra(extra: str) -> None:
    """MissingExtraError, saying what to install, unless everything of an extra is there."""
    for package in missing_packages(extra):
        raise MissingExtraError(package, extra)


def installed_version(package: str) -> str | None:
    """A distribution's version; None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        return requires("promptris") or []
    except PackageNotFoundError:
        return []
