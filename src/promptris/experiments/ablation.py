"""`promptris ablate`: plans the runs that tables need, does those that are missing, and fills the tables in."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from promptris.config import PROMPT_NAMES
from promptris.data.dataset import ReferDataset
from promptris.data.refshapes.tags import read_tags
from promptris.errors import InputError
from promptris.evaluation.baselines import Baselines, score_baselines
from promptris.experiments.measurements import Measurements
from promptris.experiments.provenance import data_stamp
from promptris.experiments.report import plot, to_markdown
from promptris.experiments.results import TableResult, fill
from promptris.experiments.runner import Outcome, Runner
from promptris.experiments.splits import MeasuredSplit, make_test_scenes, measured_splits
from promptris.experiments.statistics import Cell
from promptris.experiments.tables import Row, Table, Variant
from promptris.experiments.work import TRAINED_FILE, Job, Task
from promptris.training.config import Recipe
from promptris.training.data import check_images, prepare_data
from promptris.training.recipes import dump_recipe, load_recipe
from promptris.training.towers import prepare_towers

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
        changes: of the recipe, as on the command line.
    """

    tables: tuple[Table, ...]
    recipe: Recipe
    recipe_name: str
    seeds: tuple[int, ...]
    out: Path
    scenes: int = 200
    device: str = "auto"
    parallel: int = 1
    changes: tuple[str, ...] = ()

    def command(self, table: str) -> str:
        """What makes one table."""
        seeds = ",".join(map(str, self.seeds))
        return shlex.join(
            ["promptris", "ablate", table, "--recipe", self.recipe_name, "--seeds", seeds, *self.changes]
        )


class Ablation:
    """Makes tables.

    Args:
        plan: how.
        notify: told how it is getting on, in sentences.
    """

    def __init__(self, plan: Plan, notify: Notify) -> None:
        recipe = _with_absolute_paths(plan.recipe)
        self.plan = replace(plan, recipe=recipe, out=plan.out.resolve())
        self.notify = notify
        self.on_refshapes = recipe.data.name == "refshapes" and recipe.data.root is None
        _check_recipe(recipe)
        self._splits = {
            table.name: measured_splits(recipe, table.where, self.plan.out / "tests") for table in plan.tables
        }
        self._opened: dict[str, tuple[ReferDataset, str]] = {}

    def run(self) -> tuple[list[TableResult], list[Outcome]]:
        """Do what is missing, and write the tables; returns these and the runs that failed.

        The folder gets, for every table, a JSON file, a Markdown file and a plot; and what they are made from. A
        table goes without the rows whose runs failed, and says so.

        Raises:
            InputError: when the folder belongs to another recipe or is in use, or data or weights cannot be read.
        """
        self._check_folder()
        if not self.on_refshapes:
            # What cannot be read is found before hours of training, and before the folder is anybody's.
            for dataset, split in map(self._open, self._all_splits()):
                check_images(dataset, split)
            prepare_data(self.plan.recipe.data, self.plan.out / "data", self.notify)
        self._claim()
        try:
            with FileLock(self.plan.out / ".lock", blocking=False):
                return self._run()
        except Timeout:
            raise InputError(f"another command is at work in {self.plan.out}: wait for it to end") from None

    def _run(self) -> tuple[list[TableResult], list[Outcome]]:
        recipe = self._prepared()
        tasks = self.tasks(recipe)
        outcomes = Runner(self.plan.parallel, self.notify).run(tasks)
        failed = [outcome for outcome in outcomes if outcome.code]
        missing = {task.name: set(task.missing) for task in tasks}
        by_name = {task.name: task for task in tasks}
        results = []
        for table in self.plan.tables:
            complete = tuple(row for row in table.rows if not self._lacks(row, table, missing))
            if not complete:
                self.notify(f"{table.name} has no row that is complete")
                continue
            result = self._fill(_reduced_to(table, complete), by_name)
            self._write(result)
            results.append(result)
        return results, failed

    def _lacks(self, row: Row, table: Table, missing: Mapping[str, set[Job]]) -> bool:
        wanted = {self._job(row, split) for split in self._splits[table.name]}
        return any(wanted & missing[name] for name in self._task_names(row))

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
        tasks = []
        for name, wanted in jobs.items():
            folder = self.plan.out / "runs" / name
            path = None
            if name in variants:
                variant, seed = variants[name]
                path = folder.with_suffix(".yaml")
                path.parent.mkdir(parents=True, exist_ok=True)
                changed = replace(variant.applied_to(recipe), seed=seed)
                if variant.tuned_towers:  # what SAM makes of an image changes with it
                    changed.engine = replace(changed.engine, embedding_cache=None)
                path.write_text(dump_recipe(changed))
            towers = (str(recipe.towers.clip), str(recipe.towers.sam))
            tasks.append(Task(name, folder, path, towers, self.plan.device, tuple(wanted)))
        return tasks

    # ----------------------------------------------------------------------------------------------- preparation

    def _check_folder(self) -> None:
        out, recipe = self.plan.out, self.plan.recipe
        path = out / RECIPE_FILE
        if path.is_file():
            before = load_recipe(str(path))
            # What a run is computed on may change, but for its precision.
            engine = replace(recipe.engine, precision=before.engine.precision)
            if before != replace(recipe, engine=before.engine) or engine != recipe.engine:
                raise InputError(
                    f"{out} holds runs of another recipe: give another --out folder, or the same recipe"
                )
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not empty and holds no experiments: give another --out folder")

    def _claim(self) -> None:
        out = self.plan.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            partial = out / f"{RECIPE_FILE}.partial"
            partial.write_text(dump_recipe(self.plan.recipe))
            partial.replace(out / RECIPE_FILE)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror}") from error

    def _all_splits(self) -> list[MeasuredSplit]:
        return list({split.key: split for splits in self._splits.values() for split in splits}.values())

    def _open(self, split: MeasuredSplit) -> tuple[ReferDataset, str]:
        if split.key not in self._opened:
            self._opened[split.key] = split.open()
        return self._opened[split.key]

    def _prepared(self) -> Recipe:
        """The recipe with data and towers that all runs share."""
        recipe, out = copy.deepcopy(self.plan.recipe), self.plan.out
        if self.on_refshapes:
            for split in self._all_splits():
                assert split.root is not None
                name = Path(split.root).name
                make_test_scenes(out / "tests", name, self.plan.scenes, recipe.data.generate.size)
            prepare_data(recipe.data, out / "data", self.notify)
            recipe.data.root = str(out / "data")
        resume = (out / "towers").is_dir()
        recipe.towers.clip, recipe.towers.sam = prepare_towers(
            recipe.towers, out / "towers", recipe.seed, resume
        )
        return recipe

    def _reduced(self, variant: Variant) -> Variant:
        """Where training shows seen categories only anyway, a run for them alone is the same run."""
        if variant.seen_only and (self.on_refshapes or self.plan.recipe.data.categories == "seen"):
            return replace(variant, name=variant.name.removesuffix("-seen"), seen_only=False)
        return variant

    def _task_names(self, row: Row) -> list[str]:
        if row.variant is None:
            return [PROPOSALS]
        return [task_name(self._reduced(row.variant), seed) for seed in self.plan.seeds]

    def _job(self, row: Row, split: MeasuredSplit) -> Job:
        # The stamp is of what lies there now; what was measured on other content is measured again.
        stamp = data_stamp(*self._open(split))
        prompts = None if row.prompts == PROMPT_NAMES else row.prompts
        return Job(replace(split, label=split.key), prompts, stamp)

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
        files = {
            tasks[name].folder / self._job(row, split).file_name
            for row in table.rows
            for name in self._task_names(row)
            for split in splits
        }
        facts = self._facts(table, [tasks[name].folder for name in used], files)
        baselines = {split.label: self._baselines(split) for split in splits}
        tags = {
            split.label: read_tags(split.root, split.name) for split in splits if split.root and table.tags
        }
        return fill(table, splits, cells, baselines, facts, tags)

    def _baselines(self, split: MeasuredSplit) -> Baselines:
        path = self.plan.out / "baselines" / f"{split.key}.json"
        stamp = data_stamp(*self._open(split))
        if path.is_file():
            told = json.loads(path.read_text())
            if told["data"] == stamp:
                return Baselines.from_dict(told)
        scored = score_baselines(*self._open(split))
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"data": stamp, **scored.to_dict()}, indent=1) + "\n")
        partial.replace(path)
        return scored

    def _facts(self, table: Table, folders: Sequence[Path], files: Iterable[Path]) -> dict[str, Any]:
        """How a table came about; commits and machines are those of the runs and of the measuring."""
        plan = self.plan
        measured = [Measurements.facts(path) for path in files]
        trained = [
            json.loads((folder / TRAINED_FILE).read_text())
            for folder in folders
            if (folder / TRAINED_FILE).is_file()
        ]

        def told(name: str) -> str:
            return ", ".join(sorted({str(facts[name]) for facts in (*trained, *measured) if name in facts}))

        # Towers, steps and measuring; runs beside each other add up.
        seconds = sum(float(facts["seconds"]) for facts in measured)
        seconds += sum(float(facts["seconds"]) for facts in trained)
        for path in (plan.out / "towers").glob("*/pretraining.json"):
            seconds += json.loads(path.read_text())["seconds"]
        return {
            "command": plan.command(table.name),
            "recipe": plan.recipe_name,
            "seeds": list(plan.seeds),
            "scenes": plan.scenes if self.on_refshapes else None,
            **{name: told(name) for name in ("commit", "hardware", "torch")},
            "minutes": round(seconds / 60, 3),
        }

    def _write(self, result: TableResult) -> None:
        out, name = self.plan.out, result.table.name
        (out / f"{name}.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n")
        (out / f"{name}.md").write_text(to_markdown(result), encoding="utf-8")
        plot(result, out / f"{name}.png")


def task_name(variant: Variant, seed: int) -> str:
    """Name of a training run."""
    return f"{variant.name}-seed{seed}"


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe for every directory that the command may be given in."""
    recipe = copy.deepcopy(recipe)

    def absolute(name: str | None) -> str | None:
        return str(Path(name).resolve()) if name is not None and Path(name).exists() else name

    recipe.towers.clip, recipe.towers.sam = absolute(recipe.towers.clip), absolute(recipe.towers.sam)
    recipe.data.root = absolute(recipe.data.root)
    if "/" in recipe.data.name:
        recipe.data.name = str(absolute(recipe.data.name))
    return recipe


def _check_recipe(recipe: Recipe) -> None:
    """InputError where the recipe itself lacks what rows differ in, so that they would not be what they say."""
    lacking = {
        "model.prompting.direction is not both": recipe.model.prompting.direction != "both",
        "model.sam_prompts.enabled leaves prompts out": set(recipe.model.sam_prompts.enabled)
        != set(PROMPT_NAMES),
        "train.icl_weight is 0": not recipe.train.icl_weight,
        "no stage has SAM": not any(stage.sam for stage in recipe.train.stages),
        "train.tune_towers is set": recipe.train.tune_towers,
    }
    for what, is_so in lacking.items():
        if is_so:
            raise InputError(
                f"{what}: give a recipe of the whole method, the tables take parts away themselves"
            )


def _reduced_to(table: Table, rows: tuple[Row, ...]) -> Table:
    """A table without the rows that are not complete, which it names."""
    lost = [row.label for row in table.rows if row not in rows]
    if not lost:
        return table
    labels = {row.label for row in rows}
    orderings = tuple(one for one in table.orderings if {one.worse, one.better} <= labels)
    note = f"Not shown, because a run failed: {', '.join(lost)}."
    return replace(table, rows=rows, orderings=orderings, notes=(note, *table.notes))
