"""The page in a real browser, as people use it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'promptris[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None and not os.environ.get("PROMPTRIS_NEED_CHROMIUM"):
    pytest.skip("Chromium is not installed: apt-get install chromium", allow_module_level=True)

from fastapi import FastAPI  # noqa: E402

from promptris.builtin_models import TINY_NOTE  # noqa: E402
from promptris.data.refshapes import Example  # noqa: E402
from promptris.interfaces.web import mount_page  # noqa: E402
from promptris.interfaces.web.scenes import built_in_scenes  # noqa: E402
from promptris.predictor import Predictor  # noqa: E402

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 40_000
"""Milliseconds until something that does not come is an error; what comes is never waited for longer than needed."""

SHOWN = "['.stage', '.alert', '.downloads'].map(part => document.querySelector(part)?.outerHTML).join()"


@pytest.fixture(scope="module")
def address(tiny: Predictor) -> Iterator[str]:
    """A server with the page and a route that was there before it."""
    import uvicorn

    app = FastAPI()

    @app.get("/v1/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    mount_page(app, tiny, TINY_NOTE)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


@dataclass
class Visitor:
    """Somebody with the page open."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def does(self, action: Callable[[], Any]) -> None:
        """An action, and the page's answer to it: what it shows has changed, and changes no more."""
        before = self.page.evaluate(SHOWN)
        action()
        self.page.wait_for_function(f"before => {SHOWN} !== before", arg=before)
        self.page.wait_for_function("!document.querySelector('.html-container.pending')")
        self.page.wait_for_timeout(150)

    def opens(self, path: str | Path) -> None:
        self.does(lambda: self.page.locator("#controls input[type=file]").set_input_files(str(path)))

    def asks(self, *texts: str) -> None:
        self.page.locator("#expressions textarea").fill("\n".join(texts))
        self.does(lambda: self.page.locator("#expressions textarea").press("Enter"))

    def clicks(self, x: float, y: float, **options: Any) -> None:
        """A click on the middle of a pixel of the 128 x 128 picture."""
        area = self.page.locator(".stage").bounding_box()
        place = {"x": (x + 0.5) / 128 * area["width"], "y": (y + 0.5) / 128 * area["height"]}
        self.does(lambda: self.page.locator(".stage").click(position=place, **options))

    def downloads(self, title: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.get_by_role("link", name=title).click()
        return Path(waiting.value.path()).read_bytes()

    @property
    def picture(self) -> str:
        return self.page.locator(".stage img").get_attribute("src")

    @property
    def alert(self) -> str:
        return self.page.locator("#alert").inner_text().strip()

    def answers(self, count: int) -> list[str]:
        """The list of answers, once there are so many."""
        labels = self.page.locator("#answers label")
        sync_api.expect(labels).to_have_count(count, timeout=PATIENCE)
        return [text.strip() for text in labels.all_inner_texts()]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Visitor]]:
    """Opens the page in a browser profile of its own; afterwards, nothing left the machine and no script failed."""
    visitors: list[Visitor] = []
    contexts = []

    def opened(**options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        visitor = Visitor(context.new_page())
        visitors.append(visitor)
        visitor.page.on("request", lambda request: visitor.requests.append(request.url))
        visitor.page.on("pageerror", lambda error: visitor.problems.append(str(error)))
        visitor.page.on("dialog", lambda dialog: visitor.problems.append(f"dialog: {dialog.message}"))
        visitor.page.goto(address)
        # The page's own script has run: Gradio's events are bound by then.
        visitor.page.locator("#stage [data-ready]").wait_for(state="attached")
        visitor.page.locator("#expressions textarea").wait_for()
        return visitor

    yield opened
    for context in contexts:
        context.close()
    for visitor in visitors:
        strangers = [u for u in visitor.requests if not u.startswith((address, "data:", "blob:"))]
        assert (strangers, visitor.problems) == ([], [])


@pytest.fixture
def texts(scene: Example) -> list[str]:
    return list(dict.fromkeys(d.text for d in scene.descriptions))[:2]


def test_open_ask_correct_and_download(
    visit, tiny: Predictor, scene: Example, scene_file: str, texts: list[str], opened_mask
):
    visitor = visit()
    page = visitor.page
    visitor.opens(scene_file)
    untouched = visitor.picture
    visitor.asks(*texts)
    answered = visitor.picture
    assert answered != untouched

    first, second = tiny.set_image(scene.image).predict(texts)
    x, y = first.point
    assert visitor.answers(2)[0] == (
        f"{texts[0]} — score {first.score:.2f} · {first.area:,} px · point {x}, {y}"
    )
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), first.mask)
    assert json.loads(visitor.downloads("COCO RLE")) == {**first.to_rle(), "note": TINY_NOTE}
    everything = json.loads(visitor.downloads("All answers"))
    assert [answer["expression"] for answer in everything] == texts
    assert everything[1]["segmentation"] == second.to_rle()
    assert page.locator("#details figure").count() == 3

    # Another answer is chosen: that one is downloaded, and corrected.
    visitor.does(lambda: page.locator("#answers input").nth(1).check())
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), second.mask)
    visitor.clicks(64, 20, modifiers=["Shift"])
    clicked = tiny.set_image(scene.image).predict(texts[1], points=[(64, 20, 0)])
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), clicked.mask)
    assert [answer.endswith("corrected") for answer in visitor.answers(2)] == [False, True]

    # A box is dragged; then both are taken back.
    area = page.locator(".stage").bounding_box()
    page.locator(".stage").scroll_into_view_if_needed()
    unit = area["width"] / 128
    page.mouse.move(area["x"] + 16.5 * unit, area["y"] + 24.5 * unit)
    page.mouse.down()
    page.mouse.move(area["x"] + 60 * unit, area["y"] + 60 * unit)
    page.mouse.move(area["x"] + 95.5 * unit, area["y"] + 111.5 * unit)
    visitor.does(page.mouse.up)
    boxed = tiny.set_image(scene.image).predict(texts[1], points=[(64, 20, 0)], box=(16, 24, 80, 88))
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), boxed.mask)
    visitor.does(page.get_by_role("button", name="Undo").click)
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), clicked.mask)
    visitor.does(page.get_by_role("button", name="Clear").click)
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), second.mask)
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_prompts_are_switched_off_and_on(
    visit, tiny: Predictor, scene: Example, scene_file: str, texts: list[str], opened_mask
):
    visitor = visit()
    page = visitor.page
    visitor.opens(scene_file)
    visitor.asks(texts[0])
    visitor.does(page.get_by_label("mask", exact=True).uncheck)
    visitor.does(page.get_by_label("text", exact=True).uncheck)
    alone = tiny.set_image(scene.image).predict(texts[0], prompts=("point",))
    assert np.array_equal(opened_mask(visitor.downloads("Mask (PNG)")), alone.mask)
    assert page.locator("#details figure").last.inner_text().split("\n") == ["Final mask", "point"]
    visitor.does(page.get_by_label("point", exact=True).uncheck)
    assert visitor.alert == "no prompt is left for SAM: keep at least one of mask, point, text"


def test_a_built_in_scene_is_one_click_and_has_no_banner_but_a_photograph_has(visit, save_noise, tmp_path):
    visitor = visit()
    page = visitor.page
    visitor.does(page.get_by_role("button", name="Open scene 2").click)
    expressions = built_in_scenes()[1].expressions
    assert page.locator("#expressions textarea").input_value() == "\n".join(expressions)
    assert [answer.split(" — ")[0] for answer in visitor.answers(3)] == list(expressions)
    assert not page.locator(".banner").is_visible()
    visitor.opens(save_noise(tmp_path / "holiday.jpg", size=(300, 200)))
    assert page.locator(".banner").inner_text().endswith(TINY_NOTE)

    # An expression of before is asked about it.
    visitor.does(page.locator("#history button").nth(1).click)
    assert page.locator("#expressions textarea").input_value() == expressions[1]
    assert len(visitor.answers(1)) == 1
    assert page.locator("#history button").first.inner_text() == expressions[1]
    assert page.locator(".banner").is_visible()


def test_everything_from_the_keyboard(visit):
    visitor = visit()
    page = visitor.page
    keys = page.keyboard

    def focused() -> str:
        return page.evaluate(
            "(e => e.id || e.getAttribute('aria-label') || e.className)(document.activeElement)"
        )

    keys.press("Tab")
    assert focused() == "open-picture"
    keys.press("Tab")
    assert focused() == "Open scene 1"
    visitor.does(lambda: keys.press("Enter"))
    before = visitor.picture
    page.locator("#expressions textarea").focus()
    keys.press("Control+A")
    keys.type("the red square")
    keys.press("Shift+Enter")
    keys.type("the triangle")
    visitor.does(lambda: keys.press("Control+Enter"))
    assert len(visitor.answers(2)) == 2 and visitor.picture != before

    for _ in range(30):
        keys.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "application":
            break
    assert focused().startswith("Correct the answer to the red square")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keys.press("ArrowRight")
    keys.press("Shift+ArrowDown")
    visitor.does(lambda: keys.press("Shift+Enter"))
    style = page.locator(".stage i.minus").get_attribute("style")
    # From the middle, 2 % to the right and 10 % down: the pixel at 66, 76.
    assert style == f"left:{66.5 / 128:.4%};top:{76.5 / 128:.4%}"
    assert page.evaluate("document.activeElement.getAttribute('role')") == "application"
    visitor.does(lambda: keys.press("Backspace"))
    assert page.locator(".stage i").count() == 0


def test_controls_have_names(visit):
    visitor = visit()
    page = visitor.page
    visitor.does(page.get_by_role("button", name="Open scene 1").click)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a[href], textarea, input:not([type=file])')]
            .filter(e => e.checkVisibility())
            .filter(e => !(e.innerText || e.getAttribute('aria-label') || e.title
                           || [...(e.labels ?? [])].some(label => label.innerText.trim())))
            .map(e => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0


def test_on_a_phone_nothing_is_cut_off(visit):
    visitor, page = (
        (opened := visit(viewport={"width": 375, "height": 812}, is_mobile=True, has_touch=True)),
        opened.page,
    )
    visitor.does(page.get_by_role("button", name="Open scene 6").tap)
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [375, 375]
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('button, a, label, img, .stage, textarea, p')]
            .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 376).map(e => e.outerHTML)"""
    )
    assert beyond == []
    # The picture comes before the settings; a finger marks what is not part of it.
    assert page.locator(".stage").bounding_box()["y"] < page.locator("#prompts").bounding_box()["y"]
    page.locator(".tools label", has_text="not part of it").tap()
    visitor.does(page.locator(".stage").tap)
    assert page.locator(".stage i.minus").count() == 1
    # Its keyboard has no Shift+Enter.
    page.locator("#expressions textarea").fill("a")
    page.locator("#expressions textarea").press("Enter")
    assert page.locator("#expressions textarea").input_value() == "a\n"


def test_what_cannot_be_read_is_told_and_the_page_goes_on(visit, scene_file: str, tmp_path: Path):
    visitor = visit()
    page = visitor.page
    visitor.does(lambda: page.locator("#run").click())
    assert visitor.alert == "no picture is open: open or paste one, or take one of the scenes"

    content = Path(scene_file).read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    expected = {
        "cut.png": "cut.png is damaged or cut off",
        "notes.txt": "notes.txt is not an image that can be read",
        "huge.png": "huge.png has ",
    }
    for name, sentence in expected.items():
        visitor.opens(tmp_path / name)
        assert visitor.alert.startswith(sentence)
        assert "/" not in visitor.alert.replace("JPEG, PNG", "")
    visitor.opens(scene_file)
    assert visitor.alert == ""
    visitor.asks("the star")
    assert len(visitor.answers(1)) == 1
    visitor.page.locator("#expressions textarea").fill("  ")
    visitor.does(lambda: page.locator("#run").click())
    assert visitor.alert.startswith("no expression is given")
    assert len(visitor.answers(1)) == 1


def test_files_of_too_many_bytes_are_refused_before_they_are_sent(visit, tmp_path: Path):
    visitor = visit()
    page = visitor.page
    with (tmp_path / "heavy.png").open("wb") as file:
        file.truncate(65 * 2**20)
    page.locator("#controls input[type=file]").set_input_files(str(tmp_path / "heavy.png"))
    page.get_by_text("maximum allowed size").first.wait_for()
    visitor.does(page.get_by_role("button", name="Open scene 1").click)


def test_pictures_are_pasted_and_dropped(visit, scene_file: str):
    visitor = visit()
    page = visitor.page
    content = base64.b64encode(Path(scene_file).read_bytes()).decode()
    for kind, event in (
        ("pasted", "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})"),
        ("dropped", "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})"),
    ):
        script = f"""content => {{
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], '{kind}.png', {{type: 'image/png'}}));
            document.body.dispatchEvent({event});
        }}"""
        visitor.does(lambda script=script: page.evaluate(script, content))
        assert page.locator(".stage img").get_attribute("alt").startswith(f"{kind}.png")


def test_words_are_shown_as_they_are(visit, scene_file: str):
    visitor = visit()
    visitor.opens(scene_file)
    strange = ["`${alert(1)}` {{value}}", "<img src=x onerror=alert(2)>", "звезда слева 🌟", "星形"]
    visitor.asks(*strange)
    assert [answer.split(" — ")[0] for answer in visitor.answers(4)] == strange
    assert visitor.page.locator("#history button").all_inner_texts() == strange
    assert visitor.page.locator("#answers img, #history img").count() == 0


def test_visitors_share_nothing(visit, scene_file: str):
    one, other = visit(), visit()
    one.opens(scene_file)
    one.asks("the star")
    other.does(other.page.get_by_role("button", name="Open scene 3").click)
    one.asks("the circle")
    assert one.page.locator("#history button").all_inner_texts() == ["the circle", "the star"]
    assert one.page.locator(".stage img").get_attribute("alt").startswith("shapes.png")
    assert other.page.locator("#history button").all_inner_texts() == list(built_in_scenes()[2].expressions)
    assert visit().answers(0) == []


def test_routes_of_the_server_come_first(address: str):
    import httpx

    assert httpx.get(f"{address}/v1/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/openapi.json").json()["paths"].keys() == {"/v1/health"}
