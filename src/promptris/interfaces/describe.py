"""`promptris data describe` and `promptris data sheet`: a data set in numbers, and some of it on one page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptris.errors import InputError
from promptris.interfaces.data import DataRoot
from promptris.interfaces.terminal import new_table, percent, print_table, say

if TYPE_CHECKING:
    from PIL import Image

    from promptris.data.dataset import ReferDataset
    from promptris.data.statistics import SplitStatistics, Spread

    Splits = Mapping[str, SplitStatistics]

_SHOWN_WORDS, _SHOWN_CATEGORIES, _SHOWN_LENGTHS = 15, 20, 20
_SHOWN_QUANTILES = ("5%", "median", "95%")
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="refcoco, refcoco+, refcocog, grefcoco, refshapes, refcoco-combined, or a folder of your own.",
    ),
]
SplitBy = Annotated[
    str | None,
    typer.Option(help="Partition: unc, umd or google.  [default: the data set's usual one]"),
]


def describe_command(
    name: Name,
    data_root: DataRoot = None,
    split: Annotated[str | None, typer.Option(help="Only this one.  [default: all]")] = None,
    split_by: SplitBy = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything to this file too.")
    ] = None,
) -> int:
    """Statistics of a data set: counts, words, sizes, categories, tags.

    Images are not needed. Items that cannot be used are not counted; "promptris data check" names them.
    """
    from promptris.data.refshapes.tags import read_tags
    from promptris.data.statistics import split_statistics
    from promptris.outputs import write_whole

    dataset = _open(name, data_root, split, split_by)
    tags = read_tags(dataset.root, dataset.name)
    chosen = list(dataset.rows) if split is None else [split]
    splits = {each: split_statistics(dataset, each, tags) for each in chosen}
    if as_json is not None:
        content = {
            "name": dataset.name,
            "split_by": dataset.split_by,
            "left_out": len(dataset.broken),
            "splits": {each: statistics.to_dict() for each, statistics in splits.items()},
        }
        write_whole(as_json, (json.dumps(content, indent=2) + "\n").encode())
    _print_counts(f"{dataset.name} {dataset.split_by}".strip(), splits)
    _print_sizes(splits)
    _print_lengths(splits)
    _print_words(splits)
    _print_categories(splits)
    _print_tags(splits)
    if as_json is not None:
        say(f"written to {as_json}")
    return 0


def sheet_command(
    name: Name,
    split: Annotated[str, typer.Option(help="Where the images are from.")],
    data_root: DataRoot = None,
    split_by: SplitBy = None,
    out: Annotated[Path, typer.Option(help="The picture, .png or .jpg.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option(help="How many images.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the choice; the same one chooses the same.")] = 0,
    columns: Annotated[int, typer.Option(help="Images side by side.")] = 4,
    palette: Annotated[
        bool, typer.Option("--palette", help="Save a PNG in 256 colours, which takes a quarter of the space.")
    ] = False,
    font: Annotated[
        Path | None, typer.Option(help="TrueType font for scripts that the built-in Latin one lacks.")
    ] = None,
) -> int:
    """A sample sheet: images with one or two expressions each, and what these mean outlined."""
    from promptris.data.sample_sheet import draw_samples, sample_sheet
    from promptris.outputs import write_whole

    kind = _PICTURES.get(out.suffix.lower())
    if kind is None:
        raise InputError(f"--out {out} must end in {' or '.join(_PICTURES)}")
    if columns < 1:
        raise InputError(f"--columns {columns} must be at least 1")
    dataset = _open(name, data_root, split, split_by)
    samples = draw_samples(dataset, split, count, seed)
    there = dataset.count(split)[1]
    title = f"{dataset.name} {dataset.split_by}".strip()
    page = sample_sheet(
        samples, f"{title}, {split}: {len(samples)} of {there:,} images", columns, font_path=font
    )
    write_whole(out, _encoded(page, kind, palette))
    say(f"{len(samples)} of {there:,} images of {split}, seed {seed}, are in {out}")
    return 0


def _open(name: str, data_root: Path | None, split: str | None, split_by: str | None) -> ReferDataset:
    from promptris.data.catalog import read_dataset

    dataset = read_dataset(
        name,
        data_root,
        split_by,
        splits=None if split is None else [split],
        require_images=False,
        skip_broken=True,
        notify=say,
    )
    if split is not None:
        dataset.referents(split)  # names the splits there are
    if dataset.broken:
        what = f"{len(dataset.broken):,} items" if len(dataset.broken) > 1 else "1 item"
        say(f"left out because it cannot be used: {what}; promptris data check names everything that is off")
    return dataset


def _encoded(page: Image.Image, kind: str, palette: bool) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if kind == "PNG" and palette:
        # Rare colours matter as much as frequent ones: a small object must not turn grey.
        page = page.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    page.save(buffer, kind, optimize=True, quality=90)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ tables


def _print_counts(title: str, splits: Splits) -> None:
    extra: dict[str, Callable[[SplitStatistics], int]] = {}
    if any(s.no_target or s.several_targets for s in splits.values()):
        extra = {"no target": lambda s: s.no_target, "several": lambda s: s.several_targets}
    table = new_table(
        "split",
        "images",
        "referents",
        *extra,
        "expressions",
        "per referent",
        "words in each",
        "different words",
    )
    for split, s in splits.items():
        table.add_row(
            split,
            f"{s.images:,}",
            f"{s.referents:,}",
            *(f"{number(s):,}" for number in extra.values()),
            f"{s.expressions:,}",
            _spread(s.expressions_per_referent),
            _spread(s.words_per_expression),
            f"{s.distinct_words:,}",
        )
    print_table(table, f"{title} (ranges: least / mean / most)")


def _spread(spread: Spread) -> str:
    return f"{spread.least} / {spread.mean:.2f} / {spread.most}"


def _print_sizes(splits: Splits) -> None:
    from promptris.data.statistics import QUANTILES

    table = new_table("split", *QUANTILES)
    for split, s in splits.items():
        if s.referent_share:
            table.add_row(split, *(f"{100 * value:.2f}" for value in s.referent_share.values()))
    if table.row_count:
        print()
        print_table(table, "size of the referents: share of the image, in percent")


def _print_lengths(splits: Splits) -> None:
    lengths = sorted({length for s in splits.values() for length in s.word_counts})
    if not lengths:
        return
    table = new_table("words", *splits)
    for length in (length for length in lengths if length <= _SHOWN_LENGTHS):
        table.add_row(str(length), *(_share(s.word_counts.get(length, 0), s) for s in splits.values()))
    if lengths[-1] > _SHOWN_LENGTHS:
        over = [
            sum(count for length, count in s.word_counts.items() if length > _SHOWN_LENGTHS)
            for s in splits.values()
        ]
        more = (_share(count, s) for count, s in zip(over, splits.values(), strict=True))
        table.add_row(f"{_SHOWN_LENGTHS + 1} and more", *more)
    print()
    print_table(table, "words per expression, in percent of the expressions")


def _print_words(splits: Splits) -> None:
    table = new_table("split", "most frequent words", words=2)
    for split, s in splits.items():
        shown = list(s.frequent_words.items())[:_SHOWN_WORDS]
        table.add_row(split, ", ".join(f"{_printable(word)} {count:,}" for word, count in shown))
    print()
    print_table(table)


def _print_categories(splits: Splits) -> None:
    totals: dict[str, int] = {}
    for s in splits.values():
        for category, count in s.categories.items():
            totals[category] = totals.get(category, 0) + count
    names = sorted(totals, key=lambda category: (-totals[category], category))
    if not names:
        return
    table = new_table("category", *splits)
    for category in names[:_SHOWN_CATEGORIES]:
        table.add_row(_printable(category), *(f"{s.categories.get(category, 0):,}" for s in splits.values()))
    if rest := names[_SHOWN_CATEGORIES:]:
        sums = (sum(s.categories.get(category, 0) for category in rest) for s in splits.values())
        table.add_row(f"{len(rest)} others", *(f"{number:,}" for number in sums))
    print()
    print_table(table, "referents by category")


def _print_tags(splits: Splits) -> None:
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for split, s in splits.items():
        for kind, count in s.kinds.items():
            rows.setdefault(("kind", kind), {})[split] = _share(count, s)
        for name, tag in s.tags.items():
            for value, count in tag.counts.items():
                rows.setdefault((name, value), {})[split] = _share(count, s)
            for quantile in _SHOWN_QUANTILES if tag.quantiles else ():
                rows.setdefault((name, f"({quantile})"), {})[split] = f"{tag.quantiles[quantile]:.3g}"
    if not rows:
        return
    order = list(dict.fromkeys(name for name, _ in rows))
    table = new_table("tag", "value", *splits, words=2)
    before = ""
    for name, value in sorted(rows, key=lambda row: order.index(row[0])):
        cells = (rows[name, value].get(split, "-") for split in splits)
        table.add_row(_printable(name) if name != before else "", _printable(value), *cells)
        before = name
    print()
    print_table(table, "tags: percent of the expressions by value, or quantiles of the values themselves")


def _share(count: int, statistics: SplitStatistics) -> str:
    return percent(count / statistics.expressions) if count else "-"


def _printable(text: str) -> str:
    """Without what would move the terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
