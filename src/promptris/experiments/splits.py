"""Where the rows of a table are measured: splits that no model has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptris.data.catalog import read_dataset
from promptris.data.combined import COMBINED
from promptris.data.dataset import ReferDataset
from promptris.data.open_vocabulary import select
from promptris.data.readers.refer import DEFAULT_SPLIT_BY
from promptris.errors import InputError
from promptris.experiments.tables import Where
from promptris.training.config import Recipe

TEST_SEED = 777
"""World seed of the RefShapes scenes that the tables are measured on; recipes generate theirs from other seeds."""
_PAPERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("refcoco", "unc", ("val", "testA", "testB")),
    ("refcoco+", "unc", ("val", "testA", "testB")),
    ("refcocog", "google", ("val",)),
    ("refcocog", "umd", ("val", "test")),
)
_TESTS = ("testA", "testB")


@dataclass(frozen=True)
class MeasuredSplit:
    """A split, or several taken together.

    Attributes:
        label: what it is called in tables.
        name, root, split_by, categories: see `read_dataset` and `select`.
        splits: read as one.
        paper: its key among the columns of the paper's table, where there is one.
    """

    label: str
    name: str
    root: str | None
    splits: tuple[str, ...]
    split_by: str | None = None
    categories: str = "all"
    paper: str | None = None

    @property
    def key(self) -> str:
        """For file names; two splits with the same content have the same."""
        where = Path(self.root).name if self.name == "refshapes" and self.root else self.name
        parts = [Path(where).name, self.split_by or "", *self.splits, self.categories]
        return "-".join(part for part in parts if part).replace("+", "plus").lower()

    def open(self) -> tuple[ReferDataset, str]:
        """The data set, and the name of the split to measure in it.

        Raises:
            InputError: when it cannot be read.
        """
        dataset = read_dataset(self.name, self.root, self.split_by, splits=list(self.splits))
        dataset = select(dataset, self.categories)
        for split in self.splits:
            dataset.referents(split)
        if len(self.splits) == 1:
            return dataset, self.splits[0]
        joined = np.concatenate([dataset.rows[split] for split in self.splits])
        return dataset.with_rows({**dataset.rows, "joined": joined}), "joined"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MeasuredSplit:
        """Inverse of `to_dict`."""
        return cls(**{**values, "splits": tuple(values["splits"])})


def measured_splits(recipe: Recipe, where: Where, tests: Path) -> list[MeasuredSplit]:
    """The splits of a table for models that a recipe trains.

    RefShapes: fresh scenes below `tests` (see `make_test_scenes`), a data set per level. COCO's data sets: the
    paper's splits, of all of them for the combined training set, else of the one that is trained on. Others:
    the recipe's validation split.

    Raises:
        InputError: for seen and unseen categories of a data set without them.
    """
    data = recipe.data
    if data.name == "refshapes" and data.root is None:
        return _refshapes(where, tests)
    benchmarks = [
        entry
        for entry in _PAPERS
        if data.name in (entry[0], COMBINED)
        and (data.name == COMBINED or data.split_by is None or entry[1] == data.split_by)
    ]
    if not benchmarks:
        if where == "seen and unseen":
            raise InputError(f"{data.name} has no seen and unseen categories: table2 cannot be made for it")
        split_by = data.split_by if data.val_name is None else None
        name = data.val_name or data.name
        return [
            MeasuredSplit(f"{Path(name).name} {data.val_split}", name, data.root, (data.val_split,), split_by)
        ]
    splits: list[MeasuredSplit] = []
    for name, split_by, parts in benchmarks:
        title = name if DEFAULT_SPLIT_BY.get(name) == split_by else f"{name} {split_by}"
        suffix = f"_{split_by}" if name == "refcocog" else ""
        if where == "seen and unseen":
            groups: list[tuple[str, tuple[str, ...]]] = [("val", ("val",))]
            if len(parts) > 1:
                groups.append(("test", tuple(part for part in parts if part != "val")))
            splits += [
                MeasuredSplit(
                    f"{title} {group} {kind}",
                    name,
                    data.root,
                    members,
                    split_by,
                    kind,
                    f"{name}/{group}{suffix}/{kind}",
                )
                for group, members in groups
                for kind in ("seen", "unseen")
            ]
        else:
            splits += [
                MeasuredSplit(
                    f"{title} {part}", name, data.root, (part,), split_by, paper=f"{name}/{part}{suffix}"
                )
                for part in parts
            ]
    return splits[:1] if where == "main" else splits


_SCENES: dict[str, dict[str, str]] = {
    "standard": {"level": "standard", "categories": "seen"},
    "easy": {"level": "easy", "categories": "seen"},
    "hard": {"level": "hard", "categories": "seen"},
    "unseen": {"level": "standard", "categories": "unseen"},
}


def _refshapes(where: Where, tests: Path) -> list[MeasuredSplit]:
    names: dict[Where, tuple[str, ...]] = {
        "main": ("standard",),
        "all": ("easy", "standard", "hard"),
        "seen and unseen": ("standard", "unseen"),
        "everything": ("standard", "easy", "hard", "unseen"),
    }
    labels = {"standard": "seen"} if where == "seen and unseen" else {}
    return [
        MeasuredSplit(labels.get(name, name), "refshapes", str(tests / name), ("test",))
        for name in names[where]
    ]


def make_test_scenes(tests: Path, name: str, scenes: int, size: int) -> None:
    """Write the RefShapes scenes of one of the measured splits, unless they are there.

    Raises:
        InputError: when they cannot be written, or there is another number of them.
    """
    from promptris.data.refshapes import WorldOptions
    from promptris.data.refshapes.writer import write_refshapes

    folder = tests / name
    if not (folder / "refshapes").is_dir():
        options = WorldOptions(size=size, **_SCENES[name])
        write_refshapes(folder, {"test": scenes}, TEST_SEED, options)
    there = read_dataset("refshapes", str(folder)).count("test")[1]
    if there != scenes:
        raise InputError(f"{folder} has {there} scenes, not {scenes}: give another --out folder")
