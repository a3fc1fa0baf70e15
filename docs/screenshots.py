"""The pictures of the web page in docs/images: python docs/screenshots.py (needs Chromium and the extra "serve")."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import fastapi
import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

import promptris
from promptris.builtin_models import TINY_NOTE
from promptris.interfaces.web import mount_page

IMAGES = Path(__file__).parent / "images"
MOST_BYTES = 300_000
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """Start the page, use it, take its pictures."""
    app = fastapi.FastAPI()
    mount_page(app, promptris.load("tiny"), TINY_NOTE)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        photograph(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.should_exit = True
        thread.join(10)


def photograph(address: str) -> None:
    """The page on a desk and on a phone."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = opened(browser, address, viewport={"width": 1240, "height": 1000})
        answered(page, lambda: page.get_by_role("button", name="Open scene 4").click())
        area = page.locator(".stage").bounding_box()
        left, top, side = area["x"], area["y"], area["width"]
        answered(page, lambda: page.locator(".stage").click(position={"x": side * 0.86, "y": side * 0.7}))
        page.mouse.move(left + side * 0.66, top + side * 0.48)
        page.mouse.down()
        page.mouse.move(left + side * 0.99, top + side * 0.87, steps=3)
        answered(page, page.mouse.up)
        page.mouse.move(0, 0)
        save(page.screenshot(full_page=True), IMAGES / "web.png")

        page = opened(
            browser,
            address,
            viewport={"width": 375, "height": 812},
            is_mobile=True,
            has_touch=True,
            device_scale_factor=2,
        )
        answered(page, lambda: page.get_by_role("button", name="Open scene 6").tap())
        save(page.screenshot(), IMAGES / "web-phone.png")
        browser.close()


def opened(browser: Any, address: str, **options: Any) -> Any:
    """The page in a profile of its own, ready."""
    context = browser.new_context(**options)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(address)
    page.locator("#stage [data-ready]").wait_for(state="attached")
    page.locator("#expressions textarea").wait_for()
    return page


def answered(page: Any, action: Any) -> None:
    """Do something and wait until its answer is shown."""
    before = page.locator(".stage").evaluate("stage => stage.outerHTML")
    action()
    page.wait_for_function("before => document.querySelector('.stage').outerHTML !== before", arg=before)
    page.wait_for_function("!document.querySelector('.html-container.pending')")
    page.wait_for_timeout(500)  # for images to be decoded, and the queue's clock to go away


def save(content: bytes, path: Path) -> None:
    """A screenshot; in 256 colours, chosen so that small coloured things keep theirs, where it would be large."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    if len(buffer.getvalue()) > MOST_BYTES:
        buffer = io.BytesIO()
        few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.FLOYDSTEINBERG)
        few.save(buffer, "PNG", optimize=True)
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
