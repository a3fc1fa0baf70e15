"""Is a data set whole? Counts beside the published ones, and every item that cannot be used, by name."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from promptris.data.dataset import ReferDataset
from promptris.data.pictures import load_record
from promptris.data.published import CountRow, Counts, GroupRow, compare_counts, compare_open_vocabulary
from promptris.data.readers.instances import no_pixel
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
    if not any(len(rows) for rows in dataset.rows.values()):
        problems.append(f"{dataset.name} has no referents")
    problems += _without_pixels(dataset)
    try:
        groups = tuple(compare_open_vocabulary(dataset))
    except InputError as error:
        problems.append(str(error))
    problems += [_count_difference(dataset, row) for row in counts if not row.ok]
    problems += [_group_difference(dataset, row) for row in groups if not row.ok]
    if decode:
        # Files that are missing have been told.
        there = (row for row in range(len(dataset.columns.image_id)) if dataset.path_of(row) is not None)
        records = [dataset.images[int(dataset.columns.image_id[row])] for row in there]
        problems += _unreadable(records, progress)
    return CheckReport(counts, groups, tuple(problems), tuple(_shared_images(dataset)))


def _without_pixels(dataset: ReferDataset) -> Iterator[str]:
    """Targets that are told and yet cover nothing; they stay, because a benchmark's annotation may be that small."""
    from promptris.ops.run_lengths import covers_nothing

    c = dataset.columns
    rows = np.concatenate([*dataset.rows.values(), np.empty(0, np.int64)])
    targets, first = np.unique(np.asarray(c.ref_target)[rows], return_index=True)
    for target, row in zip(targets.tolist(), rows[first].tolist(), strict=True):
        image = int(c.ref_image[row])
        size = int(c.image_height[image]), int(c.image_width[image])
        members = c.members(target)
        if members and covers_nothing(c.run_lengths(target), *size):
            what = f"annotation {', '.join(map(str, members))} on image {int(c.image_id[image])}"
            yield no_pixel(f"{dataset.name}, {what}", size)


def _unreadable(records: list[ImageRecord], progress: Progress | None) -> Iterator[str]:
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
