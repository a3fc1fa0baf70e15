"""`promptris ablate`: plans the runs that tables need, does those that are missing, and fills the tables in."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from promptris.config import PROMPT_NAMES
from promptris.data.refshapes.tags import read_tags
from promptris.errors import InputError
from promptris.evaluation.baselines import score_baselines
from promptris.experiments.measurements import Measurements
from promptris.experiments.report import plot, to_markdown
from promptris.experiments.results import TableResult, fill
from promptris.experiments.runner import Outcome, Runner
from promptris.experiments.splits import MeasuredSplit, make_test_scenes, measured_splits
from promptris.experiments.statistics import Cell
from promptris.experiments.tables import Row, Table, Variant
from promptris.experiments.work import Job, Task
from promptris.training.config import Recipe
from promptris.training.data import prepare_data
from promptris.training.model_card import hardware, steps_seconds
from promptris.training.recipes import dump_recipe, load_recipe
from promptris.training.towers import prepare_towers
from promptris.training.trainer import METRICS_FILE

Notify = Callable[[str], None]
RECIPE_FILE = "recipe.yaml"
PROPOSALS = "mask-classification"
"""Name of the task that measures mask classification."""


@dataclass(frozen=True)
class Plan:
    """How tables are to be made.

    Attributes:
        tables: which.
        recipe: that every run starts from.
        recipe_name: as given, for the reports.
        seeds: of the training runs; all share the towers and the data.
        out: folder of everything.
        scenes: RefShapes scenes per measured split.
        device: as in `promptris train --device`.
        parallel: runs at a time.
        command: as typed, for the reports.
    """

    tables: tuple[Table, ...]
    recipe: Recipe
    recipe_name: str
    seeds: tuple[int, ...]
    out: Path
    scenes: int = 200
    device: str = "auto"
    parallel: int = 1
    command: str = ""


class Ablation:
    """Makes tables.

    Args:
        plan: how.
        notify: told how it is getting on, in sentences.
    """

    def __init__(self, plan: Plan, notify: Notify) -> None:
        self.plan, self.notify = plan, notify
        self.on_refshapes = plan.recipe.data.name == "refshapes" and plan.recipe.data.root is None
        self._splits = {
            table.name: measured_splits(plan.recipe, table.where, plan.out / "tests") for table in plan.tables
        }

    def run(self) -> tuple[list[TableResult], list[Outcome]]:
        """Do what is missing, and write the tables that are complete; returns these and the runs that failed.

        The folder gets, for every table, a JSON file, a Markdown file and a plot; and what they are made from.

        Raises:
            InputError: when the folder belongs to another recipe, or data or weights cannot be read.
        """
        self._claim()
        recipe = self._prepared()
        tasks = self.tasks(recipe)
        outcomes = Runner(self.plan.parallel, self.notify).run(tasks)
        failed = [outcome for outcome in outcomes if outcome.code]
        by_name = {task.name: task for task in tasks}
        results = []
        for table in self.plan.tables:
            if any(by_name[name].missing for row in table.rows for name in self._task_names(row)):
                self.notify(f"{table.name} is not complete: some of its runs failed")
                continue
            result = self._fill(table, by_name)
            self._write(result)
            results.append(result)
        return results, failed

    def tasks(self, recipe: Recipe) -> list[Task]:
        """Every run that the tables need, each once, with all that is measured of it."""
        jobs: dict[str, list[Job]] = {}
        variants: dict[str, tuple[Variant, int]] = {}
        for table in self.plan.tables:
            for row in table.rows:
                for name in self._task_names(row):
                    wanted = [self._job(row, split) for split in self._splits[table.name]]
                    jobs[name] = list(dict.fromkeys([*jobs.get(name, []), *wanted]))
                if row.variant is not None:
                    variant = self._reduced(row.variant)
                    variants |= {task_name(variant, seed): (variant, seed) for seed in self.plan.seeds}
        # Short runs first: a mistake shows early.
        tasks = []
        for name, wanted in jobs.items():
            folder = self.plan.out / "runs" / name
            path = None
            if name in variants:
                variant, seed = variants[name]
                path = folder.with_suffix(".yaml")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(dump_recipe(replace(variant.applied_to(recipe), seed=seed)))
            towers = (str(recipe.towers.clip), str(recipe.towers.sam))
            tasks.append(Task(name, folder, path, towers, self.plan.device, tuple(wanted)))
        return tasks

    # ----------------------------------------------------------------------------------------------- preparation

    def _claim(self) -> None:
        out, text = self.plan.out, dump_recipe(self.plan.recipe)
        path = out / RECIPE_FILE
        if path.is_file():
            if dump_recipe(load_recipe(str(path))) != text:
                raise InputError(
                    f"{out} holds runs of another recipe: give another --out folder, or the same recipe"
                )
            return
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not empty and holds no experiments: give another --out folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror}") from error

    def _prepared(self) -> Recipe:
        """The recipe with data and towers that all runs share."""
        recipe, out = copy.deepcopy(self.plan.recipe), self.plan.out
        if self.on_refshapes:
            for split in {split.key: split for splits in self._splits.values() for split in splits}.values():
                assert split.root is not None
                name = Path(split.root).name
                make_test_scenes(out / "tests", name, self.plan.scenes, recipe.data.generate.size)
        else:
            for split in {split.key: split for splits in self._splits.values() for split in splits}.values():
                split.open()  # what cannot be read is found before hours of training
        prepare_data(recipe.data, out / "data", self.notify)
        if self.on_refshapes:
            recipe.data.root = str(out / "data")
        resume = (out / "towers").is_dir()
        recipe.towers.clip, recipe.towers.sam = prepare_towers(
            recipe.towers, out / "towers", recipe.seed, resume
        )
        return recipe

    def _reduced(self, variant: Variant) -> Variant:
        """On RefShapes training shows seen categories only, so that a run for them alone is the same run."""
        if self.on_refshapes and variant.seen_only:
            return replace(variant, name=variant.name.removesuffix("-seen"), seen_only=False)
        return variant

    def _task_names(self, row: Row) -> list[str]:
        if row.variant is None:
            return [PROPOSALS]
        return [task_name(self._reduced(row.variant), seed) for seed in self.plan.seeds]

    def _job(self, row: Row, split: MeasuredSplit) -> Job:
        return Job(replace(split, label=split.key), None if row.prompts == PROMPT_NAMES else row.prompts)

    # --------------------------------------------------------------------------------------------------- results

    def _fill(self, table: Table, tasks: dict[str, Task]) -> TableResult:
        splits = tuple(self._splits[table.name])
        cells = {
            (row.label, split.key): Cell(
                tuple(
                    Measurements.load(tasks[name].folder / self._job(row, split).file_name)
                    for name in self._task_names(row)
                ),
                row.masks,
            )
            for row in table.rows
            for split in splits
        }
        used = {name for row in table.rows for name in self._task_names(row)}
        facts = self._facts() | {"minutes": self._minutes([tasks[name] for name in used])}
        baselines = {split.label: score_baselines(*split.open()) for split in splits}
        tags = {
            split.label: read_tags(split.root, split.name) for split in splits if split.root and table.tags
        }
        return fill(table, splits, cells, baselines, facts, tags)

    def _facts(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "command": plan.command,
            "commit": commit(),
            "recipe": plan.recipe_name,
            "seeds": list(plan.seeds),
            "scenes": plan.scenes if self.on_refshapes else None,
            "hardware": hardware(),
            "torch": torch.__version__,
        }

    def _minutes(self, tasks: Sequence[Task]) -> float:
        """Computing time: of the towers, of every training step, and of measuring; runs beside each other add up."""
        seconds = 0.0
        for path in (self.plan.out / "towers").glob("*/pretraining.json"):
            seconds += json.loads(path.read_text())["seconds"]
        for task in tasks:
            seconds += steps_seconds(task.folder / "run" / METRICS_FILE)
            for job in task.jobs:
                with safe_open(task.folder / job.file_name, "np") as file:
                    seconds += json.loads(file.metadata()["facts"])["seconds"]
        return round(seconds / 60, 1)

    def _write(self, result: TableResult) -> None:
        out, name = self.plan.out, result.table.name
        (out / f"{name}.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n")
        (out / f"{name}.md").write_text(to_markdown(result), encoding="utf-8")
        plot(result, out / f"{name}.png")


def task_name(variant: Variant, seed: int) -> str:
    """Name of a training run."""
    return f"{variant.name}-seed{seed}"


def commit() -> str:
    """The commit of the sources, "-dirty" behind it when they have changed since; else the package's version."""
    import promptris

    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"release {promptris.__version__}"
    return done.stdout.strip()
