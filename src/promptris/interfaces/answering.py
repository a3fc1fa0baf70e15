"""The work of `promptris segment`: images answered one after the other, finished ones remembered."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from promptris.annotation_files import write_run
from promptris.builtin_models import TINY_NOTE
from promptris.config import PromptName
from promptris.errors import InputError
from promptris.finished_items import INDEX_FILE, FinishedItems, Item, file_digest, item_key
from promptris.interfaces.jobs import LINE_EXAMPLE, STDIN, Job, find_jobs
from promptris.interfaces.methods import ProposalChoice
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.terminal import no_progress, print_record, progress, report, say
from promptris.outputs import RUN_FORMATS, PredictionWriter, told

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from promptris.mask_classification.segmenter import MaskClassifier
    from promptris.prediction import Explanation, Prediction
    from promptris.predictor import Predictor

_SCENE = re.compile(r"refshapes_\d{12}\.jpg")  # what `promptris refshapes` calls its images
_INDEX_VERSION = 1


@dataclass(frozen=True)
class Question:
    """How every image is to be answered; `debug` shows the tracebacks of images that fail."""

    clicks: Sequence[tuple[float, float, int]] = ()
    prompts: tuple[PromptName, ...] | None = None
    box: tuple[float, float, float, float] | None = None
    debug: bool = False


def segment(
    image: str,
    expressions: Sequence[str],
    choice: ModelChoice | ProposalChoice,
    out: Path,
    formats: Sequence[str],
    question: Question,
    resume: bool = False,
) -> int:
    """Answer everything asked; returns the exit code: 0, 1 when some images failed, 2 when all did.

    Raises:
        InputError: when there is nothing to answer, the model cannot be loaded, or a file of the whole run cannot be
            written.
    """
    jobs, count = find_jobs(image, expressions, out)
    run_formats = [name for name in formats if name in RUN_FORMATS]
    facts = {"model": choice.shown_name, "threshold": choice.threshold}
    writer = PredictionWriter(out, formats, facts, choice.note)
    # A single image leaves nothing beside its results.
    noted_before = (out / INDEX_FILE).is_file()  # by a run whose files this one may replace
    finished = FinishedItems(out) if count != 1 or run_formats or resume or noted_before else None
    predictor = choice.load()
    settings = _settings(choice, predictor, formats, question) if finished is not None else {}
    run = _Run(predictor, writer, question, finished, settings, resume, choice.built_in)
    done = failed = 0
    # On a shared terminal the records are progress enough.
    wanted = count != 1 and not sys.stdout.isatty() and not (image == STDIN and sys.stdin.isatty())
    try:
        with progress("segmenting") if wanted else nullcontext(no_progress) as advance:
            for job in jobs:
                about = job.image if isinstance(job, Job) else None
                try:
                    if isinstance(job, InputError):
                        raise job
                    run.answer(job)
                    done += 1
                except BrokenPipeError:
                    raise
                except Exception as error:  # whatever is wrong with one image, the others are answered
                    failed += 1
                    report(error, question.debug, about)
                advance(done + failed, count)
    except KeyboardInterrupt:
        if finished is not None:
            say(f"stopped after {done + failed} images: the same command with --resume goes on from there")
        raise
    if not done + failed:
        raise InputError(f"standard input is empty: give one line per image, such as {LINE_EXAMPLE}")
    if resume:
        say(f"{run.skipped} of {done + failed} images were finished before")
    if done and finished is not None:
        for name in run_formats:
            path = write_run(name, out, lambda: finished.items(run.keys), tuple(expressions), writer.facts)
            say(f"{path}: {done} images")
    if failed:
        return 1 if done else 2
    return 0


def _settings(
    choice: ModelChoice | ProposalChoice,
    predictor: Predictor | MaskClassifier,
    formats: Sequence[str],
    question: Question,
) -> dict[str, Any]:
    """All that answers and files depend on beside image and expressions; the model by what is in it."""
    from promptris.modeling.content_hash import content_hash
    from promptris.modeling.prompt_ris import PromptRIS

    model = predictor.model
    return {
        "version": _INDEX_VERSION,
        "model": [choice.shown_name, content_hash(model)],
        "config": model.config.to_dict() if isinstance(model, PromptRIS) else None,
        "dtype": str(next(model.parameters()).dtype),
        "engine": type(getattr(predictor, "image_encoder", None)).__name__,
        "threshold": choice.threshold,
        "prompts": question.prompts,
        "clicks": question.clicks,
        "box": question.box,
        "formats": list(formats),
        "note": choice.note,
    }


class _Run:
    """Answers jobs one by one, or finds them answered.

    Args:
        predictor: what answers.
        writer: of the files of single predictions.
        question: how to ask.
        finished: where finished items are kept; None keeps none.
        settings: see `item_key`.
        resume: skip what is finished.
        built_in: the model knows scenes of RefShapes only.
    """

    def __init__(
        self,
        predictor: Predictor | MaskClassifier,
        writer: PredictionWriter,
        question: Question,
        finished: FinishedItems | None,
        settings: dict[str, Any],
        resume: bool,
        built_in: bool,
    ) -> None:
        self.predictor, self.writer, self.question = predictor, writer, question
        self.finished, self.settings, self.resume = finished, settings, resume
        self.keys: list[str] = []
        """Of the items of this run, in order."""
        self.skipped = 0
        self._asked: Counter[str] = Counter()
        self._hint = TINY_NOTE if built_in else None

    def answer(self, job: Job) -> None:
        """Answer a job, write its files and print its records."""
        if self._hint is not None and not _SCENE.fullmatch(Path(job.image).name):
            say(f"note: {self._hint}")
            self._hint = None
        key = self._key(job)
        item = self.finished.find(key) if self.finished is not None and self.resume else None
        if item is None:
            item = self._answer(job, key)
        else:
            self.writer.keep(item.stem)
            self.skipped += 1
        self.keys.append(key)
        note = {} if self.writer.note is None else {"note": self.writer.note}
        for record, names in zip(item.records, item.files, strict=True):
            files = [str(self.writer.folder / name) for name in names]
            print_record({"image": job.image, **record, "files": files, **note})

    def _key(self, job: Job) -> str:
        content = file_digest(Path(job.image)) if self.finished is not None else None
        if content is None:
            return uuid4().hex  # not to be found again; what is wrong with a file is told when it is read
        first = item_key(self.settings, job.image, content, job.expressions, 0)
        self._asked[first] += 1
        number = self._asked[first] - 1
        return item_key(self.settings, job.image, content, job.expressions, number) if number else first

    def _answer(self, job: Job, key: str) -> Item:
        from promptris.processing import load_image

        pixels = load_image(job.image)
        predictions, explanations = self._predictions(pixels, job.expressions)
        known = self.finished.stems if self.finished is not None and self.resume else None
        stem = self.writer.claim(job.image, known)
        files = self.writer.names(stem, job.expressions)
        keeps_masks = any(name in RUN_FORMATS for name in self.settings.get("formats", ()))
        item = Item(
            key=key,
            image=job.image,
            stem=stem,
            size=list(pixels.shape[:2]),
            records=[told(prediction) for prediction in predictions],
            files=[[path.name for path in paths] for paths in files],
            segmentations=[prediction.to_rle() for prediction in predictions] if keeps_masks else [],
        )
        if self.finished is not None:
            self.finished.claim(key, [path for paths in files for path in paths])
        self.writer.fill(files, job.image, pixels, predictions, explanations)
        if self.finished is not None:
            self.finished.add(item)
        return item

    def _predictions(
        self, pixels: NDArray[np.uint8], expressions: tuple[str, ...]
    ) -> tuple[list[Prediction], list[Explanation]]:
        from promptris.predictor import ImagePredictor

        with_image = self.predictor.set_image(pixels)
        prompts, clicks, box = self.question.prompts, self.question.clicks, self.question.box
        if "explain" in self.writer.formats and isinstance(with_image, ImagePredictor):
            explanations = [
                with_image.explain(text, prompts=prompts, points=clicks, box=box) for text in expressions
            ]
            return [explanation.prediction for explanation in explanations], explanations
        return with_image.predict(expressions, prompts=prompts, points=clicks, box=box), []
