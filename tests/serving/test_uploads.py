"""Uploads are bounded while they are read."""

from __future__ import annotations

import asyncio
import base64

import pytest
from starlette.requests import Request

from promptris.errors import InputError
from promptris.serving.problems import Problem
from promptris.serving.uploads import from_base64, limited


def request(chunks, **headers):
    """A request whose body comes in chunks; `left` are those that were not asked for."""
    left = list(chunks)

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "method": "POST"}, receive), left


def test_a_body_that_says_it_is_too_large_is_not_read():
    asked, left = request([b"x"], content_length=str(10**12))
    with pytest.raises(Problem) as problem:
        limited(asked, 1000)
    assert problem.value.status == 413 and left == [b"x"]


def test_a_body_that_turns_out_too_large_is_read_no_further():
    asked, left = request([bytes(2**20)] * 50)
    with pytest.raises(Problem) as problem:
        asyncio.run(limited(asked, 3 * 2**20).body())
    assert problem.value.status == 413 and "3,145,728" in problem.value.sentence
    assert len(left) == 44  # 4 MiB for the image in base64, 1 MiB beside it, and the chunk that was too much


@pytest.mark.parametrize("length", ["", "-5", "many", "٣"])
def test_a_strange_length_is_not_believed(length):
    asked, _ = request([b"abc"])
    assert asyncio.run(limited(asked, 1000).body()) == b"abc"


def test_base64_in_the_ways_people_write_it():
    text = base64.b64encode(b"some bytes").decode()
    assert from_base64(text) == from_base64(f"data:image/png;base64,{text}") == b"some bytes"
    assert from_base64(text[:4] + "\r\n" + text[4:]) == b"some bytes"
    for wrong in ("é", "abc", "a-_b", "file:///etc/passwd"):
        with pytest.raises(InputError, match="base64"):
            from_base64(wrong)
