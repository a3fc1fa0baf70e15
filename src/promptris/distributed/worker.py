"""An actor of Ray: it holds the model, answers shards and writes their parts."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from promptris.distributed.answering import answer_questions
from promptris.distributed.parts import Results
from promptris.distributed.shards import Shard
from promptris.errors import PromptRISError
from promptris.placement import place
from promptris.predictor import Predictor

REPORT = pa.schema(
    [
        ("worker", pa.string()),
        ("number", pa.int64()),
        ("rows", pa.int64()),
        ("seconds", pa.float64()),
        ("core_seconds", pa.float64()),
        ("problem", pa.string()),
        ("hopeless", pa.bool_()),
    ]
)
"""What a worker says of a shard: who it is, the shard's number, the rows written, how long that took by the clock and
in CPU time; or what kept them from being written, and whether the same will happen to every shard."""


@dataclass(frozen=True)
class Work:
    """What all workers of a run have in common.

    Attributes:
        folder: of the results.
        run: fingerprint of the run.
        device: "auto" or a torch device.
        dtype: as `promptris.load`.
        threshold: of the masks' probabilities.
        expressions_per_pass: how many expressions run through the model at once.
        retries: of remote images, and of a shard that fails for no fault of its input.
    """

    folder: str
    run: str
    device: str
    dtype: str
    threshold: float
    expressions_per_pass: int
    retries: int


class ShardWorker:
    """Answers shards, one per row of a batch (see `pack`).

    Args:
        work: what to do.
        model: reference of the model in Ray's object store.
    """

    def __init__(self, work: Work, model: Any) -> None:
        self.work, self.results = work, Results(work.folder)
        self.name = f"{ray.get_runtime_context().get_node_id()[:8]}:{os.getpid()}"
        self.predictor: Predictor | None = None
        try:
            placed = place(ray.get(model), work.device, work.dtype)
            self.predictor = Predictor(placed, work.threshold, work.expressions_per_pass, remembered_images=0)
        except PromptRISError as error:  # an actor that cannot be made would be made again and again
            self.hopeless = str(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A `REPORT` of every shard of the batch."""
        return pa.Table.from_pylist([self._report(unpack(row)) for row in batch.to_pylist()], REPORT)

    def _report(self, shard: Shard) -> dict[str, Any]:
        report = {"worker": self.name, "number": shard.number, "hopeless": self.predictor is None}
        if self.predictor is None:
            return {**report, "problem": self.hopeless}
        for tries in range(self.work.retries + 1):
            if tries:
                time.sleep(min(2.0**tries, 30))
            clock, cores = time.perf_counter(), time.process_time()
            try:
                rows = self._write(shard, self.predictor)
                took = {"seconds": time.perf_counter() - clock, "core_seconds": time.process_time() - cores}
                return {**report, "rows": rows, **took}
            except PromptRISError as error:
                problem = str(error)
            except Exception as error:  # of the machine, not of the input: it is told, and the shard left out
                problem = f"unexpected {type(error).__name__}: {str(error)[:300]}"
        return {**report, "problem": " ".join(problem.split())}

    def _write(self, shard: Shard, predictor: Predictor) -> int:
        # A task that Ray runs again, since a worker was lost, may have written some of its shards before.
        there = self.results.facts(self.work.run, shard.number, shard.key)
        if there is None:
            answers = answer_questions(shard.questions, predictor, self.work.retries)
            there = self.results.write(self.work.run, shard.number, shard.key, answers)
        return there.rows


def pack(shard: Shard) -> dict[str, Any]:
    """A shard as a row for Ray Data, which can neither cut it nor join it with another one."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, shard.questions.schema) as stream:
        stream.write_table(shard.questions)
    return {"number": shard.number, "key": shard.key, "questions": buffer.getvalue().to_pybytes()}


def unpack(row: dict[str, Any]) -> Shard:
    """The shard of a row that `pack` has made."""
    with pa.ipc.open_stream(row["questions"]) as stream:
        return Shard(row["number"], row["key"], stream.read_all())
