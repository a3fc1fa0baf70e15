"""A session as HTML: the stage with its overlays, the pictures of an answer, its downloads."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from promptris.interfaces.web.scenes import BuiltInScene
from promptris.interfaces.web.session import Answer, Picture, Session
from promptris.outputs import safe_stem, slug
from promptris.visualize import COARSE_COLOR, Color, heat_map, overlay

COLORS: tuple[Color, ...] = (
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (213, 94, 0),
    (110, 110, 110),
)
"""Okabe and Ito's palette, one for each expression; `page.css` has them for the list of answers."""
_SMALL = 320
_TINT = 0.45


def stage(session: Session, chosen: int | None, can_correct: bool) -> str:
    """The picture under all masks, with the corrections of the chosen answer, to be clicked on."""
    picture = session.picture
    if picture is None:
        return (
            '<div class="stage empty"><p><b>No picture yet.</b></p><p>Open one, paste it with Ctrl+V, drop it here, '
            "or take one of the scenes.</p></div>"
        )
    answer = session.answer(chosen)
    width, height = picture.size
    marks = "" if answer is None else _marks(answer, picture)
    correctable = answer is not None and can_correct
    attributes = ""
    if correctable and answer is not None:
        label = (
            f"Correct the answer to {_short(answer.expression)}: arrow keys move the cross, Enter marks a part of "
            "it, Shift and Enter what is not part of it, Backspace takes the last mark back"
        )
        attributes = f' tabindex="0" role="application" aria-label="{escape(label)}"'
    shown = _lossy(_overlays(picture, session.answers, answer))
    return (
        f'<div class="stage" data-width="{width}" data-height="{height}" data-live="{int(correctable)}"{attributes} '
        f'style="aspect-ratio: {width} / {height}; --ratio: {width / height:.4f}">'
        f'<img draggable="false" alt="{escape(_description(picture, session.answers))}" src="{shown}">{marks}</div>'
        + (_tools(answer) if correctable and answer is not None else "")
    )


def answer_label(answer: Answer) -> str:
    """An answer as one line."""
    facts = answer.facts
    x, y = facts["point"]
    corrected = " · corrected" if answer.marks else ""
    numbers = f"score {facts['score']:.2f} · {facts['area']:,} px · point {x}, {y}"
    cut = "" if answer.read is None else f" · too long: the model reads its first {answer.read} tokens"
    return f"{_short(answer.expression)} — {numbers}{corrected}{cut}"


def details(session: Session, chosen: int | None) -> str:
    """How the chosen answer came about: response map, coarse mask with the point, final mask."""
    picture, answer = session.picture, session.answer(chosen)
    if picture is None or answer is None:
        return ""
    small = picture.shown.copy()
    small.thumbnail((_SMALL, _SMALL))
    factor = small.width / picture.size[0]
    x, y = answer.facts["point"]
    point = ((x + 0.5) * factor, (y + 0.5) * factor)
    coarse, mask = (_fit(part, small.size) for part in (answer.shown_coarse, answer.shown_mask))
    color = COLORS[session.answers.index(answer)]
    used = " + ".join(answer.prompts) or "without SAM"
    tiles = (
        ("response", "Response map", "where CLIP finds it", heat_map(small, answer.response)),
        (
            "coarse",
            "Coarse mask, point",
            f"point at {x}, {y}",
            overlay(small, coarse, COARSE_COLOR, _TINT, point=point),
        ),
        ("final", "Final mask", used, overlay(small, mask, color, _TINT, fade=0.4)),
    )
    figures = "".join(
        f'<figure data-view="{view}"><img alt="{title} of {escape(_short(answer.expression))}" src="{_lossy(image)}">'
        f"<figcaption><b>{title}</b><br>{escape(caption)}</figcaption></figure>"
        for view, title, caption, image in tiles
    )
    return f'<div class="figures">{figures}</div>'


def downloads(session: Session, chosen: int | None, note: str | None) -> str:
    """Links to the mask and run lengths of the chosen answer, and to all answers; no file lies on the server."""
    picture, answer = session.picture, session.answer(chosen)
    if picture is None or answer is None:
        return ""
    stem = safe_stem(picture.name.rpartition(".")[0] or picture.name)
    start = f"{stem}_{session.answers.index(answer) + 1:02d}_{slug(answer.expression)}"
    noted = {} if note is None else {"note": note}
    run_lengths = {**answer.facts["segmentation"], **noted}
    everything = [{**each.facts, **noted} for each in session.answers]
    links = (
        ("Mask (PNG)", f"{start}_mask.png", _uri("image/png", answer.mask_png)),
        ("COCO RLE (JSON)", f"{start}_rle.json", _json(run_lengths)),
        ("All answers (JSON)", f"{stem}_answers.json", _json(everything)),
    )
    anchors = "".join(
        f'<a class="download" download="{escape(name)}" href="{address}">{title}</a>'
        for title, name, address in links
    )
    return f'<div class="downloads" role="group" aria-label="Downloads">{anchors}</div>'


def scenes(offered: Sequence[BuiltInScene]) -> str:
    """The built-in scenes as buttons."""
    buttons = "".join(
        f'<button type="button" data-number="{number}" aria-label="Open {escape(scene.name)}" '
        f'title="{escape("; ".join(scene.expressions))}">'
        f'<img alt="" src="{_lossy(Image.fromarray(scene.pixels))}"></button>'
        for number, scene in enumerate(offered)
    )
    return f'<div class="scenes" role="group" aria-label="Scenes to try">{buttons}</div>'


def history(session: Session) -> str:
    """The expressions of the session as buttons, the latest first."""
    if not session.history:
        return '<p class="quiet">What you ask is kept here until you close the page.</p>'
    buttons = "".join(
        f'<button type="button" data-number="{number}" title="Ask this again">{escape(_short(text))}</button>'
        for number, text in enumerate(session.history)
    )
    return f'<div class="history" role="group" aria-label="Expressions of this session">{buttons}</div>'


def alert(sentence: str | None) -> str:
    """What went wrong; said aloud by screen readers."""
    return "" if sentence is None else f'<div class="alert" role="alert">{escape(sentence)}</div>'


def status(sentence: str) -> str:
    """What happened; said by screen readers when they are done with the rest."""
    return f'<p class="quiet" role="status">{escape(sentence)}</p>'


def banner(note: str | None) -> str:
    """What must be said about the masks."""
    return "" if note is None else f'<div class="banner" role="note"><b>Note</b> {escape(note)}</div>'


# -------------------------------------------------------------------------------------------------- parts


def _overlays(picture: Picture, answers: Sequence[Answer], chosen: Answer | None) -> Image.Image:
    shown = picture.shown
    if not answers:
        return shown
    union = np.logical_or.reduce([answer.shown_mask for answer in answers])
    shown = overlay(shown, union, alpha=0.0, outline=False, fade=0.35)
    for answer, color in zip(answers, COLORS, strict=False):
        shown = overlay(shown, answer.shown_mask, color, _TINT)
    if chosen is not None:
        factor = shown.width / picture.size[0]
        x, y = chosen.facts["point"]
        nothing = np.zeros_like(chosen.shown_mask)
        shown = overlay(
            shown, nothing, alpha=0.0, outline=False, point=((x + 0.5) * factor, (y + 0.5) * factor)
        )
    return shown


def _description(picture: Picture, answers: Sequence[Answer]) -> str:
    if not answers:
        return f"{picture.name}, nothing asked yet"
    found = "; ".join(f"{_short(answer.expression)} in the box {answer.facts['bbox']}" for answer in answers)
    return f"{picture.name} with the masks of {found}"


def _marks(answer: Answer, picture: Picture) -> str:
    """Clicks and box in percent of the picture, so that they follow its size on the screen."""
    width, height = picture.size
    parts = []
    for mark in answer.marks:
        if len(mark) == 4:
            x, y, wide, high = mark
            parts.append(
                f'<i class="box" style="left:{x / width:.4%};top:{y / height:.4%};'
                f'width:{wide / width:.4%};height:{high / height:.4%}"></i>'
            )
        else:
            x, y, label = mark
            kind, sign = ("plus", "+") if label else ("minus", "−")
            place = f"left:{(x + 0.5) / width:.4%};top:{(y + 0.5) / height:.4%}"
            parts.append(f'<i class="mark {kind}" style="{place}">{sign}</i>')
    return "".join(parts)


def _tools(answer: Answer) -> str:
    """What a click means, and taking corrections back."""
    off = "" if answer.marks else " disabled"
    choices = (("1", "+ part of it", " checked"), ("0", "− not part of it", ""), ("box", "□ box", ""))
    radios = "".join(
        f'<label><input type="radio" name="click-means" value="{value}"{checked}><span>{text}</span></label>'
        for value, text, checked in choices
    )
    return (
        '<div class="tools"><fieldset><legend>A click on the picture marks</legend>'
        f'{radios}</fieldset><div class="takeback">'
        f'<button type="button" data-do="undo"{off}>Undo</button>'
        f'<button type="button" data-do="clear"{off}>Clear</button></div></div>'
        '<p class="quiet keys">Shift-click: not part of it. Drag: a box. Arrow keys and Enter do the same.</p>'
    )


def _short(text: str, length: int = 80) -> str:
    words = " ".join(text.split())
    return words if len(words) <= length else words[: length - 1] + "…"


def _fit(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _lossy(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=88, method=2)
    return _uri("image/webp", buffer.getvalue())


def _json(content: object) -> str:
    return _uri("application/json", (json.dumps(content) + "\n").encode("ascii"))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
