"""A scene that no page offers, and the built-in model."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import promptris
from promptris.data.refshapes import Example, make_example
from promptris.predictor import Predictor


@pytest.fixture(scope="session")
def tiny() -> Predictor:
    """The built-in model; what is set on it by one test is not relied on by another."""
    return promptris.load("tiny")


@pytest.fixture(scope="session")
def scene() -> Example:
    """A RefShapes scene."""
    return make_example(seed=5, index=2)


@pytest.fixture(scope="session")
def scene_file(scene: Example, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The scene as a PNG."""
    path = tmp_path_factory.mktemp("scenes") / "shapes.png"
    Image.fromarray(scene.image).save(path)
    return str(path)


@pytest.fixture(scope="session")
def opened_mask() -> Callable[[bytes], NDArray[np.bool_]]:
    """Reads a downloaded mask, which must be a 1-bit PNG."""

    def opened(content: bytes) -> NDArray[np.bool_]:
        picture = Image.open(io.BytesIO(content))
        assert (picture.format, picture.mode) == ("PNG", "1")
        return np.asarray(picture)

    return opened
