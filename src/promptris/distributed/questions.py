"""What is asked: the rows of parquet and JSON-lines files as one table of questions."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType
from pyarrow.parquet import ParquetFile

from promptris.distributed.locations import absolute, filesystem, first_line, is_uri
from promptris.errors import InputError
from promptris.processing import check_expression

QUESTIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("item", pa.int32()),
        ("image", pa.large_string()),
        ("expression", pa.large_string()),
        ("location", pa.large_string()),
        ("error", pa.large_string()),
    ]
)
"""A question: its row in the input and place in that row's list, both from 0; the image as the row names it, and
where that is; the expression; and, where it cannot be asked, why."""

EXPRESSION_COLUMNS = ("expressions", "expression")
"""Where expressions are looked for when no column is named."""

_PARQUET, _LINES = (".parquet", ".pq"), (".jsonl", ".ndjson")
_AT_ONCE = 16384

Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Table:
    """A file of rows; `folder` is what relative paths in it start from."""

    name: str
    folder: str
    system: FileSystem
    path: str


@dataclass(frozen=True)
class _Unreadable:
    """A line that is no row, and why."""

    reason: str


@dataclass
class _Columns:
    """The columns of questions, turned into Arrow's from time to time, which takes far less memory."""

    waiting: list[tuple[Any, ...]] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)

    def add(self, questions: Iterable[tuple[Any, ...]]) -> None:
        self.waiting.extend(questions)
        if len(self.waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            arrays = [
                pa.array(column, kind.type)
                for column, kind in zip(zip(*self.waiting, strict=True), QUESTIONS, strict=True)
            ]
            self.batches.append(pa.RecordBatch.from_arrays(arrays, schema=QUESTIONS))
            self.waiting = []


def read_questions(
    source: Source, image_column: str = "image", expression_column: str | None = None
) -> pa.Table:
    """Every image and expression of the input, in its order, as `QUESTIONS`.

    A row with a list of expressions becomes as many questions, one without any a question with an error; so does
    whatever else is wrong with a single row.

    Args:
        source: a parquet or JSON-lines file, a folder with such files, a glob, a URI of a file or folder, or several
            of these.
        image_column: of paths or URIs; relative ones start from the folder of their file.
        expression_column: of texts or lists of texts; None means "expressions" or "expression".

    Raises:
        InputError: when there is no such input, a file cannot be read, or a column is missing.
    """
    wanted = EXPRESSION_COLUMNS if expression_column is None else (expression_column,)
    columns, row = _Columns(), 0
    for table in find_tables(source):
        rows = _parquet_rows if table.path.lower().endswith(_PARQUET) else _line_rows
        for image, expressions in rows(table, image_column, wanted):
            columns.add(_questions(row, image, expressions, table.folder))
            row += 1
    columns.flush()
    if not row:
        names = source if isinstance(source, str | Path) else ", ".join(map(str, source))
        raise InputError(f"{names} has no rows: give images and expressions")
    return pa.Table.from_batches(columns.batches, QUESTIONS)


def find_tables(source: Source) -> list[Table]:
    """The files of an input, those of a folder by name.

    Raises:
        InputError: when there are none.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    found = [table for one in sources for table in _find(str(one))]
    if not found:
        raise InputError("no input is given: name a parquet or JSON-lines file")
    return found


def _find(source: str) -> list[Table]:
    system, path = filesystem(source)
    try:
        info = system.get_file_info(path)
        if info.type == FileType.File:
            return [_table(source, path, system)]
        if info.type == FileType.Directory:
            names = sorted(_inner_names(system.get_file_info(FileSelector(path, recursive=True)), path))
            if not names:
                raise InputError(f"the folder {source} holds no parquet or JSON-lines files")
            return [
                _table(f"{source.rstrip('/')}/{name}", f"{path.rstrip('/')}/{name}", system) for name in names
            ]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {source}: {first_line(error)}") from error
    if not is_uri(source) and glob.has_magic(source):
        # pathlib's glob takes no absolute patterns.
        matches = sorted(name for name in glob.glob(source, recursive=True) if _is_table(name))  # noqa: PTH207
        if matches:
            return [table for name in matches for table in _find(name)]
        raise InputError(f"no parquet or JSON-lines file matches {source!r}")
    raise InputError(f"there is no file or folder {source}")


def _inner_names(entries: Iterable[FileInfo], folder: str) -> Iterator[str]:
    for entry in entries:
        name = entry.path[len(folder) :].lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if entry.type == FileType.File and _is_table(name) and not hidden:
            yield name


def _is_table(name: str) -> bool:
    return name.lower().endswith(_PARQUET + _LINES)


def _table(name: str, path: str, system: FileSystem) -> Table:
    if not _is_table(path):
        raise InputError(
            f"{name} is neither parquet nor JSON lines: its name should end in .parquet or .jsonl"
        )
    folder = name.rpartition("/")[0] if is_uri(name) else str(Path(path).parent)
    return Table(name, folder, system, path)


def _parquet_rows(table: Table, image: str, expressions: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    try:
        with table.system.open_input_file(table.path) as opened:
            file = ParquetFile(opened)
            names = file.schema_arrow.names
            column = _pick_column(table.name, names, image, expressions)
            for batch in file.iter_batches(_AT_ONCE, columns=[image, column]):
                yield from zip(batch[image].to_pylist(), batch[column].to_pylist(), strict=True)
    except pa.ArrowException as error:
        raise InputError(f"{table.name} is damaged or no parquet file: {first_line(error)}") from error
    except OSError as error:
        raise InputError(f"cannot read {table.name}: {first_line(error)}") from error


def _line_rows(table: Table, image: str, expressions: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    seen: dict[str, None] = {}
    fits = False
    for line in _lines(table):
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _Unreadable(f"the line is not JSON ({first_line(error)})"), None
            continue
        if not isinstance(cells, dict):
            yield _Unreadable("the line is not a JSON object"), None
            continue
        column = next((name for name in expressions if name in cells), None)
        if not fits:
            seen.update(dict.fromkeys(cells))
            fits = image in cells and column is not None
        yield cells.get(image), None if column is None else cells[column]
    if seen and not fits:
        _pick_column(table.name, list(seen), image, expressions)


def _lines(table: Table) -> Iterator[bytes]:
    try:
        with table.system.open_input_stream(table.path) as stream:
            rest = b""
            while block := stream.read(1 << 20):
                # Not splitlines(): JSON text may hold other characters that it takes for the end of a line.
                *whole, rest = (rest + block).split(b"\n")
                yield from (line for line in whole if line.strip())
            if rest.strip():
                yield rest
    except OSError as error:
        raise InputError(f"cannot read {table.name}: {first_line(error)}") from error


def _pick_column(name: str, there: Sequence[str], image: str, expressions: Sequence[str]) -> str:
    """The column of the expressions; InputError when it or that of the images is missing."""
    for wanted in ((image,), expressions):
        if not any(column in there for column in wanted):
            needed = " or ".join(f'"{column}"' for column in wanted)
            raise InputError(f"{name} has no column {needed}; it has {', '.join(there)}: name the one to use")
    return next(column for column in expressions if column in there)


def _questions(row: int, image: Any, expressions: Any, folder: str) -> Iterator[tuple[Any, ...]]:
    problem = location = None
    if isinstance(image, _Unreadable):
        problem, image = image.reason, None
    elif not isinstance(image, str) or not image.strip():
        problem, image = f"the image is {_shown(image)}, not a path or an address", None
    elif not _is_unicode(image):
        problem, image = f"the image {ascii(image)[:60]} is not valid Unicode text", None
    else:
        location = absolute(image, folder)
    asked = expressions if isinstance(expressions, list | tuple) else [expressions]
    if not asked:
        problem = problem or "the row has no expression: describe what to segment"
        asked = [None]
    for item, expression in enumerate(asked):
        wrong = problem or _wrong_with(expression)
        kept = expression if isinstance(expression, str) and _is_unicode(expression) else None
        yield row, item, image, kept, None if wrong else location, wrong


def _wrong_with(expression: Any) -> str | None:
    if expression is None:
        return "the row has no expression: describe what to segment"
    try:
        check_expression(expression)
    except InputError as error:
        return str(error)
    return None


def _shown(value: Any) -> str:
    return "missing" if value is None else "empty" if value == "" else f"{value!r:.60}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
