"""`promptris segment`: images from files, folders, globs or standard input, answered one after the other."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptris.config import PromptName
from promptris.errors import InputError
from promptris.interfaces.methods import ProposalChoice
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.terminal import no_progress, print_record, progress, report
from promptris.outputs import PredictionWriter, summary

if TYPE_CHECKING:
    from promptris.mask_classification.segmenter import MaskClassifier
    from promptris.predictor import Predictor

STDIN = "-"
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""Files of a folder that are taken for images."""

_LINE_EXAMPLE = '{"image": "photo.jpg", "expressions": ["the dog on the left"]}'


@dataclass(frozen=True)
class Job:
    """An image and what is asked about it."""

    image: str
    expressions: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """How every image is to be answered; `debug` shows the tracebacks of images that fail."""

    clicks: Sequence[tuple[float, float, int]] = ()
    prompts: tuple[PromptName, ...] | None = None
    debug: bool = False


def segment(
    image: str,
    expressions: Sequence[str],
    choice: ModelChoice | ProposalChoice,
    out: Path,
    formats: Sequence[str],
    question: Question,
) -> int:
    """Answer everything asked; returns the exit code: 0, 1 when some images failed, 2 when all did.

    Raises:
        InputError: when there is nothing to answer, or the model cannot be loaded.
    """
    jobs, count = _jobs(image, expressions, out)
    facts = {"model": choice.shown_name, "threshold": choice.threshold}
    writer = PredictionWriter(out, formats, facts, choice.note)
    predictor = choice.load()
    done = failed = 0
    # On a shared terminal the records are progress enough.
    wanted = count > 1 and not sys.stdout.isatty()
    with progress("segmenting") if wanted else nullcontext(no_progress) as advance:
        for job in jobs:
            about = job.image if isinstance(job, Job) else None
            try:
                if isinstance(job, InputError):
                    raise job
                _answer(job, predictor, writer, question)
                done += 1
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever is wrong with one image, the others are answered
                failed += 1
                report(error, question.debug, about)
            advance(done + failed, count)
    if not done + failed:
        raise InputError(f"standard input is empty: give one line per image, such as {_LINE_EXAMPLE}")
    if failed:
        return 1 if done else 2
    return 0


def find_images(image: str, out: Path) -> list[str]:
    """The files that a path, folder or glob stands for, in the order of their names.

    Raises:
        InputError: when there are none, or a folder would get the results beside its own images.
    """
    path = Path(image)
    if path.is_dir():
        names = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        found = [str(p) for p in names if not p.name.startswith(".")]
        if not found:
            raise InputError(f"the folder {image} holds no images (JPEG, PNG, WebP ...)")
        if path.resolve() == out.resolve():
            raise InputError(f"the results would land among the images in {image}: give another --out folder")
        return found
    if path.exists():
        return [image]
    if glob.has_magic(image):
        # pathlib's glob takes no absolute patterns.
        found = sorted(p for p in glob.glob(image, recursive=True) if Path(p).is_file())  # noqa: PTH207
        if not found:
            raise InputError(f"no file matches {image!r}")
        return found
    raise InputError(f"there is no image, folder or glob {image!r}")


def _answer(
    job: Job, predictor: Predictor | MaskClassifier, writer: PredictionWriter, question: Question
) -> None:
    from promptris.processing import load_image

    pixels = load_image(job.image)
    predictions = predictor.set_image(pixels).predict(
        job.expressions, prompts=question.prompts, points=question.clicks
    )
    files = writer.write(job.image, pixels, predictions)
    note = {} if writer.note is None else {"note": writer.note}
    for prediction, paths in zip(predictions, files, strict=True):
        print_record({**summary(job.image, prediction), "files": [str(p) for p in paths], **note})


def _jobs(image: str, expressions: Sequence[str], out: Path) -> tuple[Iterable[Job | InputError], int]:
    """What is to be done, and how many images that are: 0 where the end is not known."""
    if image == STDIN:
        if expressions:
            raise InputError("with '-' the expressions come from standard input, not from the command line")
        return _jobs_from_lines(sys.stdin.buffer), 0
    example = "for example 'the red circle'"
    if not expressions:
        raise InputError(f"no expression is given: say what to segment in {image}, {example}")
    for number, expression in enumerate(expressions, start=1):
        if problem := _problem_with(expression):
            raise InputError(f"expression {number} of {len(expressions)} {problem}: give words, {example}")
        if Path(expression).suffix.lower() in IMAGE_SUFFIXES and _is_file(expression):
            raise InputError(
                f"the expression {expression!r} is a file: put a glob in quotes, 'photos/*.jpg', so that the "
                "shell leaves it to promptris"
            )
    try:
        paths = find_images(image, out)
    except OSError as error:
        raise InputError(f"cannot read {image[:80]!r}: {error.strerror or error}") from error
    return [Job(path, tuple(expressions)) for path in paths], len(paths)


def _jobs_from_lines(lines: Iterable[bytes]) -> Iterator[Job | InputError]:
    """Jobs from JSON lines as they come; a line that is none becomes the error to report."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _job_from_line(line)
            except InputError as error:
                yield InputError(f"line {number} of standard input {error}; a line is {_LINE_EXAMPLE}")


def _job_from_line(line: bytes) -> Job:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})") from error
    image = content.get("image") if isinstance(content, dict) else None
    expressions = content.get("expressions") if isinstance(content, dict) else None
    if not isinstance(image, str) or not image:
        raise InputError('has no "image" with a path')
    if not isinstance(expressions, list) or not expressions:
        raise InputError('has no "expressions" with a list of texts')
    for expression in expressions:
        if problem := _problem_with(expression):
            raise InputError(f"has an expression that {problem}")
    return Job(image, tuple(expressions))


def _problem_with(expression: object) -> str | None:
    """What keeps something from being an expression, as the end of a sentence."""
    if not isinstance(expression, str):
        return "is not text"
    if not expression.strip():
        return "is empty"
    try:
        expression.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode text"
    return None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a long expression is no possible file name
        return False
