"""A whole batch: read the questions, cut them into shards, have those answered that are not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptris.errors import InputError, MissingExtraError, PromptRISError

if TYPE_CHECKING:
    from promptris.distributed.parts import PartFacts, Results
    from promptris.distributed.questions import Source
    from promptris.distributed.shards import Plan

FORMAT = 1
_MAX_FAILED = 10

Progress = Callable[[int, int], None]
"""Told (expressions done, expressions in all)."""


@dataclass(frozen=True)
class Summary:
    """What a batch has come to.

    Attributes:
        out: folder of the results.
        images: different ones in the input.
        expressions: rows of the results.
        errors: rows with an error in place of an answer.
        shards: parts of the results.
        resumed: parts that were there before.
        unfinished: why shards could not be answered, by number; the same call tries them again.
        answered: expressions of this run.
        workers: how many processes have answered them, with those that took a lost one's place.
        seconds: from starting Ray to the last part; 0 where all was there.
        worker_seconds: what the workers have spent on shards, added up; without starting and loading the model.
        core_seconds: the same in CPU time of all their threads.
    """

    out: str
    images: int
    expressions: int
    errors: int
    shards: int
    resumed: int
    unfinished: dict[int, str]
    answered: int
    workers: int
    seconds: float
    worker_seconds: float
    core_seconds: float


def segment_dataset(
    source: Source,
    out: str | Path,
    model: str | Path = "tiny",
    *,
    image_column: str = "image",
    expression_column: str | None = None,
    concurrency: int | tuple[int, int] | None = None,
    batch_size: int = 256,
    expressions_per_pass: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    device: str = "auto",
    dtype: str = "auto",
    threshold: float = 0.5,
    clip: str | Path | None = None,
    sam: str | Path | None = None,
    max_retries: int = 3,
    resume: bool = True,
    address: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Answer the expressions about many images on a Ray cluster, and write the masks as parquet.

    The input is cut into shards, each written as one part, whole or not at all. A lost worker's shards go to another
    one; a run that has ended early goes on when it is called again: parts that are there are not made again. Either
    way every expression has one row in the end. An image that cannot be read, or an expression that cannot be
    answered, has an error in its row and stops nothing.

    Args:
        source: a parquet or JSON-lines file, a folder with such files, a glob, a URI, or several of these.
        out: folder for the results (`parts.ANSWERS`); a path that all machines share, or a URI such as s3://...
        model: built-in name, folder or hub id; only this process reads it, and hands it to the workers.
        image_column: of paths or URIs (file, http, https, s3 ...); relative ones start from the folder of their file.
        expression_column: of texts or lists of texts; None means "expressions" or "expression".
        concurrency: how many workers, or the fewest and the most; None means from one to as many as there is room.
        batch_size: expressions per shard: what is written at once, and at most lost with a worker.
        expressions_per_pass: how many run through the model at once.
        num_cpus: cores of each worker.
        num_gpus: GPUs of each worker; 0.5 lets two share one.
        device: of the workers; "auto" is the CPU unless `num_gpus` is given.
        dtype: "auto" (bfloat16 where it is faster, else float32), "float32", "bfloat16" or "float16".
        threshold: a pixel belongs to the mask when its probability is above this.
        clip: where the frozen CLIP is now, when it is not where it was at training time.
        sam: the same for SAM.
        max_retries: how often a task of a lost worker, and an image that does not come, is tried again.
        resume: go on with a run in `out`; without it one that is there is an error.
        address: of the Ray cluster; None means the one that RAY_ADDRESS names, else one on this machine alone. Ray
            that is running in this process already is used as it is.
        progress: told how far it is.

    Raises:
        InputError: for an input or a model that cannot be read, results of another run in `out`, or a device that
            the workers do not have.
        MissingExtraError: without the extra `ray`.
        PromptRISError: when more than a few shards fail; what is written stays.
    """
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    from promptris.distributed.identity import fingerprint, model_hash
    from promptris.distributed.locations import is_uri
    from promptris.distributed.parts import Results
    from promptris.distributed.pool import Pool, ray_session, run_shards
    from promptris.distributed.questions import read_questions
    from promptris.distributed.shards import Plan
    from promptris.distributed.worker import Work
    from promptris.modeling.prompt_ris import PromptRIS

    workers = _workers(concurrency)
    _check(batch_size, expressions_per_pass, num_cpus, num_gpus, max_retries, threshold)
    plan = Plan(read_questions(source, image_column, expression_column), batch_size)
    loaded = PromptRIS.from_pretrained(model, clip, sam)
    stamp = {
        "format": FORMAT,
        "input": plan.content,
        "model": model_hash(loaded),
        "batch_size": batch_size,
        "expressions_per_pass": expressions_per_pass,
        "dtype": dtype,
        "threshold": threshold,
    }
    run = fingerprint(stamp)
    # Workers may have another working folder.
    results = Results(str(out) if is_uri(str(out)) else str(Path(out).absolute()))
    results.begin(stamp, resume)
    there = results.finished(run, plan.keys)
    left = [number for number in range(len(plan)) if number not in there]
    where = "cpu" if device == "auto" and not num_gpus else device
    work = Work(results.location, run, where, dtype, threshold, expressions_per_pass, max_retries)
    seconds, heard = 0.0, _Heard()
    if left:
        start = time.perf_counter()
        with ray_session(address):
            pool = Pool(workers, num_cpus, num_gpus, max_retries)
            shards = (plan.shard(number) for number in left)
            # An error ends Ray, and whatever still runs on it has to end before.
            with closing(run_shards(shards, loaded, work, pool)) as reports:
                heard = _listen(reports, plan, left, progress or (lambda done, total: None))
        seconds = time.perf_counter() - start
    return _sum_up(results, run, plan, there, heard, seconds)


def _workers(concurrency: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if concurrency is None:
        return None
    fewest, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    if not 1 <= fewest <= most:
        raise InputError(
            f"the concurrency {concurrency} is not a number of workers, or the fewest and the most"
        )
    return fewest, most


def _check(
    batch_size: int,
    expressions_per_pass: int,
    num_cpus: float,
    num_gpus: float,
    max_retries: int,
    threshold: float,
) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("expressions_per_pass", expressions_per_pass, 1),
        ("max_retries", max_retries, 0),
        ("num_gpus", num_gpus, 0),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    if not num_cpus > 0:
        raise InputError(f"num_cpus must be more than 0, not {num_cpus}")
    if not 0 < threshold < 1:
        raise InputError(f"the threshold must lie between 0 and 1, not at {threshold}")


@dataclass
class _Heard:
    """Of the workers: who there was, what kept shards from being answered, how long the others took."""

    workers: set[str] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    core_seconds: float = 0.0


def _listen(reports: Iterable[dict[str, Any]], plan: Plan, left: list[int], progress: Progress) -> _Heard:
    """Wait for the shards that are left."""
    total = plan.questions.num_rows
    done = total - sum(plan.size(number) for number in left)
    progress(done, total)
    heard = _Heard()
    for report in reports:
        heard.workers.add(report["worker"])
        problem = report["problem"]
        if report["hopeless"]:
            raise InputError(problem)
        if problem is None:
            done += report["rows"]
            heard.seconds += report["seconds"]
            heard.core_seconds += report["core_seconds"]
            progress(done, total)
            continue
        heard.failed[report["number"]] = problem
        if len(heard.failed) > _MAX_FAILED:
            raise PromptRISError(
                f"{len(heard.failed)} shards have failed, the last one with: {problem}; what is written stays, and "
                "the same command goes on from there"
            )
    return heard


def _sum_up(
    results: Results,
    run: str,
    plan: Plan,
    before: dict[int, PartFacts],
    heard: _Heard,
    seconds: float,
) -> Summary:
    """What is there now, from the parts themselves."""
    results.sweep()
    parts = results.finished(run, plan.keys)
    lost = "every worker that took it was lost"
    return Summary(
        out=results.location,
        images=plan.images,
        expressions=sum(part.rows for part in parts.values()),
        errors=sum(part.errors for part in parts.values()),
        shards=len(parts),
        resumed=len(before),
        unfinished={
            number: heard.failed.get(number, lost) for number in range(len(plan)) if number not in parts
        },
        answered=sum(part.rows for number, part in parts.items() if number not in before),
        workers=len(heard.workers),
        seconds=round(seconds, 3),
        worker_seconds=round(heard.seconds, 3),
        core_seconds=round(heard.core_seconds, 3),
    )
