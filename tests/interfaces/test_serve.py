"""`promptris serve` as a process, and what it says before it begins."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from promptris.builtin_models import TINY_NOTE
from promptris.errors import InputError
from promptris.interfaces.serve import listen

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")


def start(*options: str, **environment: str) -> tuple[subprocess.Popen[str], str, list[str]]:
    """A server on a free port: its process, its address, and what it has said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "promptris", "serve", "--port", "0", "--no-web", *options],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
    )
    said: list[str] = []
    killer = threading.Timer(120, process.kill)
    killer.start()
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if match := re.search(r"serving on (http://\S+?),", line):
            killer.cancel()
            return process, match[1], said
    raise AssertionError(said)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_from_start_to_end(number, code, tmp_path):
    key = {"PROMPTRIS_API_KEY": "from the environment"} if number == signal.SIGTERM else {}
    process, address, said = start("--threads", "1", "--deadline", "20", **key)
    try:
        headers = {"X-API-Key": key["PROMPTRIS_API_KEY"]} if key else {}
        with httpx.Client(base_url=address, headers=headers) as client:
            assert client.get("/v1/models").json()["models"][0]["note"] == TINY_NOTE
            assert client.get("/", headers=headers).status_code == 404
            if key:
                assert client.get("/v1/models", headers={"X-API-Key": ""}).status_code == 401
            # The port is taken now, and that is told before any model is loaded.
            port = address.rpartition(":")[2]
            with pytest.raises(InputError, match=rf"port {port} on 127.0.0.1 is in use.*--port"):
                listen("127.0.0.1", int(port))
            process.send_signal(number)
            assert process.wait(60) == code
    finally:
        process.kill()
        rest = process.communicate()[1]
    assert all(line.startswith("promptris: ") for line in said) and rest == ""


def test_usage_errors(promptris):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        promptris("serve", "--port", port).refused(f"port {port}", "in use", "--port")
    promptris("serve", "--port", "70000").refused("--port 70000")
    promptris("serve", "--host", "192.0.2.1", "--port", "0").refused("192.0.2.1")
    promptris("serve", "--host", "no.such.host.invalid", "--port", "0").refused("no.such.host.invalid")
    promptris("serve", "--port", "0", "--queue", "0").refused("queue")
    promptris("serve", "--port", "0", "--deadline", "-1").refused("deadline")
    promptris("serve", "--port", "0", "--threads", "0").refused("--threads")
    promptris("serve", "--port", "0", "--threshold", "2").refused("--threshold")
    promptris("serve", "--port", "0", "--api-key", "ключ").refused("API key")


def test_an_unknown_model(promptris, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    promptris("serve", "--port", "0", "--model", "nowhere/at all").refused("nowhere/at all")
