"""Where curves and pictures of a run go: TensorBoard, and by name W&B, MLflow or trackio.

Each of them is imported when it is asked for. None of them can stop a run that has begun: `metrics.csv` holds the
figures anyway.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from promptris.data.pictures import load_record
from promptris.errors import InputError, MissingExtraError
from promptris.visualize import comparison

if TYPE_CHECKING:
    from promptris.data.dataset import ReferDataset
    from promptris.data.records import ImageRecord
    from promptris.evaluation.protocol import Scored
    from promptris.training.callbacks import StepRecord

Panel: TypeAlias = tuple[str, NDArray[np.uint8]]
"""A caption and a picture, RGB [H, W, 3]."""

PROJECT = "promptris"
IDS_FILE = "boards.json"

_FIRST_PAUSE, _LONGER = 60.0, 4.0
_MLFLOW_SECONDS, _MLFLOW_METRICS, _MLFLOW_PARAMETERS = 5.0, 1000, 100


class Board(Protocol):
    """One place where curves and pictures go; any method may raise anything."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def pictures(self, step: int, panels: Sequence[Panel]) -> None: ...
    def close(self, is_done: bool) -> None: ...


class Boards:
    """A sink that hands the figures of every step to all boards; a context manager that closes them.

    A board that fails is named in one warning. It is left alone for a minute, and four times as long after each
    further failure in a row, because a server that cannot be reached makes every attempt slow.

    Args:
        boards: the boards by name.
    """

    def __init__(self, boards: Mapping[str, Board]) -> None:
        self._boards = dict(boards)
        self._warned: set[str] = set()
        self._pauses: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Boards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(is_done=kind is None)

    def __call__(self, record: StepRecord) -> None:
        """Losses, learning rate and stage below "train", speed and memory below "machine"."""
        figures = {
            "train": {**record.losses, "lr": record.lr, "stage": record.stage},
            "machine": {
                "images_per_second": record.images_per_second,
                "seconds_per_step": record.seconds,
                "peak_memory_gib": record.peak_memory / 2**30,
            },
        }
        self.scalars(record.step, figures)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of a step by name; mappings in it become groups ("val/coarse/mIoU"), None is left out."""
        flat = {name: float(value) for name, value in _flat(values) if value is not None}
        self._tell(lambda board: board.scalars(step, flat))

    def pictures(self, step: int, panels: Sequence[Panel]) -> None:
        """Pictures of a step, always the same examples in the same order, so that they can be followed."""
        self._tell(lambda board: board.pictures(step, panels))

    def close(self, is_done: bool = True) -> None:
        """Write out what is left; `is_done` tells a finished run from one that was stopped."""
        self._pauses.clear()
        self._tell(lambda board: board.close(is_done))
        self._boards.clear()

    def _tell(self, send: Callable[[Board], None]) -> None:
        for name, board in self._boards.items():
            until, pause = self._pauses.get(name, (0.0, _FIRST_PAUSE))
            if monotonic() < until:
                continue
            try:
                send(board)
            except Exception as error:
                self._pauses[name] = monotonic() + pause, pause * _LONGER
                if name not in self._warned:
                    self._warned.add(name)
                    warnings.warn(
                        f"{name} cannot be written to ({_reason(error)}); the run goes on without it for now, and "
                        "metrics.csv is complete",
                        stacklevel=3,
                    )
            else:
                self._pauses.pop(name, None)


@dataclass(frozen=True)
class _Run:
    """What a board needs to know of the run it belongs to."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    resumed_at: int

    @property
    def id(self) -> str:
        """Names the run towards services, also when it is resumed."""
        return self.remembered("run", lambda: uuid.uuid4().hex[:8])

    def remembered(self, key: str, make: Callable[[], str]) -> str:
        """What an earlier process of this run has noted in the folder, or a new value, which is noted."""
        path = self.folder / IDS_FILE
        known: dict[str, str] = {}
        with suppress(FileNotFoundError, ValueError):
            known = json.loads(path.read_text())
        if key not in known:
            known[key] = make()
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(known) + "\n")
            partial.replace(path)
        return known[key]


def open_boards(
    names: Sequence[str], folder: Path, run_name: str, config: Mapping[str, Any], resumed_at: int
) -> Boards:
    """Open boards for a run.

    Args:
        names: of "tensorboard", "wandb", "mlflow" and "trackio"; none gives a sink that does nothing.
        folder: of the run; TensorBoard's files go to `folder`/tensorboard.
        run_name: shown by the boards.
        config: the recipe, of nested mappings, shown beside the curves.
        resumed_at: steps that are done already. TensorBoard forgets what it was told of later ones; the other
            services go on with the run they know.

    Raises:
        InputError: for an unknown name, or a service that is not installed or that a new run cannot be opened
            with; when a run is resumed the latter is but a warning.
        MissingExtraError: TensorBoard is not installed.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in _BOARDS:
            raise InputError(f"engine.log names {name!r}: choose from {', '.join(_BOARDS)}")
    run = _Run(folder, run_name, config, resumed_at)
    opened: dict[str, Board] = {}
    for name in wanted:
        try:
            opened[name] = _BOARDS[name](run)
        except Exception as error:
            failure = _failure(name, error)
            if resumed_at and not isinstance(error, ModuleNotFoundError):
                warnings.warn(str(failure), stacklevel=2)
                continue
            Boards(opened).close(is_done=False)
            raise failure from error
    return Boards(opened)


def _failure(name: str, error: Exception) -> Exception:
    """One sentence on why a board cannot be opened."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        if name == "tensorboard":
            return MissingExtraError(name, "train")
        return InputError(
            f"engine.log names {name}, which is not installed: pip install {name}, or leave it out"
        )
    return InputError(f"{name} cannot be opened ({_reason(error)}): mend that or leave it out of engine.log")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _plain(value: Any) -> Any:
    """Mappings and lists of what JSON knows; everything else as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _titles(panels: Sequence[Panel]) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """A lasting name for each picture, which has its caption in it, then caption and picture."""
    for number, (caption, picture) in enumerate(panels, start=1):
        yield f"examples/{number}", caption, picture


# ----------------------------------------------------------------------------------------------- the boards


class _TensorBoard:
    """Event files below the run's folder."""

    def __init__(self, run: _Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # The step of the first record to come; what is known from there on belongs to a process that was killed.
        first = run.resumed_at + 1 if run.resumed_at else 0
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first, flush_secs=10)
        if not run.resumed_at:
            recipe = json.dumps(_plain(run.config), indent=2)
            # Markdown keeps a block as it is when every line is indented.
            self._writer.add_text("recipe", "\n".join(f"    {line}" for line in recipe.splitlines()), 0)
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, panels: Sequence[Panel]) -> None:
        for name, _, picture in _titles(panels):
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self, is_done: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of W&B; WANDB_PROJECT, WANDB_MODE and the like are obeyed."""

    def __init__(self, run: _Run) -> None:
        self._wandb = import_module("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=_plain(run.config),
            allow_val_change=True,  # a resumed run may have other devices
        )
        self._first = self._run.starting_step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first:  # it keeps what it has, and complains about every step that it has already
            self._run.log(dict(values), step=step)

    def pictures(self, step: int, panels: Sequence[Panel]) -> None:
        if step >= self._first:
            images = {
                name: self._wandb.Image(picture, caption=caption)
                for name, caption, picture in _titles(panels)
            }
            self._run.log(images, step=step)

    def close(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)


class _MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are obeyed.

    Metrics are sent together every few seconds, because each request waits for the server.
    """

    def __init__(self, run: _Run) -> None:
        mlflow = import_module("mlflow")
        self._metric, parameter = mlflow.entities.Metric, mlflow.entities.Param
        self._client = mlflow.MlflowClient()
        self._waiting: list[Any] = []
        self._sent = monotonic()

        def create() -> str:
            experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            created = self._client.create_run(experiment.experiment_id, run_name=run.name)
            return str(created.info.run_id)

        self._id = run.remembered("mlflow", create)
        self._client.update_run(self._id, status="RUNNING")
        if not run.resumed_at:
            parameters = [parameter(_mlflow_name(k), str(v)) for k, v in _flat(_plain(run.config))]
            for start in range(0, len(parameters), _MLFLOW_PARAMETERS):
                self._client.log_batch(self._id, params=parameters[start : start + _MLFLOW_PARAMETERS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time() * 1000)
        self._waiting += [self._metric(_mlflow_name(k), v, now, step) for k, v in values.items()]
        if monotonic() - self._sent >= _MLFLOW_SECONDS or len(self._waiting) >= _MLFLOW_METRICS:
            self._send()

    def pictures(self, step: int, panels: Sequence[Panel]) -> None:
        self._send()
        for name, _, picture in _titles(panels):
            self._client.log_image(self._id, picture, key=name, step=step, synchronous=True)

    def close(self, is_done: bool) -> None:
        try:
            self._send()
        finally:
            with redirect_stdout(sys.stderr):  # where it tells the run's address
                self._client.set_terminated(self._id, "FINISHED" if is_done else "KILLED")

    def _send(self) -> None:
        waiting, self._waiting, self._sent = self._waiting, [], monotonic()
        for start in range(0, len(waiting), _MLFLOW_METRICS):
            self._client.log_batch(self._id, metrics=waiting[start : start + _MLFLOW_METRICS])


def _mlflow_name(name: str) -> str:
    """Without the signs that MLflow refuses, such as the one of P@0.5."""
    return re.sub(r"[^\w\-. /]", "_", name)


class _Trackio:
    """A run of trackio; TRACKIO_DIR and TRACKIO_SPACE_ID are obeyed."""

    def __init__(self, run: _Run) -> None:
        self._trackio = import_module("trackio")
        with redirect_stdout(sys.stderr):  # it greets the user
            self._run = self._trackio.init(
                project=PROJECT,
                name=f"{run.name}-{run.id}",  # the name is all that it finds a run again by
                config=_plain(run.config),
                resume="allow",
                embed=False,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, panels: Sequence[Panel]) -> None:
        images = {
            name: self._trackio.Image(picture, caption=caption) for name, caption, picture in _titles(panels)
        }
        self._run.log(images, step=step)

    def close(self, is_done: bool) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


_BOARDS: dict[str, Callable[[_Run], Board]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}


# -------------------------------------------------------------------------------------------------- pictures


def example_places(total: int, count: int) -> list[int]:
    """Which of `total` things to show when there is room for `count`: evenly spread, the first one among them."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def examples_of(dataset: ReferDataset, split: str, count: int) -> ReferDataset:
    """At most `count` referents of a split, always the same ones: what `panels_of` shows of a long split."""
    rows = dataset.rows[split]
    return dataset.with_rows({split: rows[example_places(len(rows), count)]})


def panels_of(
    scored: Sequence[Scored], images: Mapping[int, ImageRecord], count: int, tile_size: int = 256
) -> list[Panel]:
    """Pictures of some predictions: image, coarse mask with point, final mask with its IoU, and truth.

    The expression stands above each, and is its caption. The same predictions in the same order give the same
    choice, whatever their masks.

    Args:
        scored: predictions beside their truth.
        images: the image of each by `image_id`, as `ReferDataset.images`.
        count: how many to show at most.
        tile_size: longer side of each of the four pictures, in pixels.

    Raises:
        InputError: when an image cannot be read.
    """
    panels = []
    for place in example_places(len(scored), count):
        one = scored[place]
        answer, expression = one.prediction, one.expression.text
        picture = comparison(
            load_record(images[one.referent.image_id]),
            answer.coarse_mask,
            answer.point,
            answer.mask,
            one.truth,
            expression,
            one.iou,
            tile_size,
        )
        panels.append((expression, np.asarray(picture)))
    return panels
