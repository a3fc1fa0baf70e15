"""From measurements to a table: our figures with their spread, the paper's beside them, its claims judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from promptris.evaluation.baselines import Baselines
from promptris.experiments.splits import MeasuredSplit
from promptris.experiments.statistics import Cell, Difference, Spread, compare, spread
from promptris.experiments.tables import Ordering, Row, Table

Tags = Mapping[int, Mapping[str, Any]]
"""Tags of expressions, by sent_id."""


@dataclass(frozen=True)
class Judged:
    """A claim on one split: how it holds here, and by how much in the paper (percentage points), if it tells."""

    ordering: Ordering
    split: str
    difference: Difference
    paper: float | None

    @property
    def verdict(self) -> str:
        """seen, not seen or undecided."""
        return self.difference.verdict


@dataclass(frozen=True)
class TagScore:
    """mIoU of the expressions that have a value of a tag, and how many these are."""

    miou: Spread
    expressions: int

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return {
            "mean": round(self.miou.mean, 6),
            "std": round(self.miou.std, 6),
            "expressions": self.expressions,
        }


@dataclass(frozen=True)
class TableResult:
    """A table filled in.

    Attributes:
        table: what it is.
        splits: its groups of columns.
        figures: by row label, split label and metric.
        paper: the paper's percentages, by the same keys, where it has them.
        judged: every ordering on every split.
        baselines: trivial answers and ceilings by split label, where they were scored.
        facts: how it came about: command, commit, recipe, seeds, hardware, time.
        by_tag: mIoU by row label, split label, tag and its value.
    """

    table: Table
    splits: tuple[MeasuredSplit, ...]
    figures: dict[str, dict[str, dict[str, Spread]]]
    paper: dict[str, dict[str, dict[str, float]]]
    judged: tuple[Judged, ...]
    baselines: dict[str, Baselines]
    facts: dict[str, Any]
    by_tag: dict[str, dict[str, dict[str, dict[str, TagScore]]]]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; figures are fractions, the paper's are percentages as printed."""
        rows = []
        for row in self.table.rows:
            figures = {
                split: {
                    metric: {
                        "mean": round(value.mean, 6),
                        "std": round(value.std, 6),
                        "seeds": [round(one, 6) for one in value.values],
                    }
                    for metric, value in metrics.items()
                }
                for split, metrics in self.figures[row.label].items()
            }
            entry = {"label": row.label, "figures": figures, "paper": self.paper[row.label]}
            if self.by_tag:
                entry["mIoU_by_tag"] = {
                    split: {
                        tag: {value: score.to_dict() for value, score in values.items()}
                        for tag, values in tags.items()
                    }
                    for split, tags in self.by_tag[row.label].items()
                }
            rows.append(entry)
        return {
            "table": self.table.name,
            "title": self.table.title,
            "facts": self.facts,
            "splits": [split.to_dict() | {"root": None} for split in self.splits],
            "rows": rows,
            "orderings": [
                {
                    "worse": judged.ordering.worse,
                    "better": judged.ordering.better,
                    "metric": judged.ordering.metric,
                    "split": judged.split,
                    "claimed_by_paper": self.table.claimed_by_paper(judged.ordering),
                    "verdict": judged.verdict,
                    "difference": round(judged.difference.mean, 6),
                    "interval_95": [round(judged.difference.low, 6), round(judged.difference.high, 6)],
                    "seeds": [round(one, 6) for one in judged.difference.per_seed],
                    "paper_points": judged.paper,
                }
                for judged in self.judged
            ],
            "baselines": {split: baselines.to_dict() for split, baselines in self.baselines.items()},
            "notes": list(self.table.notes),
        }


def fill(
    table: Table,
    splits: tuple[MeasuredSplit, ...],
    cells: Mapping[tuple[str, str], Cell],
    baselines: dict[str, Baselines],
    facts: dict[str, Any],
    tags: Mapping[str, Tags] | None = None,
) -> TableResult:
    """Fill a table in.

    Args:
        table: what it is.
        splits: its groups of columns.
        cells: measurements by (row label, split key).
        baselines: trivial answers by split label.
        facts: how it came about.
        tags: of every expression, by split label and sent_id, where there are any.
    """
    figures = {
        row.label: {
            split.label: {metric: spread(cells[row.label, split.key], metric) for metric in table.metrics}
            for split in splits
        }
        for row in table.rows
    }
    paper = {
        row.label: {split.label: paper_figures(table, row, split) for split in splits} for row in table.rows
    }
    judged = tuple(
        Judged(
            ordering,
            split.label,
            compare(cells[ordering.worse, split.key], cells[ordering.better, split.key], ordering.metric),
            _paper_gain(paper, ordering, split.label),
        )
        for split in splits
        for ordering in table.orderings
    )
    told = {split.label: found for split in splits if (found := (tags or {}).get(split.label))}
    by_tag = {
        row.label: {
            split.label: {
                tag: _by_tag(cells[row.label, split.key], told[split.label], tag) for tag in table.tags
            }
            for split in splits
            if split.label in told
        }
        for row in table.rows
    }
    return TableResult(
        table, splits, figures, paper, judged, baselines, facts, by_tag if table.tags and told else {}
    )


def _by_tag(cell: Cell, tags: Tags, tag: str) -> dict[str, TagScore]:
    """mIoU for every value of a tag; counts of 2 and more are taken together."""
    values = np.array([_shown(tags[int(sent_id)][tag]) for sent_id in cell.seeds[0].sent_id])
    scores = {}
    for value in sorted(set(values.tolist())):
        rows = values == value
        part = Cell(tuple(one.where(rows) for one in cell.seeds), cell.masks)
        scores[value] = TagScore(spread(part, "mIoU"), int(rows.sum()))
    return scores


def _shown(value: object) -> str:
    return "2 or more" if isinstance(value, int) and value >= 2 else str(value)


@cache
def paper_tables() -> dict[str, Any]:
    """The paper's numbers, in percent."""
    path = files("promptris.experiments") / "paper_tables.json"
    tables: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tables


def paper_figures(table: Table, row: Row, split: MeasuredSplit) -> dict[str, float]:
    """The paper's figures of a row, by metric; of the split where the paper tells several.

    Tables that the paper measures on one split have them there, and on RefShapes, where orderings are compared.
    """
    if row.paper is None:
        return {}
    told = paper_tables()[table.name]
    found: Mapping[str, float | None]
    if table.name in ("table1", "table2"):
        columns = told["columns"]
        if split.paper not in columns:
            return {}
        place = columns.index(split.paper)
        groups = {"mIoU": told} if table.name == "table2" else {m: told[m] for m in ("oIoU", "mIoU")}
        found = {metric: group[row.paper][place] for metric, group in groups.items() if row.paper in group}
    elif split.paper != told["split"] and split.name != "refshapes":
        return {}
    elif table.name == "icl":
        found = told[row.paper]
    else:
        values = told["rows"] if table.name == "table5" else told
        found = dict(zip(told["columns"], values[row.paper], strict=True))
    return {metric: value for metric, value in found.items() if value is not None and metric in table.metrics}


def _paper_gain(
    paper: Mapping[str, Mapping[str, Mapping[str, float]]], ordering: Ordering, split: str
) -> float | None:
    worse, better = paper[ordering.worse][split], paper[ordering.better][split]
    gain = 0.0
    for sign, metric in zip((1, -1), ordering.metric.split(" - "), strict=False):
        if metric not in worse or metric not in better:
            return None
        gain += sign * (better[metric] - worse[metric])
    return round(gain, 2)
