"""What the page does when its visitor does something; every function returns the values of `OUTPUTS`, in order."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from promptris.builtin_models import TINY_NOTE
from promptris.errors import InputError, PromptRISError
from promptris.interfaces.web import markup
from promptris.interfaces.web.scenes import BuiltInScene
from promptris.interfaces.web.session import Mark, Session
from promptris.predictor import Predictor

OUTPUTS = ("session", "stage", "banner", "alert", "status", "answers", "details", "downloads", "history")

_OUT_OF_DATE = "this button is out of date: load the page again"
_log = logging.getLogger(__name__)


class Answers:
    """Keeps nothing of a visitor: sessions come in and go out.

    Args:
        predictor: shared by all visitors.
        note: see `build_page`.
        offered: the built-in scenes.
    """

    def __init__(self, predictor: Predictor, note: str | None, offered: tuple[BuiltInScene, ...]) -> None:
        self.predictor, self.note, self.offered = predictor, note, offered

    def open_file(self, path: str | None, session: Session) -> tuple[Any, ...]:
        """Another picture, not asked about yet."""

        def step() -> Session:
            if path is None:
                raise InputError("no file arrived: open a picture again")
            name = Path(path).name
            try:
                return session.opened(self.predictor, path, name)
            except InputError as error:
                # The visitor knows the file by its name, and not where it lies on the server.
                raise InputError(str(error).replace(path, name)) from error

        return self._after(session, step, 0, "The picture is open: say what to segment.")

    def open_scene(self, session: Session, prompts: list[str], event: gr.EventData) -> tuple[Any, ...]:
        """A built-in scene with its own expressions, answered; what the text box is to hold comes first."""
        number = _number(event, len(self.offered))
        if number is None:
            return (gr.skip(), *self._failed(_OUT_OF_DATE))
        scene = self.offered[number]

        def step() -> Session:
            opened = session.opened(self.predictor, scene.pixels, f"{scene.name}.png", built_in=True)
            return opened.asked(scene.expressions, self._given(prompts))

        return ("\n".join(scene.expressions), *self._after(session, step, 0))

    def ask(self, text: str, session: Session, prompts: list[str]) -> tuple[Any, ...]:
        """Answers to the expressions in the text box."""
        texts = list(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
        return self._after(session, lambda: session.asked(texts, self._given(prompts)), 0)

    def ask_again(self, session: Session, prompts: list[str], event: gr.EventData) -> tuple[Any, ...]:
        """An expression of the history once more; what the text box is to hold comes first."""
        number = _number(event, len(session.history))
        if number is None:
            return (gr.skip(), *self._failed(_OUT_OF_DATE))
        text = session.history[number]
        return (text, *self._after(session, lambda: session.asked([text], self._given(prompts)), 0))

    def use_prompts(self, session: Session, prompts: list[str], number: int | None) -> tuple[Any, ...]:
        """All answers again under other prompts."""
        texts = [answer.expression for answer in session.answers]
        if not texts:
            return (gr.skip(),) * len(OUTPUTS)
        return self._after(session, lambda: session.asked(texts, self._given(prompts)), number)

    def correct(
        self, session: Session, prompts: list[str], number: int | None, event: gr.EventData
    ) -> tuple[Any, ...]:
        """The chosen answer again under one more click or another box."""

        def step() -> Session:
            return session.corrected(number, _mark(event, session), self._given(prompts))

        return self._after(session, step, number, "Corrected in {seconds:.2f} s.")

    def undo(self, session: Session, prompts: list[str], number: int | None) -> tuple[Any, ...]:
        """The chosen answer again without its latest correction."""

        def step() -> Session:
            return session.taken_back(number, self._given(prompts))

        return self._after(session, step, number, "The latest correction is taken back.")

    def clear(self, session: Session, prompts: list[str], number: int | None) -> tuple[Any, ...]:
        """The chosen answer again without corrections."""

        def step() -> Session:
            return session.taken_back(number, self._given(prompts), all_marks=True)

        return self._after(session, step, number, "All corrections are taken back.")

    def choose(self, session: Session, number: int | None) -> tuple[Any, ...]:
        """Another answer to look at and correct: stage, details and downloads only."""
        return (
            markup.stage(session, number, self.predictor.with_sam),
            markup.details(session, number),
            markup.downloads(session, number, self._note(session)),
        )

    def _after(
        self,
        session: Session,
        step: Callable[[], Session],
        number: int | None,
        said: str = "{count} answered in {seconds:.2f} s.",
    ) -> tuple[Any, ...]:
        """Everything as it is after a step; where the step fails the session stays as it was."""
        start = time.perf_counter()
        try:
            session = step()
        except PromptRISError as error:
            return self._failed(str(error))
        except Exception:  # whatever went wrong for one visitor, the others are served
            _log.exception("the web page could not answer")
            return self._failed("this could not be answered: the server's log tells why; the page goes on")
        seconds = time.perf_counter() - start
        stage, details, downloads = self.choose(session, number)
        labels = [(markup.answer_label(answer), index) for index, answer in enumerate(session.answers)]
        chosen = number if number is not None and number < len(labels) else 0
        count = f"{len(labels)} expression{'' if len(labels) == 1 else 's'}"
        return _in_order(
            {
                "session": session,
                "stage": stage,
                "banner": markup.banner(self._note(session)),
                "alert": markup.alert(None),
                "status": markup.status(said.format(count=count, seconds=seconds)),
                "answers": gr.Radio(choices=labels, value=chosen if labels else None, visible=bool(labels)),
                "details": details,
                "downloads": downloads,
                "history": markup.history(session),
            }
        )

    def _failed(self, sentence: str) -> tuple[Any, ...]:
        return _in_order({"alert": markup.alert(sentence), "status": markup.status("")})

    def _given(self, prompts: list[str]) -> list[str] | None:
        return prompts if self.predictor.with_sam else None

    def _note(self, session: Session) -> str | None:
        picture = session.picture
        if picture is None or (picture.built_in and self.note == TINY_NOTE):
            return None
        return self.note


def _in_order(values: dict[str, Any]) -> tuple[Any, ...]:
    """Values of all outputs; those that are not named stay as they are."""
    return tuple(values.get(name, gr.skip()) for name in OUTPUTS)


def _number(event: gr.EventData, count: int) -> int | None:
    """Which button was pressed, from 0; None where there is none, as what a browser sends may be anything."""
    number = _data(event).get("number")
    return number if isinstance(number, int) and 0 <= number < count else None


def _mark(event: gr.EventData, session: Session) -> Mark:
    """A click or a box in pixels, from shares of the picture's width and height."""
    data = _data(event)
    shares = [data.get(name) for name in (("x", "y", "right", "bottom") if "right" in data else ("x", "y"))]
    inside = [float(share) for share in shares if isinstance(share, int | float) and 0 <= share <= 1]
    if session.picture is None or len(inside) < len(shares):
        raise InputError("this mark lies outside the picture: click inside it")
    width, height = session.picture.size
    x, y = (min(int(share * side), side - 1) for share, side in zip(inside, (width, height), strict=False))
    if len(inside) == 2:
        return (x, y, int(data.get("label") != 0))
    right, bottom = math.ceil(inside[2] * width), math.ceil(inside[3] * height)
    return (x, y, max(1, right - x), max(1, bottom - y))


def _data(event: gr.EventData) -> dict[str, Any]:
    data = event._data
    return data if isinstance(data, dict) else {}
