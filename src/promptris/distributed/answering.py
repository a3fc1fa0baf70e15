"""The questions of a shard, answered: every image is read and encoded once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from promptris.distributed.locations import read_image
from promptris.distributed.parts import ANSWERS
from promptris.errors import InputError
from promptris.prediction import Prediction
from promptris.predictor import Predictor

Pixels = NDArray[np.uint8]

_READ_AHEAD = 4
_IMAGES_AT_ONCE, _PIXELS_AT_ONCE = 8, 32_000_000


def answer_questions(questions: pa.Table, predictor: Predictor, retries: int) -> list[dict[str, Any]]:
    """Answers as rows of `parts.ANSWERS`, in the order of the questions.

    What is wrong with a question or its image is said in its answer.

    Args:
        questions: `questions.QUESTIONS`; those about one image stand together.
        predictor: who answers.
        retries: how often a remote image is tried again.
    """
    rows = questions.to_pylist()
    by_image: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row["error"] is None:
            by_image.setdefault(row["location"], []).append(number)
    answers = [_unanswered(row, row["error"]) for row in rows]
    gathered: list[tuple[Pixels, list[int]]] = []

    def flush() -> None:
        numbers = [number for _, about in gathered for number in about]
        index = [image for image, (_, about) in enumerate(gathered) for _ in about]
        texts = [rows[number]["expression"] for number in numbers]
        predictions = predictor.answer_images([pixels for pixels, _ in gathered], texts, index)
        for number, prediction in zip(numbers, predictions, strict=True):
            answers[number] = _answer(rows[number], prediction)
        gathered.clear()

    for location, pixels in _read_ahead(list(by_image), retries):
        if isinstance(pixels, InputError):
            for number in by_image[location]:
                answers[number] = _unanswered(rows[number], str(pixels))
            continue
        gathered.append((pixels, by_image[location]))
        if _is_enough(gathered, predictor.expressions_per_pass):
            flush()
    if gathered:
        flush()
    return answers


def _is_enough(gathered: Sequence[tuple[Pixels, list[int]]], expressions: int) -> bool:
    return (
        len(gathered) >= _IMAGES_AT_ONCE
        or sum(len(about) for _, about in gathered) >= expressions
        or sum(pixels.shape[0] * pixels.shape[1] for pixels, _ in gathered) >= _PIXELS_AT_ONCE
    )


def _read_ahead(locations: Sequence[str], retries: int) -> Iterator[tuple[str, Pixels | InputError]]:
    """Images, or why they cannot be read; the next ones are read while one is worked on."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        waiting: deque[tuple[str, Future[Pixels | InputError]]] = deque()
        for location in locations:
            waiting.append((location, pool.submit(_read, location, retries)))
            if len(waiting) > _READ_AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        while waiting:
            first, image = waiting.popleft()
            yield first, image.result()


def _read(location: str, retries: int) -> Pixels | InputError:
    try:
        return read_image(location, retries)
    except InputError as error:
        return error


def _answer(question: dict[str, Any], prediction: Prediction) -> dict[str, Any]:
    return {
        **_unanswered(question, None),
        "score": prediction.score,
        "area": prediction.area,
        "bbox": prediction.bbox,
        "point": list(prediction.point),
        **prediction.to_rle(),
    }


def _unanswered(question: dict[str, Any], error: str | None) -> dict[str, Any]:
    asked = {name: question[name] for name in ("row", "item", "image", "expression")}
    return {**dict.fromkeys(ANSWERS.names), **asked, "error": error}
