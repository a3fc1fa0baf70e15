"""Errors that a user can act on: each message is one sentence that names the input and what to do."""

from __future__ import annotations


class PromptRISError(Exception):
    """Base of every error the package raises on purpose; the command line prints it without a traceback."""


class InputError(PromptRISError):
    """Unreadable or wrong input: a file, an expression, an option, a data set."""


class WeightsError(PromptRISError):
    """Weights that do not fit: wrong architecture, missing or extra keys, a content hash that differs."""


class ExportError(PromptRISError):
    """An exported graph that does not do what the model does."""


class MissingExtraError(PromptRISError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: install it with  pip install 'promptris[{extra}]'")
