"""Plain paths: the same numbers by operations that any runtime knows, for graphs that leave torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_within = threading.local()


@contextmanager
def plain_paths() -> Iterator[None]:
    """While this lasts, this thread computes without this machine's own shortcuts.

    Those are oneDNN's products and loops that write into a result piece by piece: faster here, and nothing that a
    recorded graph could hold. Results differ by rounding.
    """
    before = plain_wanted()
    _within.plain = True
    try:
        yield
    finally:
        _within.plain = before


def plain_wanted() -> bool:
    """Whether `plain_paths` lasts in this thread."""
    return getattr(_within, "plain", False)
