"""Local files need no network: nothing is even looked up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import socket, sys

calls = []

def refuse(*arguments, **options):
    calls.append(arguments)  # an error alone could be caught on its way
    raise AssertionError(f"network: {arguments}")

# What every client ends up in: names looked up, connections opened, datagrams sent.
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse

class NoSocket(socket.socket):
    connect = connect_ex = sendto = refuse

socket.socket = NoSocket
sys.addaudithook(lambda event, _: event.startswith("socket.") and event != "socket.__new__" and calls.append(event))

import numpy as np
import promptris
from promptris.interfaces.cli import main

image = np.zeros((20, 30, 3), np.uint8)
for name in sys.argv[1:3]:
    assert promptris.load(name).set_image(image).predict("the red circle").mask.shape == (20, 30)
assert main(["segment", sys.argv[3], "ring", "--model", sys.argv[1]]) == 0
assert not calls, calls
print("offline")
"""


def test_loading_and_predicting_call_nobody(small_model, tmp_path: Path) -> None:
    from PIL import Image

    small_model.save_pretrained(tmp_path / "model", full=True)
    Image.new("RGB", (20, 30)).save(tmp_path / "photo.png")
    # Without the switches that would keep the hub's client quiet.
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    program = [sys.executable, "-c", _PROGRAM, str(tmp_path / "model"), "tiny", str(tmp_path / "photo.png")]
    run = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "offline", run.stderr
