"""Requests that arrive together are answered together, by one thread that runs the model."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from promptris.placement import LARGE_IMAGE
from promptris.prediction import Prediction
from promptris.predictor import Guidance, Predictor
from promptris.structures import ImageBatch, ImageFeatures

MASK_PIXELS = 500_000_000
"""Pixels of all final masks of a batch, a byte each, and as many of coarse ones; a request for more is refused."""

_MANY = 16
_log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests wait as may."""


class DeadlinePassedError(Exception):
    """A request's turn came too late."""


@dataclass(frozen=True)
class PreparedImage:
    """A decoded image that is still to be encoded.

    Attributes:
        squares: of one image.
        size: its (height, width).
        digest: of its content; equal images of one batch are encoded once.
    """

    squares: ImageBatch
    size: tuple[int, int]
    digest: bytes


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image of (height, width)."""

    features: ImageFeatures
    size: tuple[int, int]


@dataclass(frozen=True)
class Question:
    """Expressions about one image; none only encodes it.

    Attributes:
        image: what they are about.
        expressions: the texts.
        guidance: prompts, clicks and box, for all of them.
    """

    image: PreparedImage | EncodedImage
    expressions: tuple[str, ...] = ()
    guidance: Guidance = field(default_factory=Guidance)

    @property
    def mask_pixels(self) -> int:
        """Pixels of the masks that answer it."""
        return math.prod(self.image.size) * len(self.expressions)


@dataclass(frozen=True)
class Answer:
    """The encoded image, and predictions in the order of the expressions."""

    image: EncodedImage
    predictions: list[Prediction]


@dataclass
class _Job:
    question: Question
    until: float
    answer: Future[Answer] = field(default_factory=Future)

    @property
    def encoded(self) -> EncodedImage:
        """The image, once the batch is encoded."""
        assert isinstance(self.question.image, EncodedImage)
        return self.question.image

    def begin(self) -> bool:
        """Whether the answer is still wanted."""
        if not self.answer.set_running_or_notify_cancel():
            return False
        if time.monotonic() >= self.until:
            self.answer.set_exception(DeadlinePassedError())
            return False
        return True


class Batcher:
    """A bounded queue in front of the model.

    Nothing is waited for: the first question is answered at once, and whatever has come in the meantime is
    answered together. The thread is started by the first question.

    Args:
        predictor: what answers.
        waiting: questions that may wait.
        together: questions of one batch at most; None decides by model and device, see `usual_batch`.
        observe: is told the number of questions of every batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        waiting: int = 64,
        together: int | None = None,
        observe: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.predictor = predictor
        self.together = usual_batch(predictor) if together is None else together
        self._observe = observe
        self._queue: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._backlog: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._seconds_each = 0.0

    def submit(self, question: Question, until: float) -> Future[Answer]:
        """Have a question answered.

        Args:
            question: what is asked.
            until: `time.monotonic()` after which nobody waits for the answer.

        Returns:
            the answer to come; it fails with DeadlinePassedError, with InputError for clicks that do not fit, or with
            whatever else happens to this question alone.

        Raises:
            QueueFullError: when too many wait.
        """
        job = _Job(question, until)
        self._start()
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise QueueFullError from None
        return job.answer

    @property
    def waiting(self) -> int:
        """Questions that wait for their turn."""
        return self._queue.qsize() + len(self._backlog)

    @property
    def expected_wait(self) -> float:
        """Seconds until a question that comes now would be answered, by the pace so far."""
        return (self.waiting + 1) * self._seconds_each

    def close(self) -> None:
        """End the thread after the questions that wait."""
        with self._starting:
            if self._thread is not None:
                self._queue.put(None)
                self._thread.join()
                self._thread = None

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="promptris-model", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        goes_on = True
        while goes_on or self._backlog:
            if not self._backlog:
                goes_on = self._next()
            while goes_on and len(self._backlog) < self.together and not self._queue.empty():
                goes_on = self._next()
            if self._backlog:
                self._run_batch(self._take())

    def _next(self) -> bool:
        """Move a question from the queue to the backlog, waiting for one; False when the end has come instead."""
        job = self._queue.get()
        if job is not None:
            self._backlog.append(job)
        return job is not None

    def _take(self) -> list[_Job]:
        """The next batch, whose size is a power of two.

        oneDNN and the allocator keep memory for every shape they have met: sizes at will would have it grow for long.
        """
        count = 1 << (min(len(self._backlog), self.together).bit_length() - 1)
        batch = [self._backlog.popleft()]
        pixels = batch[0].question.mask_pixels
        while len(batch) < count:
            pixels += self._backlog[0].question.mask_pixels
            if pixels > MASK_PIXELS:
                break
            batch.append(self._backlog.popleft())
        return batch

    def _run_batch(self, batch: list[_Job]) -> None:
        jobs = [job for job in batch if job.begin()]
        if not jobs:
            return
        self._observe(len(jobs))
        start = time.perf_counter()
        _each_gets_its_own(jobs, self._answer)
        each = (time.perf_counter() - start) / len(jobs)
        self._seconds_each = each if self._seconds_each == 0 else 0.8 * self._seconds_each + 0.2 * each

    def _answer(self, jobs: list[_Job]) -> None:
        self._encode(jobs)
        groups: dict[object, list[_Job]] = {}
        for job in jobs:
            guidance = job.question.guidance
            # Clicks are in the pixels of one image.
            key = id(job) if guidance.corrects else guidance.prompts
            groups.setdefault(key, []).append(job)
        for group in groups.values():
            _each_gets_its_own(group, self._answer_group)

    def _answer_group(self, jobs: list[_Job]) -> None:
        """Answer jobs with the same guidance in the same passes; their images are encoded."""
        images = [job.encoded for job in jobs]
        unique = {id(image): image for image in images}
        numbers = {key: number for number, key in enumerate(unique)}
        texts = [text for job in jobs for text in job.question.expressions]
        index = [
            numbers[id(image)]
            for job, image in zip(jobs, images, strict=True)
            for _ in job.question.expressions
        ]
        predictions: list[Prediction] = []
        if texts:
            predictions = self.predictor.answer(
                ImageFeatures.together([image.features for image in unique.values()]),
                [image.size for image in unique.values()],
                texts,
                index,
                jobs[0].question.guidance,
            )
        start = 0
        for job, image in zip(jobs, images, strict=True):
            end = start + len(job.question.expressions)
            job.answer.set_result(Answer(image, predictions[start:end]))
            start = end

    def _encode(self, jobs: list[_Job]) -> None:
        """Encode the images that are not encoded yet in one pass, equal ones once."""
        fresh = {
            image.digest: image for job in jobs if isinstance(image := job.question.image, PreparedImage)
        }
        if not fresh:
            return
        features = self.predictor.encode_prepared(
            ImageBatch.together([image.squares for image in fresh.values()])
        )
        encoded = {
            digest: EncodedImage(features.image(row), image.size)
            for row, (digest, image) in enumerate(fresh.items())
        }
        for job in jobs:
            if isinstance(image := job.question.image, PreparedImage):
                job.question = replace(job.question, image=encoded[image.digest])


def usual_batch(predictor: Predictor) -> int:
    """How many questions are answered together where nobody says.

    A CPU is kept busy by a single large image: more at once would only make the first wait for the last.
    """
    large = predictor.device.type == "cpu" and predictor.model.sam.image_size >= LARGE_IMAGE
    return 1 if large else _MANY


def _each_gets_its_own(jobs: list[_Job], answer: Callable[[list[_Job]], None]) -> None:
    """Answer jobs together; where that fails, each alone, so that only the one to blame fails."""
    try:
        answer(jobs)
    except Exception as error:
        waiting = [job for job in jobs if not job.answer.done()]
        if len(jobs) == 1:
            for job in waiting:
                job.answer.set_exception(error)
            return
        _log.info("a batch of %d failed with %s: answering one by one", len(jobs), type(error).__name__)
        for job in waiting:
            _each_gets_its_own([job], answer)
