"""The package's version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """As installed; "0+source" when run from a source folder that never was."""
    try:
        return version("promptris")
    except PackageNotFoundError:
        return "0+source"
