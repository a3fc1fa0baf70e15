"""One unit of an experiment, in a process of its own: train a model unless it is there, then measure it.

python -m promptris.experiments.work TASK.json
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from promptris.config import PromptName
from promptris.errors import PromptRISError
from promptris.evaluation.protocol import Segmenter
from promptris.experiments.measurements import Measurements, measure
from promptris.experiments.provenance import data_stamp, provenance, weights_stamp
from promptris.experiments.splits import MeasuredSplit
from promptris.mask_classification.segmenter import load_classifier
from promptris.modeling.prompt_ris import PromptRIS
from promptris.placement import pick_device
from promptris.predictor import Predictor
from promptris.team import launched_rank
from promptris.training.model_card import steps_seconds
from promptris.training.recipes import load_recipe
from promptris.training.run import RECIPE_FILE, RESULT_FILE, run_recipe
from promptris.training.stopping import Interrupted
from promptris.training.trainer import METRICS_FILE

TRAINED_FILE = "trained.json"
"""Where a run was trained, by which sources and in how many seconds, and what its weights are known by."""
LOCK_SECONDS = 90.0


@dataclass(frozen=True)
class Job:
    """One measurement: a split, the SAM prompts to use (None: all), and the stamp of the split's content."""

    split: MeasuredSplit
    prompts: tuple[PromptName, ...] | None = None
    data: str = ""

    @property
    def file_name(self) -> str:
        """Where its result goes, below the task's folder."""
        suffix = "" if self.prompts is None else "--" + ("+".join(self.prompts) or "none")
        return f"measured/{self.split.key}{suffix}.safetensors"


@dataclass(frozen=True)
class Task:
    """A model to train and what to measure of it.

    Attributes:
        name: of the task, such as "full-seed0".
        folder: gets the run and the measurements.
        recipe: recipe file; None for mask classification, which is not trained.
        towers: sources of CLIP and SAM.
        device: as in `promptris train --device`.
        jobs: measurements.
    """

    name: str
    folder: Path
    recipe: Path | None
    towers: tuple[str, str]
    device: str
    jobs: tuple[Job, ...]

    @property
    def missing(self) -> list[Job]:
        """Measurements that are not there yet, or are of another model or other data."""
        model = self.model_stamp()
        return [job for job in self.jobs if not (model and self._holds(job, model))]

    def model_stamp(self) -> str | None:
        """What the trained model and its towers are known by; None while it is not there.

        Weights that were removed once everything was measured are known by what was noted of them.
        """
        parts = [weights_stamp(tower) for tower in self.towers]
        if self.recipe is not None:
            run, noted = self.folder / "run", self.folder / TRAINED_FILE
            if not (run / RESULT_FILE).is_file():
                return None
            if (run / "model").is_dir():
                parts.append(weights_stamp(run / "model"))
            elif noted.is_file():
                parts.append(json.loads(noted.read_text())["weights"])
            else:
                return None
        return "-".join(parts)

    def _holds(self, job: Job, model: str) -> bool:
        path = self.folder / job.file_name
        if not path.is_file():
            return False
        facts = Measurements.facts(path)
        return facts.get("model") == model and facts.get("data") == job.data

    def save(self, path: Path) -> None:
        """Write it for `load`."""
        values = asdict(self) | {"folder": str(self.folder), "recipe": self.recipe and str(self.recipe)}
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Task:
        """Inverse of `save`."""
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        jobs = tuple(
            Job(
                MeasuredSplit.from_dict(job["split"]),
                None if job["prompts"] is None else tuple(job["prompts"]),
                job["data"],
            )
            for job in values["jobs"]
        )
        return cls(
            name=values["name"],
            folder=Path(values["folder"]),
            recipe=None if values["recipe"] is None else Path(values["recipe"]),
            towers=(values["towers"][0], values["towers"][1]),
            device=values["device"],
            jobs=jobs,
        )


class Worker:
    """Does a task; what is there already is not done again."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def run(self) -> None:
        """Train and measure; a measurement that fails does not stop the others.

        Raises:
            PromptRISError: when something cannot be read or written.
        """
        self.task.folder.mkdir(parents=True, exist_ok=True)
        if launched_rank() > 0:  # one of several processes that train together; the first one does the rest
            self._train()
            return
        # An earlier attempt may still be saving its last step.
        with FileLock(self.task.folder / ".lock", timeout=LOCK_SECONDS):
            if self.task.recipe is not None:
                self._train()
            failures = [str(error) for job in self.task.missing if (error := self._measured(job)) is not None]
        if failures:
            raise PromptRISError("; ".join(failures))

    def _measured(self, job: Job) -> PromptRISError | None:
        started = time.perf_counter()
        try:
            dataset, split = job.split.open()
            result = measure(self.segmenter, dataset, split, job.prompts)
        except PromptRISError as error:
            return error
        seconds = round(time.perf_counter() - started, 1)
        facts = {
            "task": self.task.name,
            "split": job.split.key,
            "prompts": job.prompts,
            "model": self.task.model_stamp(),
            "data": data_stamp(dataset, split),
            "seconds": seconds,
            **provenance(),
        }
        result.save(self.task.folder / job.file_name, facts)
        print(f"{job.file_name}: mIoU {result.value('mIoU'):.4f}, {seconds} s", flush=True)
        return None

    def _train(self) -> None:
        out = self.task.folder / "run"
        if (out / RESULT_FILE).is_file():
            if (out / "model").is_dir():
                return
            shutil.rmtree(out)  # its weights were removed, and are needed again
        recipe = load_recipe(str(self.task.recipe))
        run_recipe(recipe, out, (out / RECIPE_FILE).is_file(), self.task.device, notify=print)
        if launched_rank() == 0:
            facts = {
                "weights": weights_stamp(out / "model"),
                "seconds": steps_seconds(out / METRICS_FILE),
                **provenance(),
            }
            (self.task.folder / TRAINED_FILE).write_text(json.dumps(facts, indent=2) + "\n")

    @cached_property
    def segmenter(self) -> Segmenter:
        """What is measured."""
        if self.task.recipe is None:
            return load_classifier(*self.task.towers, device=self.task.device)
        model = PromptRIS.from_pretrained(self.task.folder / "run" / "model")
        return Predictor(model.to(pick_device(self.task.device)))


def main() -> int:
    """Do the task of the file that is named on the command line."""
    threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        Worker(Task.load(Path(sys.argv[1]))).run()
    except Interrupted as stop:
        print(f"promptris: {stop}", file=sys.stderr)
        return stop.exit_code
    except PromptRISError as error:
        print(f"promptris: {error}", file=sys.stderr)
        return 2
    return 0


def _stop_with_parent(parent: int) -> None:
    """When whoever started this is gone, save and stop: the next attempt would run beside it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
