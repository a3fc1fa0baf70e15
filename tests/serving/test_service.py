"""Limits: bytes, pixels, masks, requests at once, and time."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import pytest
from PIL import Image

from promptris.errors import InputError
from promptris.serving.settings import ServerSettings


@pytest.fixture
def blocked(predictor, monkeypatch):
    """The model waits until the event is set."""
    free, entered = threading.Event(), threading.Event()
    encode = predictor.encode_prepared

    def wait(images):
        entered.set()
        assert free.wait(20)
        return encode(images)

    monkeypatch.setattr(predictor, "encode_prepared", wait)
    yield free, entered
    free.set()


def in_thread(ask):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    return thread, answers


def test_a_full_house_says_when_to_come_again(serve, scene, refused, blocked):
    free, entered = blocked
    client = serve(queue=1)
    thread, answers = in_thread(lambda: client.post("/v1/images", json={"image": scene.base64}))
    assert entered.wait(10)
    for path in ("/v1/segment", "/v1/images"):
        answer = client.post(path, json={"image": scene.base64, "expressions": ["x"]})
        refused(answer, 429, "busy", "1")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert client.get("/v1/health").status_code == 200
    free.set()
    thread.join(10)
    assert answers[0].status_code == 200
    assert client.post("/v1/images", json={"image": scene.base64}).status_code == 200


def test_the_deadline_ends_the_wait(serve, scene, refused, blocked):
    free, _ = blocked
    client = serve(deadline=0.3)
    start = time.monotonic()
    answer = client.post("/v1/segment", json={"image": scene.base64, "expressions": ["the star"]})
    refused(answer, 504, "0.3 s")
    assert time.monotonic() - start < 5
    free.set()
    deadline = time.monotonic() + 10
    while client.get("/v1/health").json()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.app.state.service.admission.present == 0


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_slow_upload_ends_at_the_deadline(serve, refused, kind):
    app = serve(deadline=0.2).app

    async def slowly():
        yield b"--x\r\n" if "x" in kind else b"{"
        await asyncio.sleep(20)

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/v1/images", content=slowly(), headers={"content-type": kind})

    start = time.monotonic()
    refused(asyncio.run(send()), 408, "0.2 s")
    assert time.monotonic() - start < 10
    assert app.state.service.admission.present == 0


def test_bytes_are_limited(serve, scene, refused):
    client = serve(max_bytes=len(scene.png) - 1)
    refused(client.post("/v1/images", files={"image": scene.png}), 413, "bytes")
    refused(client.post("/v1/images", json={"image": scene.base64}), 413, "bytes")
    assert serve(max_bytes=len(scene.png)).post("/v1/images", files={"image": scene.png}).status_code == 200


def test_pixels_are_limited(serve, scene, refused):
    refused(serve(max_pixels=128 * 128 - 1).post("/v1/images", files={"image": scene.png}), 413, "128 x 128")
    assert serve(max_pixels=128 * 128).post("/v1/images", files={"image": scene.png}).status_code == 200


def test_masks_are_limited(client, refused, monkeypatch, as_file):
    monkeypatch.setattr("promptris.serving.service.MASK_PIXELS", 100)
    picture = as_file(Image.new("RGB", (10, 6)))
    fields = {"expressions": ["x", "y"]}
    refused(client.post("/v1/segment", files={"image": picture}, data=fields), 413, "1 at most")
    fields["expressions"].pop()
    assert client.post("/v1/segment", files={"image": picture}, data=fields).status_code == 200


def test_images_go_least_recently_used_first(serve, scene, refused):
    client = serve(images=2)

    def keep():
        return client.post("/v1/images", json={"image": scene.base64}).json()["id"]

    def ask(identity):
        return client.post("/v1/segment", json={"image_id": identity, "expressions": ["the star"]})

    first, second = keep(), keep()
    assert ask(first).status_code == 200
    third = keep()
    assert ask(first).status_code == ask(third).status_code == 200
    refused(ask(second), 404, second, "again")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"queue": 0}, "queue must be at least 1"),
        ({"images": 0}, "images must"),
        ({"together": 0}, "together must"),
        ({"max_bytes": -1}, "max-bytes must be at least 1, not -1"),
        ({"deadline": 0}, "deadline must"),
        ({"deadline": float("nan")}, "deadline must"),
        ({"ttl": float("inf")}, "ttl must"),
        ({"api_key": ""}, "API key must"),
        ({"api_key": "ключ"}, "API key must"),
        ({"api_key": " x"}, "API key must"),
    ],
)
def test_settings_that_make_no_sense(wrong, words):
    with pytest.raises(InputError, match=words):
        ServerSettings(**wrong)
