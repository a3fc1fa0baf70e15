"""A table filled in from measurements that can be checked by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from promptris.experiments.measurements import Measurements
from promptris.experiments.report import plot, to_markdown
from promptris.experiments.results import TableResult, fill
from promptris.experiments.splits import MeasuredSplit
from promptris.experiments.statistics import Cell
from promptris.experiments.tables import FULL, TABLES, Ordering, Row, Table

FACTS = {
    "command": "promptris ablate toy",
    "commit": "abc",
    "recipe": "toy",
    "seeds": [0, 1],
    "scenes": 4,
    "hardware": "2 CPU cores",
    "torch": "2.13.0",
    "minutes": 3.0,
}
TABLE = Table(
    "toy",
    "Toy",
    (Row("coarse", FULL, masks="coarse"), Row("final", FULL)),
    ("mIoU", "P@0.5"),
    orderings=(Ordering("coarse", "final"),),
    notes=("A note.",),
    tags=("kind", "same_category"),
)
SPLIT = MeasuredSplit("standard", "refshapes", "tests/standard", ("test",))


def measured(final: list[int], coarse: list[int]) -> Measurements:
    ids = np.arange(len(final))
    hundred = np.full(len(final), 100)
    return Measurements(
        ids,
        ids,
        ids,
        {"final": np.array(final), "coarse": np.array(coarse)},
        {"final": hundred, "coarse": hundred},
    )


@pytest.fixture
def result() -> TableResult:
    seeds = (measured([80, 90, 40, 60], [60, 40, 30, 40]), measured([70, 90, 60, 70], [50, 60, 40, 30]))
    cells = {("coarse", SPLIT.key): Cell(seeds, "coarse"), ("final", SPLIT.key): Cell(seeds, "final")}
    tags = {
        k: {"kind": kind, "same_category": count}
        for k, (kind, count) in enumerate(
            [("attribute", 0), ("attribute", 3), ("relation", 2), ("relation", 1)]
        )
    }
    return fill(TABLE, (SPLIT,), cells, {}, FACTS, {"standard": tags})


def test_figures_by_hand(result: TableResult):
    final = result.figures["final"]["standard"]
    assert final["mIoU"].values == pytest.approx((0.675, 0.725))
    assert final["P@0.5"].values == pytest.approx((0.75, 1.0))
    assert result.figures["coarse"]["standard"]["mIoU"].mean == pytest.approx((0.425 + 0.45) / 2)
    (judged,) = result.judged
    assert judged.difference.mean == pytest.approx(0.7 - 0.4375)
    assert judged.verdict == "seen" and judged.paper is None


def test_tags_by_hand(result: TableResult):
    kinds = result.by_tag["final"]["standard"]["kind"]
    assert {kind: (score.miou.mean, score.expressions) for kind, score in kinds.items()} == {
        "attribute": (pytest.approx(0.825), 2),
        "relation": (pytest.approx(0.575), 2),
    }
    crowded = result.by_tag["final"]["standard"]["same_category"]
    assert {value: score.expressions for value, score in crowded.items()} == {"0": 1, "1": 1, "2 or more": 2}
    assert crowded["2 or more"].miou.mean == pytest.approx((0.9 + 0.4 + 0.9 + 0.6) / 4)


def test_the_report_for_people_and_for_machines(result: TableResult, tmp_path: Path):
    text = to_markdown(result)
    assert "| final | 70.0 ± 3.5 | 87.5 ± 17.7 |" in text
    assert re.search(r"\| coarse < final \| mIoU \| \+26\.[23] \[", text) and "| seen |" in text
    assert "## Other comparisons" in text and "The paper's" not in text  # which has no such table
    assert "| kind: attribute | 2 |" in text and "- A note." in text
    assert "paper mIoU" not in text  # the paper has no such table
    assert "training seeds 0, 1" in text and "3 minutes" in text
    content = json.loads(json.dumps(result.to_dict()))
    assert content["rows"][1]["figures"]["standard"]["mIoU"] == {
        "mean": 0.7,
        "std": 0.035355,
        "seeds": [0.675, 0.725],
    }
    assert content["rows"][0]["mIoU_by_tag"]["standard"]["kind"]["relation"]["expressions"] == 2
    assert content["splits"][0]["root"] is None  # where it lay on one machine is nobody's business
    plot(result, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")


TABLE3 = replace(
    TABLES["table3"],
    rows=(Row("reference", FULL), *TABLES["table3"].rows[-2:]),
    orderings=(
        Ordering("CLIP + CMP + SAM", "CLIP + CMP + ICL + SAM"),
        Ordering("reference", "CLIP + CMP + SAM"),
    ),
)
VAL = MeasuredSplit("refcoco val", "refcoco", "d", ("val",), "unc", paper="refcoco/val")


def filled(split: MeasuredSplit) -> TableResult:
    seeds = (measured([80, 90, 40, 60], [60, 40, 30, 40]),) * 2
    return fill(TABLE3, (split,), {(row.label, split.key): Cell(seeds) for row in TABLE3.rows}, {}, FACTS)


def test_claims_that_are_not_the_papers_are_not_called_so():
    result = filled(VAL)
    text = to_markdown(result)
    paper, others = text.index("## The paper's orderings"), text.index("## Other comparisons")
    assert paper < text.index("| CLIP + CMP + SAM < CLIP + CMP + ICL + SAM | mIoU") < others
    assert others < text.index("| reference < CLIP + CMP + SAM | mIoU")
    told = [(one["claimed_by_paper"], one["paper_points"]) for one in result.to_dict()["orderings"]]
    assert told == [(True, 0.7), (False, None)]


def test_what_the_papers_numbers_are_of_is_told_where_they_are():
    shapes, training = "on RefShapes only the orderings", "these rows on refcoco:"
    text = to_markdown(filled(VAL))
    assert "78.10" in text and shapes not in text and training not in text
    text = to_markdown(filled(replace(VAL, other_training="refcoco")))
    assert shapes not in text and training in text
    text = to_markdown(filled(SPLIT))
    assert "78.10" in text and shapes in text and training not in text
    text = to_markdown(filled(replace(VAL, paper=None)))
    assert "78.10" not in text and shapes not in text


def test_rows_without_sam_are_explained_in_every_table_that_mixes_them():
    for table in TABLES.values():
        mixed = len({row.variant.sam for row in table.rows if row.variant is not None}) > 1
        assert any("Rows without SAM show the coarse mask" in note for note in table.notes) == mixed
        assert not any("All rows are trained" in note or "other methods" in note for note in table.notes)
