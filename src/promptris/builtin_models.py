"""Models that come with the package."""

from __future__ import annotations

from pathlib import Path

BUILT_IN_MODELS = ("tiny",)
ASSETS = Path(__file__).parent / "assets"

TINY_NOTE = "the built-in model knows RefShapes scenes only: on a photograph its masks mean nothing"
"""What must be said where "tiny" is asked about anything else."""


def builtin_folder(name: str | Path) -> Path | None:
    """The folder of a built-in model; None for any other name, and where something of that name lies here."""
    if str(name) not in BUILT_IN_MODELS or Path(name).exists():
        return None
    return ASSETS / str(name)
