"""The REST application with the built-in model, and a scene it knows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptris.data.refshapes import WorldOptions, make_example
from promptris.predictor import Predictor, load

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from promptris.serving.app import create_app
from promptris.serving.settings import ServerSettings


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class SceneFile:
    """A RefShapes scene as a PNG, with expressions about it."""

    pixels: np.ndarray
    png: bytes
    expressions: tuple[str, ...]

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


def make_scene(index: int) -> SceneFile:
    example = make_example(5, index, WorldOptions(size=128))
    texts = dict.fromkeys(description.text for description in example.descriptions)
    return SceneFile(example.image, file_of(Image.fromarray(example.image)), tuple(texts))


@pytest.fixture(scope="session")
def as_file() -> Callable[..., bytes]:
    """Writes a picture: as_file(image, format="PNG", ...) gives the bytes of the file."""
    return file_of


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return load("tiny")


@pytest.fixture(scope="session")
def scenes() -> list[SceneFile]:
    return [make_scene(index) for index in range(4)]


@pytest.fixture(scope="session")
def scene(scenes: list[SceneFile]) -> SceneFile:
    return scenes[0]


@pytest.fixture
def serve(predictor: Predictor) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of an application; keyword arguments are settings."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            app = create_app(predictor, ServerSettings(**settings))
            # Unexpected errors become a response here as they do in a server.
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@pytest.fixture
def refused() -> Callable[..., str]:
    """Checks that a response is a status with one plain sentence, which holds some words; returns the sentence."""

    def check(response: Any, status: int, *words: str) -> str:
        assert response.status_code == status, response.text
        content = response.json()
        assert set(content) == {"error"}
        sentence: str = content["error"]
        assert sentence and "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 400
        for word in words:
            assert word in sentence
        return sentence

    return check
