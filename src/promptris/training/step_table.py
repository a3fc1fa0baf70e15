"""A CSV file with a row per step that a resumed run goes on with."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class StepTable:
    """Rows of figures, each with the number of its step.

    Args:
        path: the file.
        columns: their names, `step` among them; a row's other figures are left out.
        resumed_at: steps that are done already; rows of later steps are dropped, since they will be repeated.
    """

    def __init__(self, path: Path, columns: Sequence[str], resumed_at: int = 0) -> None:
        self.path, self.columns = path, tuple(columns)
        kept: list[dict[str, str]] = []
        if path.exists() and resumed_at > 0:
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= resumed_at]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is on disk when this returns."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(dict(row))
