"""What one visitor has open: a picture, the answers about it, and how the visitor corrected them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptris.config import PromptName, check_prompt_names
from promptris.errors import InputError
from promptris.outputs import told
from promptris.prediction import Box, Click, Explanation
from promptris.predictor import ImagePredictor, Predictor
from promptris.processing import ImageLike, check_expression, load_image
from promptris.visualize import mask_image

MAX_EXPRESSIONS = 8
"""As many as there are colours to tell them apart."""
MAX_HISTORY = 12
MAX_CHARACTERS = 1000
MAX_MARKS = 32
_SHOWN_SIDES = 640, 1024

Mark = Click | Box
"""A correction, in the picture's own pixels: (x, y, label), or a box of four numbers."""


@dataclass(frozen=True)
class Picture:
    """An opened picture.

    Attributes:
        name: of its file, or of the scene.
        with_image: answers about it.
        shown: the picture at the size it is shown at: memory for photographs would go to pixels nobody sees.
        built_in: whether it is one of the page's own scenes.
    """

    name: str
    with_image: ImagePredictor
    shown: Image.Image
    built_in: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture itself."""
        height, width = self.with_image.size
        return width, height


@dataclass(frozen=True)
class Answer:
    """The answer to one expression, as the page needs it.

    Attributes:
        facts: image, expression, score, area, bbox, point, size and segmentation (COCO RLE): plain values.
        mask_png: the mask as a 1-bit PNG, of the picture's own size.
        shown_mask: bool, of the shown picture's size.
        shown_coarse: the same of the coarse mask.
        response: float32 [H_C, W_C] in [0, 1].
        prompts: that SAM was given.
        marks: the visitor's corrections, in the order they were made.
        read: how many tokens of the expression the model read, where that is not all of them.
    """

    facts: dict[str, Any]
    mask_png: bytes
    shown_mask: NDArray[np.bool_]
    shown_coarse: NDArray[np.bool_]
    response: NDArray[np.float32]
    prompts: tuple[PromptName, ...]
    marks: tuple[Mark, ...] = ()
    read: int | None = None

    @property
    def expression(self) -> str:
        """What was asked."""
        return str(self.facts["expression"])


@dataclass(frozen=True)
class Session:
    """Never changed: every step gives a new one, and one that fails leaves the old one as it was."""

    picture: Picture | None = None
    answers: tuple[Answer, ...] = ()
    history: tuple[str, ...] = ()

    def opened(self, predictor: Predictor, image: ImageLike, name: str, built_in: bool = False) -> Session:
        """With another picture, encoded, and no answers.

        Raises:
            InputError: when it cannot be read.
        """
        pixels = load_image(image)
        picture = Picture(name, predictor.set_image(pixels), _shown(pixels), built_in)
        return replace(self, picture=picture, answers=())

    def asked(self, texts: Sequence[str], prompts: Sequence[str] | None) -> Session:
        """With the answers to these expressions; corrections of one that was asked before stay.

        Args:
            texts: one or several.
            prompts: SAM's prompts; None where the model answers without SAM.

        Raises:
            InputError: without a picture, an expression or a prompt, or with too many expressions.
        """
        picture = self._picture()
        if not texts:
            raise InputError("no expression is given: say what to segment, for example 'the red circle'")
        if len(texts) > MAX_EXPRESSIONS:
            raise InputError(
                f"{len(texts)} expressions are given: ask at most {MAX_EXPRESSIONS} at once, one per line"
            )
        for text in texts:
            if len(check_expression(text)) > MAX_CHARACTERS:
                raise InputError(
                    f"the expression {text[:40]!r}… has {len(text):,} characters: say it in at most "
                    f"{MAX_CHARACTERS:,}"
                )
        before = {answer.expression: answer for answer in self.answers}
        answers = []
        for text in texts:
            marks = before[text].marks if text in before else ()
            answers.append(_answer(picture, text, prompts, marks))
        history = tuple(dict.fromkeys((*texts, *self.history)))[:MAX_HISTORY]
        return replace(self, answers=tuple(answers), history=history)

    def corrected(self, number: int | None, mark: Mark, prompts: Sequence[str] | None) -> Session:
        """With the answer of that number given again, under one more click, or another box.

        Raises:
            InputError: when nothing was asked yet, for a mark outside the picture, or for too many marks.
        """
        answer = self._to_correct(number)
        kept = tuple(old for old in answer.marks if len(mark) == 3 or len(old) == 3)  # one box at most
        if len(kept) >= MAX_MARKS:
            raise InputError(f"there are {MAX_MARKS} corrections already: take some back with Undo or Clear")
        return self._again(answer, (*kept, mark), prompts)

    def taken_back(
        self, number: int | None, prompts: Sequence[str] | None, all_marks: bool = False
    ) -> Session:
        """With the answer of that number given again, without its latest correction, or without any.

        Raises:
            InputError: when nothing was asked yet.
        """
        answer = self._to_correct(number)
        return self._again(answer, () if all_marks else answer.marks[:-1], prompts)

    def answer(self, number: int | None) -> Answer | None:
        """The answer of a number from 0; the first where there is none of that number."""
        if not self.answers:
            return None
        return self.answers[number if number is not None and 0 <= number < len(self.answers) else 0]

    def _to_correct(self, number: int | None) -> Answer:
        answer = self.answer(number)
        if answer is None:
            raise InputError("there is nothing to correct yet: open a picture and ask for something first")
        return answer

    def _again(self, answer: Answer, marks: tuple[Mark, ...], prompts: Sequence[str] | None) -> Session:
        again = _answer(self._picture(), answer.expression, prompts, marks)
        return replace(self, answers=tuple(again if old is answer else old for old in self.answers))

    def _picture(self) -> Picture:
        if self.picture is None:
            raise InputError("no picture is open: open or paste one, or take one of the scenes")
        return self.picture


def _answer(picture: Picture, text: str, prompts: Sequence[str] | None, marks: tuple[Mark, ...]) -> Answer:
    names = None if prompts is None else check_prompt_names(list(prompts))
    if names == ():
        raise InputError("no prompt is left for SAM: keep at least one of mask, point, text")
    points = [mark for mark in marks if len(mark) == 3]
    box = next((mark for mark in marks if len(mark) == 4), None)
    explanation = picture.with_image.explain(text, prompts=names, points=points, box=box)
    return _kept(picture, explanation, marks)


def _kept(picture: Picture, explanation: Explanation, marks: tuple[Mark, ...]) -> Answer:
    prediction = explanation.prediction
    height, width = prediction.mask.shape
    buffer = io.BytesIO()
    mask_image(prediction.mask).save(buffer, format="PNG")
    return Answer(
        facts={
            "image": picture.name,
            **told(prediction),
            "size": [height, width],
            "segmentation": prediction.to_rle(),
        },
        mask_png=buffer.getvalue(),
        shown_mask=_resized(prediction.mask, picture.shown.size),
        shown_coarse=_resized(prediction.coarse_mask, picture.shown.size),
        response=explanation.response,
        prompts=explanation.prompts,
        marks=marks,
        read=_read(picture, prediction.expression),
    )


def _read(picture: Picture, text: str) -> int | None:
    processor = picture.with_image.predictor.processor
    tokens = len(processor.tokenizer(text, verbose=False)["input_ids"])
    return None if tokens <= processor.context_length else processor.context_length - 2


def _shown(pixels: NDArray[np.uint8]) -> Image.Image:
    """Small pictures enlarged, so that lines drawn on them are fine; large ones no larger than a screen."""
    picture = Image.fromarray(pixels)
    smallest, largest = _SHOWN_SIDES
    factor = min(max(max(picture.size), smallest), largest) / max(picture.size)
    if factor == 1:
        return picture
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(smooth) > 127
