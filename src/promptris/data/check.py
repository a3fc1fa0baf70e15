"""Is a data set whole? Counts beside the published ones, and every item that cannot be used, by name."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from promptris.data.dataset import ReferDataset
from promptris.data.pictures import load_record
from promptris.data.published import CountRow, Counts, GroupRow, compare_counts, compare_open_vocabulary
from promptris.data.records import ImageRecord
from promptris.errors import InputError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        counts: referents, images and sentences of each split beside the published numbers.
        open_vocabulary: the same for referents of seen and unseen categories, where numbers are published.
        problems: one sentence for everything that is off.
        notes: what is worth knowing and no fault.
    """

    counts: tuple[CountRow, ...]
    open_vocabulary: tuple[GroupRow, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is off."""
        return not self.problems


def check_dataset(
    dataset: ReferDataset, decode: bool = True, progress: Progress | None = None
) -> CheckReport:
    """Check a data set that was read with `skip_broken=True`.

    Args:
        dataset: the data.
        decode: decode every image, which finds files that are cut off; takes minutes for COCO.
        progress: called with (images done, images in all).
    """
    counts = tuple(compare_counts(dataset))
    groups: tuple[GroupRow, ...] = ()
    problems = list(dataset.broken)
    try:
        groups = tuple(compare_open_vocabulary(dataset))
    except InputError as error:
        problems.append(str(error))
    problems += [_count_difference(dataset, row) for row in counts if not row.ok]
    problems += [_group_difference(dataset, row) for row in groups if not row.ok]
    records = [record for record in dataset.images.values() if record.path.is_file()]
    if decode:
        problems += _unreadable(records, progress)
    return CheckReport(counts, groups, tuple(problems), tuple(_shared_images(dataset)))


def _unreadable(records: Iterable[ImageRecord], progress: Progress | None) -> Iterator[str]:
    records = list(records)
    # The decoders work outside the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, sentence in enumerate(_in_order(pool, records), start=1):
            if progress is not None:
                progress(done, len(records))
            if sentence is not None:
                yield sentence


def _in_order(pool: ThreadPoolExecutor, records: list[ImageRecord]) -> Iterator[str | None]:
    """Results in order, with few images in memory at once."""
    waiting = iter(records)
    running = deque(pool.submit(_sentence, record) for record in islice(waiting, 32))
    while running:
        yield running.popleft().result()
        running.extend(pool.submit(_sentence, record) for record in islice(waiting, 1))


def _sentence(record: ImageRecord) -> str | None:
    try:
        load_record(record)
    except InputError as error:
        return str(error)
    return None


def _count_difference(dataset: ReferDataset, row: CountRow) -> str:
    where = f"{dataset.name} ({dataset.split_by}) {row.split}"
    if row.found is None:
        return f"{where} is missing"
    return f"{where} has {_in_words(row.found)}; published are {_in_words(row.published or row.found)}"


def _in_words(counts: Counts) -> str:
    return "{:,} referents, {:,} images and {:,} sentences".format(*counts)


def _group_difference(dataset: ReferDataset, row: GroupRow) -> str:
    return (
        f"{dataset.name} ({dataset.split_by}) {' and '.join(row.splits)} has {row.found:,} referents of {row.group} "
        f"categories; expected are {row.published:,}"
    )


def _shared_images(dataset: ReferDataset) -> Iterator[str]:
    """Images that are in a training and in another split: known of one benchmark, a leak in one's own data."""
    train = {
        image for split in dataset.rows if split.startswith("train") for image in dataset.image_ids(split)
    }
    for split in dataset.rows:
        if not split.startswith("train") and (shared := train.intersection(dataset.image_ids(split))):
            yield (
                f"{len(shared):,} images of {split} are in a training split too, so scores on {split} are "
                "those of seen images"
            )
