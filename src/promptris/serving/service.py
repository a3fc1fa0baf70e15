"""What all endpoints share: the model behind its queue, the images that are kept, limits and counters."""

from __future__ import annotations

import math
import time
from asyncio import wrap_future
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from promptris.predictor import Predictor
from promptris.serving.admission import Admission
from promptris.serving.batching import (
    MASK_PIXELS,
    Answer,
    Batcher,
    DeadlinePassedError,
    EncodedImage,
    PreparedImage,
    Question,
    QueueFullError,
)
from promptris.serving.metrics import ServerMetrics
from promptris.serving.problems import Problem
from promptris.serving.settings import ServerSettings
from promptris.serving.store import ImageStore
from promptris.serving.uploads import DECODERS, prepare_upload

Result = TypeVar("Result")

_HELPERS = 4
"""Threads for what else is not done between requests; every thread has a heap of its own that only grows."""


class Service:
    """One model, served.

    Args:
        predictor: what answers.
        settings: limits.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.predictor, self.settings = predictor, settings
        self.metrics = ServerMetrics()
        self.batcher = Batcher(predictor, settings.queue, settings.together, self.metrics.batches.observe)
        self.store = ImageStore(settings.images, settings.ttl)
        self.admission = Admission(settings.queue, self._retry_after)
        self._decoding, self._helping = anyio.CapacityLimiter(DECODERS), anyio.CapacityLimiter(_HELPERS)
        self.metrics.watch(
            "promptris_requests_present", "Requests at this moment.", lambda: self.admission.present
        )
        self.metrics.watch(
            "promptris_waiting", "Requests that wait for the model.", lambda: self.batcher.waiting
        )
        self.metrics.watch("promptris_images", "Encoded images that are kept.", lambda: len(self.store))

    def deadline(self) -> Deadline:
        """The deadline of a request that arrives now."""
        return Deadline(time.monotonic() + self.settings.deadline, self.settings.deadline)

    async def prepare(self, data: bytes) -> PreparedImage:
        """Decode an uploaded file in a thread; see `prepare_upload`."""
        limits = self.settings.max_bytes, self.settings.max_pixels
        return await anyio.to_thread.run_sync(
            prepare_upload, data, self.predictor, *limits, abandon_on_cancel=True, limiter=self._decoding
        )

    async def in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The result of `work`, during which other requests go on."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self._helping)

    def kept(self, identity: str) -> EncodedImage:
        """An image from POST /v1/images.

        Raises:
            Problem: 404 when there is none (any more).
        """
        image = self.store.get(identity)
        if image is None:
            raise Problem(
                404,
                f"there is no image {identity[:60]!r} (any more): send it to /v1/images again, images are kept for "
                f"{self.settings.ttl:g} s after their last use",
            )
        return image

    async def ask(self, question: Question, deadline: Deadline) -> Answer:
        """The answer to a question, computed together with others.

        Raises:
            Problem: 413 for more masks than fit into memory, 429 when too many wait, 504 past the deadline.
            InputError: for clicks or a box that do not fit.
        """
        if question.mask_pixels > MASK_PIXELS:
            height, width = question.image.size
            raise Problem(
                413,
                f"{len(question.expressions)} masks of {width} x {height} pixels are too many at once: at this size "
                f"ask for {MASK_PIXELS // (width * height)} at most, or make the image smaller",
            )
        try:
            future = self.batcher.submit(question, deadline.until)
        except QueueFullError:
            raise self.admission.full() from None
        try:
            return await wrap_future(future)
        except DeadlinePassedError:
            raise deadline.passed() from None

    def _retry_after(self) -> int:
        wait = min(self.batcher.expected_wait, self.settings.deadline)
        return max(1, math.ceil(wait))


class Deadline:
    """By when a request is to be answered.

    Args:
        until: `time.monotonic()` of that moment.
        seconds: how long it had in all.
    """

    def __init__(self, until: float, seconds: float) -> None:
        self.until, self.seconds = until, seconds

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.until - time.monotonic()

    def passed(self) -> Problem:
        """What is told when the answer is not there in time."""
        return Problem(
            504, f"there was no answer within {self.seconds:g} s, the server's deadline: try again later"
        )

    def upload_passed(self) -> Problem:
        """What is told when not even the question is."""
        return Problem(408, f"the request was not complete within {self.seconds:g} s, the server's deadline")
