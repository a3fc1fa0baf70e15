"""Where the rows of a table are measured: splits that no model has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from promptris.training.config import DataConfig, Recipe

TEST_SEED = 777
"""World seed of the RefShapes scenes that the tables are measured on; recipes generate theirs from other seeds."""
_PAPERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("refcoco", "unc", ("val", "testA", "testB")),
    ("refcoco+", "unc", ("val", "testA", "testB")),
    ("refcocog", "google", ("val",)),
    ("refcocog", "umd", ("val", "test")),
)


@dataclass(frozen=True)
class MeasuredSplit:
    """A split, or several taken together.

    Attributes:
        label: what it is called in tables.
        name, root, split_by, categories: see `read_dataset` and `select`.
        splits: read as one.
        paper: its key among the columns of the paper's table, where there is one.
        val_share: where above 0, the split is this share of the images of `train_split`, held out as training does.
        train_split: that it is held out of.
        skip_broken: leave out what cannot be used before that, as training does.
        other_training: what the models are trained on, where the paper trains on something else; else empty.
    """

    label: str
    name: str
    root: str | None
    splits: tuple[str, ...]
    split_by: str | None = None
    categories: str = "all"
    paper: str | None = None
    val_share: float = 0.0
    train_split: str = "train"
    skip_broken: bool = False
    other_training: str = ""

    @property
    def key(self) -> str:
        """For file names; two splits with the same content have the same."""
        where = Path(self.root).name if self.name == "refshapes" and self.root else self.name
        held_out = f"{self.val_share:g}-of-{self.train_split}" if self.val_share else ""
        parts = [Path(where).name, self.split_by or "", *self.splits, held_out, self.categories]
        return "-".join(part for part in parts if part).replace("+", "plus").lower()

    def open(self) -> tuple[ReferDataset, str]:
        """The data set, and the name of the split to measure in it.

        Raises:
            InputError: when it cannot be read, or has expressions that mean several objects or none.
        """
        # Which images are held out depends on all that there are, and on what was left out before.
        used = None if self.val_share else list(self.splits)
        dataset = read_dataset(self.name, self.root, self.split_by, splits=used, skip_broken=self.skip_broken)
        if self.val_share:
            dataset = dataset.hold_out(self.val_share, self.train_split, self.splits[0])
        dataset = select(dataset, self.categories)
        for split in self.splits:
            if dataset.is_generalised(split):
                raise InputError(
                    f"{self.name} {split} has expressions that mean several objects or none, which the tables' "
                    "metrics do not know: use promptris evaluate for it, or another data set here"
                )
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
    paper's splits, of all of them for the combined training set, else of the one that is trained on, in the
    partition that is trained on; "main" is the recipe's validation split. Others: that alone.

    Raises:
        InputError: for seen and unseen categories of a data set without them.
    """
    data = recipe.data
    if data.name == "refshapes" and data.root is None:
        return _refshapes(where, tests)
    benchmarks = [
        entry
        for entry in _PAPERS
        if data.name == COMBINED or entry[:2] == (data.name, _partition(data.name, data.split_by))
    ]
    if where == "seen and unseen":
        if not benchmarks:
            raise InputError(_no_groups(data))
        splits = [
            MeasuredSplit(
                f"{_title(name, split_by)} {group} {kind}",
                name,
                data.root,
                members,
                split_by,
                kind,
                f"{_paper_key(name, split_by, group)}/{kind}",
            )
            for name, split_by, parts in benchmarks
            for group, members in (
                ("val", ("val",)),
                ("test", tuple(part for part in parts if part != "val")),
            )
            if members
            for kind in ("seen", "unseen")
        ]
    elif where == "main" or not benchmarks:
        splits = [_validation(data)]
    else:
        splits = [
            _whole(name, data.root, split_by, part) for name, split_by, parts in benchmarks for part in parts
        ]
    training = _other_training(data, where)
    return [replace(split, other_training=training) if split.paper else split for split in splits]


def _partition(name: str, split_by: str | None) -> str | None:
    """The partition that is read: that of `read_refer` for the paper's data sets."""
    known = any(entry[0] == name for entry in _PAPERS)
    return split_by or (DEFAULT_SPLIT_BY[name] if known else None)


def _title(name: str, split_by: str | None) -> str:
    usual = split_by is None or DEFAULT_SPLIT_BY.get(name) == split_by
    return Path(name).name if usual else f"{Path(name).name} {split_by}"


def _paper_key(name: str, split_by: str, part: str) -> str:
    return f"{name}/{part}_{split_by}" if name == "refcocog" else f"{name}/{part}"


def _whole(name: str, root: str | None, split_by: str | None, part: str) -> MeasuredSplit:
    """A split as it is, and its place in the paper if it has one."""
    told = any(name == entry[0] and split_by == entry[1] and part in entry[2] for entry in _PAPERS)
    paper = _paper_key(name, split_by, part) if told and split_by else None
    return MeasuredSplit(f"{_title(name, split_by)} {part}", name, root, (part,), split_by, paper=paper)


def _validation(data: DataConfig) -> MeasuredSplit:
    """What `prepare_data` validates on."""
    if data.val_share:
        split = _whole(data.name, data.root, _partition(data.name, data.split_by), data.val_split)
        return replace(
            split,
            paper=None,
            val_share=data.val_share,
            train_split=data.train_split,
            skip_broken=data.skip_broken,
        )
    name = data.val_name or ("refcoco" if data.name == COMBINED else data.name)
    split_by = data.split_by if name == data.name else None
    return _whole(name, data.root, _partition(name, split_by), data.val_split)


def _other_training(data: DataConfig, where: Where) -> str:
    """What is trained on, where the paper trains on something else."""
    # Table 2 shows seen categories only, in the paper too.
    limited = data.categories != "all" and where != "seen and unseen"
    if data.name == COMBINED and not limited:
        return ""
    return f"{data.name}, {data.categories} categories only" if limited else data.name


def _no_groups(data: DataConfig) -> str:
    partitions = [entry[1] for entry in _PAPERS if entry[0] == data.name]
    if partitions:
        return (
            f"table2 measures {data.name} in its partition {' or '.join(partitions)}, and the recipe names "
            f"{data.split_by!r}: give --data.split_by={partitions[-1]}"
        )
    return (
        "table2 can be made for RefCOCO, RefCOCO+, RefCOCOg and RefShapes scenes that the run generates, whose seen "
        f"and unseen categories are told, not for {data.name}: leave it out"
    )


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
