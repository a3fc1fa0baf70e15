"""Shards on Ray Data: a pool of actors that grows and shrinks, whose lost members are replaced."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from promptris.distributed.locations import first_line
from promptris.distributed.shards import Shard
from promptris.distributed.worker import ShardWorker, Work, pack
from promptris.errors import InputError, PromptRISError
from promptris.modeling.prompt_ris import PromptRIS

_MAX_TASKS = 4000
"""More shards than this share tasks: Ray's bookkeeping costs memory for each."""
_MAX_LOST_TASKS = 10
_MAX_RESTARTS = 100


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what each of them takes.

    Attributes:
        workers: the fewest and the most; None means from one to as many as the cluster has room for now.
        num_cpus: cores of each.
        num_gpus: GPUs of each; 0.5 lets two share one.
        max_retries: how often a task is given to another worker after its own was lost.
    """

    workers: tuple[int, int] | None
    num_cpus: float
    num_gpus: float
    max_retries: int

    def bounds(self) -> tuple[int, int]:
        """The fewest and the most workers; InputError where the cluster has no room for any."""
        there = ray.cluster_resources()
        room = int(there.get("CPU", 0) / self.num_cpus)
        if self.num_gpus:
            room = min(room, int(there.get("GPU", 0) / self.num_gpus))
        if self.workers is not None:
            return self.workers
        if not room:
            raise InputError(
                f"the cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs, and a worker takes "
                f"{self.num_cpus:g} and {self.num_gpus:g}: give --concurrency if it grows, or ask for less"
            )
        return 1, room


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Ray, connected; what was begun here ends here.

    Args:
        address: of a cluster; None means the one that RAY_ADDRESS names, or else this machine alone. A process
            that is connected already stays where it is.

    Raises:
        InputError: when there is no cluster at the address, or none can be started.
    """
    if address is not None:
        _check_reachable(address)
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # No reports about its use, which Ray would send otherwise, and no remarks of its core, which would tell users
    # that an actor cannot be restarted without the process that has made it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _check_reachable(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with _no_stderr():
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:  # Ray raises all kinds, bare ones too
        what = "start Ray on this machine" if address == "local" else f"connect to Ray at {address}"
        raise InputError(f"cannot {what}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_shards(
    shards: Iterable[Shard], model: PromptRIS, work: Work, pool: Pool
) -> Generator[dict[str, Any]]:
    """Reports (`worker.REPORT`) of shards as they are done, in any order.

    A shard may be missing, when every worker that took it was lost.

    Raises:
        PromptRISError: when Ray gives up.
    """
    fewest, most = pool.bounds()
    rows = [pack(shard) for shard in shards]
    fewest, most = min(fewest, len(rows)), min(most, len(rows))
    with _quiet_context():
        tasks = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_TASKS))
        with warnings.catch_warnings():
            # Of the only way to bound retries, which Ray will have replaced by 2.64; hence the bound on its version.
            warnings.simplefilter("ignore")
            reports = tasks.map_batches(
                ShardWorker,
                fn_constructor_args=(work, ray.put(model)),
                batch_size=1,
                batch_format="pyarrow",
                # Fewer in flight, and Ray would never see a need for more actors.
                compute=ray.data.ActorPoolStrategy(
                    min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=2
                ),
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus,
                ray_remote_args_fn=lambda: {
                    "max_restarts": _MAX_RESTARTS,
                    "max_task_retries": pool.max_retries,
                },
            )
        try:
            for batch in reports.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()
        except RayError as error:
            raise PromptRISError(
                f"Ray gave up ({type(error).__name__}: {first_line(error)}): what is written stays, and the same "
                "command goes on from there"
            ) from error


def _check_reachable(address: str) -> None:
    """InputError where nobody listens, for which Ray would wait some minutes."""
    named = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if named is None:  # auto, local
        return
    try:
        socket.create_connection((named[1].strip("[]"), int(named[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot connect to Ray at {address}: {first_line(error)}") from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Nothing on stderr for the while: Ray's core remarks there, past Python, that it has been told to be quiet."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _quiet_context() -> Iterator[None]:
    """Ray Data's global settings for the while: no bars of its own, and not stopped by a few lost tasks."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        "max_errored_blocks": _MAX_LOST_TASKS,
        # Room that is kept free for a task's output; a report takes next to none, and a small object store would
        # have no room for any task.
        "target_max_block_size": 1 << 20,
    }
    before = {name: getattr(context, name) for name in wanted}
    loggers = {name: logging.getLogger(name).level for name in ("ray", "ray.data")}
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
