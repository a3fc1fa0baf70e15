"""Images at paths and addresses, on this machine only."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from promptris.distributed import locations
from promptris.distributed.locations import absolute, fetch, filesystem, read_image
from promptris.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "folder", "whole"),
    [
        ("a/b.png", "/data", "/data/a/b.png"),
        ("../b.png", "/data", "/data/../b.png"),
        ("/x/b.png", "/data", "/x/b.png"),
        ("/x/b.png", "s3://bucket/in", "/x/b.png"),
        ("b.png", "s3://bucket/in/", "s3://bucket/in/b.png"),
        ("https://host/b.png", "/data", "https://host/b.png"),
        ("odd: name.png", "/data", "/data/odd: name.png"),
    ],
)
def test_where_a_name_leads(name: str, folder: str, whole: str) -> None:
    assert absolute(name, folder) == whole


def test_images_by_path_and_by_file_uri(tmp_path: Path) -> None:
    path = tmp_path / "a photo, 50%.png"
    path.write_bytes(png())
    assert np.array_equal(read_image(str(path), 0), PIXELS)
    assert np.array_equal(read_image(path.as_uri(), 0), PIXELS)
    assert filesystem(path.as_uri())[1] == str(path)
    with pytest.raises(InputError, match=r"there is no image at .*gone\.png"):
        read_image((tmp_path / "gone.png").as_uri(), 0)
    with pytest.raises(InputError, match="another machine"):
        read_image("file://elsewhere/a.png", 0)


def test_images_by_other_file_systems() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/here/a.png", png())
    assert np.array_equal(read_image("fsspec+memory:///here/a.png", 0), PIXELS)
    with pytest.raises(InputError, match=r"there is no image at fsspec\+memory:///here/b\.png"):
        read_image("fsspec+memory:///here/b.png", 0)
    memory.pipe("/here/c.png", png()[:60])
    with pytest.raises(InputError, match=r"^fsspec\+memory:///here/c\.png is damaged"):
        read_image("fsspec+memory:///here/c.png", 0)


@pytest.mark.parametrize("uri", ["nothing://a/b.png", "http://", "http://a b/c.png"])
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(InputError) as error:
        read_image(uri, 0)
    assert uri in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def server() -> Iterator[tuple[str, Counter[str]]]:
    """Answers at once, after two 503s (/busy), never well (/down), or not at all (/gone); counts requests."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            busy = self.path == "/down" or (self.path == "/busy" and asked["/busy"] <= 2)
            code = 503 if busy else 404 if self.path == "/gone" else 200
            content = png() if code == 200 else b""
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()


def test_http_is_patient_where_that_helps(
    server: tuple[str, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_FIRST_WAIT", 0.01)
    address, asked = server
    assert np.array_equal(read_image(f"{address}/image", 0), PIXELS)
    assert np.array_equal(read_image(f"{address}/busy", 2), PIXELS)
    with pytest.raises(InputError, match=r"/down: the server answers 503 .*\(tried 2 times\)"):
        read_image(f"{address}/down", 1)
    with pytest.raises(InputError, match="/gone: the server answers 404"):
        read_image(f"{address}/gone", 5)
    assert asked == {"/image": 1, "/busy": 3, "/down": 2, "/gone": 1}
    monkeypatch.setattr(locations, "MAX_BYTES", 40)
    with pytest.raises(InputError, match="/image has more than"):
        fetch(f"{address}/image", 0)
    with pytest.raises(InputError, match=r"cannot read .*\(tried 1 times\)"):
        read_image("http://127.0.0.1:9/x.png", 0)
