"""One unit of an experiment, in a process of its own: train a model unless it is there, then measure it.

python -m promptris.experiments.work TASK.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from promptris.config import PromptName
from promptris.errors import PromptRISError
from promptris.evaluation.protocol import Segmenter
from promptris.experiments.splits import MeasuredSplit


@dataclass(frozen=True)
class Job:
    """One measurement: a split, and the SAM prompts to use (None: all)."""

    split: MeasuredSplit
    prompts: tuple[PromptName, ...] | None = None

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
        towers: sources of CLIP and SAM, for mask classification.
        device: as in `promptris train --device`.
        jobs: measurements.
    """

    name: str
    folder: Path
    recipe: Path | None
    towers: tuple[str, str] | None
    device: str
    jobs: tuple[Job, ...]

    @property
    def missing(self) -> list[Job]:
        """Measurements that are not there yet."""
        return [job for job in self.jobs if not (self.folder / job.file_name).is_file()]

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
            )
            for job in values["jobs"]
        )
        return cls(
            name=values["name"],
            folder=Path(values["folder"]),
            recipe=None if values["recipe"] is None else Path(values["recipe"]),
            towers=None if values["towers"] is None else (values["towers"][0], values["towers"][1]),
            device=values["device"],
            jobs=jobs,
        )


class Worker:
    """Does a task; what is there already is not done again."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def run(self) -> None:
        """Train and measure.

        Raises:
            PromptRISError: when something cannot be read or written.
        """
        if self.task.recipe is not None:
            self._train()
        for job in self.task.missing:
            from promptris.experiments.measurements import measure

            started = time.perf_counter()
            dataset, split = job.split.open()
            result = measure(self.segmenter, dataset, split, job.prompts)
            facts = {"task": self.task.name, "split": job.split.to_dict(), "prompts": job.prompts}
            seconds = round(time.perf_counter() - started, 1)
            result.save(self.task.folder / job.file_name, facts | {"seconds": seconds})
            print(f"{job.file_name}: mIoU {result.value('mIoU'):.4f}, {seconds} s", flush=True)

    def _train(self) -> None:
        from promptris.training.recipes import load_recipe
        from promptris.training.run import RECIPE_FILE, RESULT_FILE, run_recipe

        out = self.task.folder / "run"
        if not (out / RESULT_FILE).is_file():
            recipe = load_recipe(str(self.task.recipe))
            run_recipe(recipe, out, (out / RECIPE_FILE).is_file(), self.task.device, notify=print)

    @cached_property
    def segmenter(self) -> Segmenter:
        """What is measured."""
        from promptris.predictor import Predictor, pick_device

        if self.task.recipe is None:
            from promptris.mask_classification.segmenter import load_classifier

            assert self.task.towers is not None
            return load_classifier(*self.task.towers, device=self.task.device)
        from promptris.modeling.prompt_ris import PromptRIS
        from promptris.training.recipes import load_recipe
        from promptris.training.run import uses_sam

        recipe = load_recipe(str(self.task.recipe))
        model = PromptRIS.from_pretrained(self.task.folder / "run" / "model").to(
            pick_device(self.task.device)
        )
        return Predictor(model, with_sam=uses_sam(recipe))


def main() -> int:
    """Do the task of the file that is named on the command line."""
    from promptris.training.stopping import Interrupted

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
