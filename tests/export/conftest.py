"""Shapes are checked everywhere but while graphs are recorded, whose sizes are symbols."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import pytest


@pytest.fixture(scope="session")
def without_shape_checks():
    """A context manager."""

    @contextmanager
    def unchecked() -> Iterator[None]:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return unchecked
