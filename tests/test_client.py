"""The client against a real server on a loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from promptris import client as client_module
from promptris.client import Client, RefusedError, RemotePrediction, ServerBusyError, ServerError
from promptris.data.refshapes import WorldOptions, make_example
from promptris.errors import InputError
from promptris.predictor import load

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

KEY = "key-of-the-test"


@pytest.fixture(scope="module")
def predictor():
    return load("tiny")


@pytest.fixture(scope="module")
def scene():
    example = make_example(5, 1, WorldOptions(size=128))
    return example.image, list(dict.fromkeys(d.text for d in example.descriptions))[:3]


@pytest.fixture(scope="module")
def address(predictor) -> Iterator[str]:
    """A server in a thread of its own, with a key."""
    from promptris.interfaces.serve import listen
    from promptris.serving.app import create_app
    from promptris.serving.settings import ServerSettings

    app = create_app(predictor, ServerSettings(api_key=KEY, max_pixels=200_000, note="a note"))
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def client(address) -> Iterator[Client]:
    with Client(address, KEY) as made:
        yield made


def same(got, own):
    assert isinstance(got, RemotePrediction)
    assert got.expression == own.expression and got.point == own.point
    assert got.score == pytest.approx(own.score, abs=1e-4)
    assert got.mask.dtype == np.bool_ and got.mask.shape == own.mask.shape
    assert (got.mask != own.mask).sum() <= 2
    assert got.area == got.mask.sum() and list(got.bbox) == pytest.approx(own.bbox, abs=1)


def test_the_predictors_own_answers(client, predictor, scene, tmp_path):
    pixels, texts = scene
    own = predictor.set_image(pixels).predict(texts)
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    for image in (pixels, Image.fromarray(pixels), path, str(path), path.read_bytes()):
        for got, expected in zip(client.segment(image, texts), own, strict=True):
            same(got, expected)
            assert got.note == "a note"
    same(client.segment(pixels, texts[0]), own[0])
    got = client.segment(pixels, texts[0])
    assert got.mask is got.mask and got.to_rle() == {"size": [128, 128], "counts": got.rle["counts"]}
    assert got.to_polygons()[0][0] and got.overlay(pixels).size == (128, 128)


def test_an_image_sent_once(client, predictor, scene):
    pixels, texts = scene
    image, own = client.upload(pixels), predictor.set_image(pixels)
    assert (image.width, image.height, image.expires_in) == (128, 128, 600)
    same(image.predict(texts[0]), own.predict(texts[0]))
    for guidance in ({"points": [(np.int64(9), 9.5, 0)]}, {"box": (8, 8, 60, 60)}, {"prompts": ("text",)}):
        for got, expected in zip(
            image.predict(texts, **guidance), own.predict(texts, **guidance), strict=True
        ):
            same(got, expected)
        same(client.segment(pixels, texts[0], **guidance), own.predict(texts[0], **guidance))


def test_server_and_model(client):
    assert client.health()["status"] == "ok"
    assert client.models()[0]["name"] == "tiny"


def test_what_the_server_refuses(client, scene, address):
    pixels, _ = scene
    cases = [
        (pixels, "", 422, "empty"),
        (pixels, [], 422, "missing"),
        (pixels, "word " * 10_000, 422, "characters"),
        (b"no image", "x", 415, "not an image"),
        (np.zeros((1000, 1000, 3), np.uint8), "x", 413, "1000 x 1000"),
    ]
    for image, text, status, words in cases:
        with pytest.raises(RefusedError, match=words) as error:
            client.segment(image, text)
        assert error.value.status == status and isinstance(error.value, InputError)
    with pytest.raises(RefusedError, match="128 x 128"):
        client.segment(pixels, "x", points=[(500, 1, 1)])
    forgotten = client_module.RemoteImage(client, "../../etc/passwd", 1, 1, 1.0)
    with pytest.raises(RefusedError, match="/v1/images") as error:
        forgotten.predict("x")
    assert error.value.status == 404
    with Client(address) as stranger, pytest.raises(RefusedError, match="API key") as error:
        stranger.models()
    assert error.value.status == 401


def test_what_is_wrong_on_this_side(client, tmp_path):
    with pytest.raises(InputError, match="nothing"):
        client.segment(tmp_path / "nothing.png", "x")
    with pytest.raises(InputError, match="uint8"):
        client.segment(np.zeros((4, 4)), "x")
    with pytest.raises(InputError, match="address"):
        Client("localhost:8000")
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServerError, match="cannot be reached"):
        nobody.health()


@pytest.fixture
def playback() -> Iterator:
    """A server that gives prepared responses, one after the other: playback(responses) -> address."""
    servers = []

    def start(responses):
        left = list(responses)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, content = left.pop(0) if len(left) > 1 else left[0]
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_busy_server_is_asked_again_as_it_wishes(playback, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    busy = [(429, {"Retry-After": after}, {"error": "busy"}) for after in ("2", "500", "Thu, 01 Jan", "-3")]
    with Client(playback([*busy, (429, {}, {}), (200, {}, {"status": "ok"})])) as client:
        assert client.health() == {"status": "ok"}
    assert pauses == [2, 30, 1, 0, 1]
    with (
        Client(playback(busy[:1]), retries=3) as client,
        pytest.raises(ServerBusyError, match="busy") as error,
    ):
        client.health()
    assert error.value.status == 429 and pauses[5:] == [2, 2, 2]


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ((200, {}, b"<html>"), "is it one"),
        ((200, {}, []), "is it one"),
        ((500, {}, {"error": "something went wrong"}), "something went wrong"),
        ((502, {}, b"<html>bad gateway"), "502"),
        ((504, {}, {"error": ["list"]}), "504"),
    ],
)
def test_strange_servers(playback, response, words):
    with Client(playback([response])) as client, pytest.raises(ServerError, match=words) as error:
        client.models()
    assert not isinstance(error.value, RefusedError)


def test_no_torch_is_imported():
    code = "import sys, promptris.client; sys.exit(any(n in sys.modules for n in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
