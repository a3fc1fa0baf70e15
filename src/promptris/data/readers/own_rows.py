"""The rows of expressions.jsonl and expressions.csv: one per sentence, each cell checked when it is needed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from promptris.data.records import NO_TARGET
from promptris.errors import InputError

TARGETS = ("ann_id", "mask", "segmentation")
"""Columns that may tell what a sentence means."""

_EXPECTED = 'expected are "expression" and "ann_id", or "expression", "image" and "mask"'


@dataclass(frozen=True)
class Row:
    """What one row says, by column; `where` names file and line."""

    where: str
    cells: dict[str, Any]

    def given(self, column: str) -> bool:
        """Whether there is anything in a column."""
        value = self.cells.get(column)
        return not (value is None or value == [] or (isinstance(value, str) and not value.strip()))

    def text(self, column: str) -> str | None:
        """Text of a column without blanks around it; None where there is nothing."""
        value = self.cells.get(column)
        if not self.given(column):
            return None
        if not isinstance(value, str):
            raise InputError(f'{self.where}: "{column}" is {value!r:.60}, not text')
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f'{self.where}: "{column}" is not valid Unicode text') from None
        return value.strip()

    def number(self, column: str) -> int | None:
        """Whole number in a column; None where there is nothing."""
        return self._whole(self.cells[column], column) if self.given(column) else None

    def expression(self) -> str:
        """The sentence; InputError when it is empty, or the row lacks the columns that every row needs."""
        if "expression" not in self.cells or not any(column in self.cells for column in TARGETS):
            raise InputError(f"{self.where} has {', '.join(self.cells) or 'nothing'}; {_EXPECTED}")
        text = self.text("expression")
        if text is None:
            raise InputError(f"{self.where}: the expression is empty")
        return text

    def path(self, column: str) -> str | None:
        """A path below the folder; InputError if it leads elsewhere."""
        name = self.text(column)
        return None if name is None else checked_path(name, f'{self.where}: "{column}"')

    def annotations(self) -> tuple[int, ...]:
        """The numbers in "ann_id", sorted, each once; none when nothing is meant."""
        value = self.cells.get("ann_id")
        if isinstance(value, str):
            value = value.strip().strip("[]").replace(",", " ").replace(";", " ").split()
        values = value if isinstance(value, list) else [value]
        numbers = {self._whole(one, "ann_id") for one in values if one is not None}
        return tuple(sorted(numbers - {NO_TARGET}))

    def segmentation(self) -> Any:
        """COCO's segmentation, which a CSV holds as JSON; not checked yet."""
        value = self.cells.get("segmentation")
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f'{self.where}: "segmentation" is not JSON ({error})') from None

    def _whole(self, value: Any, column: str) -> int:
        try:
            # Tables that went through a spreadsheet or pandas have 7.0 for 7.
            number = value if isinstance(value, int) else float(value)
            if isinstance(value, bool) or number != int(number) or abs(number) >= 2**53:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise InputError(f'{self.where}: "{column}" is {value!r:.60}, not a whole number') from None
        return int(number)


def inner_path(name: str) -> str | None:
    """The path in one spelling, with / between its parts; None when it is absolute or leads out."""
    plain = name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    leads_out = plain.startswith("/") or PureWindowsPath(name).drive or ".." in parts or "\0" in plain
    return None if leads_out or not parts else "/".join(parts)


def checked_path(name: str, owner: str) -> str:
    """`inner_path` of a name; InputError naming its owner where there is none."""
    inner = inner_path(name)
    if inner is None:
        raise InputError(f"{owner} is {name!r}, which is no path below the folder of the data")
    return inner


def read_rows(path: Path) -> list[Row | InputError]:
    """The rows of a file, with an error in the place of each that cannot be taken apart.

    Raises:
        InputError: the file cannot be read, is not UTF-8, is not CSV, lacks columns, or has no rows.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line} is not UTF-8 text; save the file as UTF-8") from None
    rows = list(_csv_rows(path, content) if path.suffix.lower() == ".csv" else _json_rows(path, content))
    if not rows:
        raise InputError(f"{path} has no rows; {_EXPECTED}")
    return rows


def _json_rows(path: Path, content: str) -> Iterator[Row | InputError]:
    # Not splitlines(): JSON text may hold other characters that it takes for the end of a line.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield InputError(f"{where} is not valid JSON ({error}); write one object per line")
            continue
        if isinstance(cells, dict):
            yield Row(where, cells)
        else:
            yield InputError(f"{where} is not a JSON object; write one object per line")


def _csv_rows(path: Path, content: str) -> Iterator[Row | InputError]:
    start = len(content) - len(content.lstrip())
    header_line = content[start:].split("\n", 1)[0]
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=_delimiter(header_line) or ",", strict=True
    )
    header: list[str] = []
    try:
        first = 1
        for cells in reader:
            where, first = f"{path} line {first}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _checked_header(cells, where)
            elif len(cells) != len(header):
                yield InputError(
                    f"{where} has {len(cells)} cells, the header {len(header)}; put quotes around text with a "
                    "separator in it"
                )
            else:
                yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not valid CSV ({error})") from error


def _delimiter(header: str) -> str | None:
    """The separator under which the header has an "expression"; None when there is none."""
    for delimiter in ",;\t":
        try:
            cells = next(csv.reader([header.strip("\r\n")], delimiter=delimiter), [])
        except csv.Error:
            continue
        if "expression" in _names(cells):
            return delimiter
    return None


def _names(header: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in header]


def _checked_header(cells: list[str], where: str) -> list[str]:
    names = _names(cells)
    missing = "expression" not in names or not any(column in names for column in TARGETS)
    if missing or ("ann_id" not in names and "image" not in names):
        raise InputError(f"{where} has the columns {', '.join(names)}; {_EXPECTED}")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(f"{where} has the column {twice[0]} twice; keep one of them")
    return names


def has_expressions(path: Path) -> bool:
    """Whether the first row, or the header, has an "expression"."""
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"").decode("utf-8-sig", "replace")
    except OSError:
        return False
    if path.suffix.lower() == ".csv":
        return _delimiter(first) is not None
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "expression" in row
