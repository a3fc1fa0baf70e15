"""One training set out of several, without any image that they are evaluated on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptris.data.columns import Collector
from promptris.data.dataset import ReferDataset
from promptris.data.index import Notify, silent
from promptris.data.published import PUBLISHED, Counts
from promptris.data.readers.refer import read_refer
from promptris.data.records import Expression
from promptris.errors import InputError

TRAINING: tuple[tuple[str, str], ...] = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
HELD_OUT: tuple[tuple[str, str], ...] = (*TRAINING, ("refcocog", "google"))
"""Data sets of the paper: those it trains on together, and those whose evaluation images it leaves out."""

COMBINED = "refcoco-combined"
"""What users call the paper's training set."""

Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Contribution:
    """What became of the train split of one data set.

    before, after: referents, images and sentences.
    removed_images: images left out, each counted once.
    removed_by: how many of them each held-out split claims; an image in several splits is counted in each.
    """

    name: str
    before: Counts
    after: Counts
    removed_images: int
    removed_by: Mapping[str, int]


@dataclass(frozen=True)
class CombinationReport:
    """What a combined training set was made of.

    Attributes:
        contributions: one for each data set.
        held_out: images of each split that was kept out.
        held_out_images: images that were kept out, each counted once.
        total: referents, images and sentences of the result.
        shared_annotations: annotations that more than one data set describes.
        merged_referents: by how much merging them lessened the referents.
        repeated_sentences: sentences that say of an annotation, word for word, what a data set before says.
        redrawn_annotations: annotations whose masks differ between data sets; the first one is kept.
    """

    contributions: tuple[Contribution, ...]
    held_out: Mapping[str, int]
    held_out_images: int
    total: Counts
    shared_annotations: int
    merged_referents: int
    repeated_sentences: int
    redrawn_annotations: int

    def lines(self) -> list[str]:
        """The report for people, one sentence or two per line."""
        lines = [
            f"{self.held_out_images} images of {len(self.held_out)} evaluation splits are kept out of training"
        ]
        for part in self.contributions:
            reasons = ", ".join(f"{count} in {split}" for split, count in part.removed_by.items())
            several = "; one in several splits counts in each" if len(part.removed_by) > 1 else ""
            lines += [
                f"{part.name} train: {_told(part.before)}",
                f"  {part.removed_images} images removed" + (f" ({reasons}{several})" if reasons else ""),
                f"  left: {_told(part.after)}",
            ]
        refs, images, sentences = self.total
        if self.redrawn_annotations:
            lines.append(
                f"{self.redrawn_annotations} annotations have another mask in a later data set: kept the first"
            )
        return [
            *lines,
            f"{self.shared_annotations} annotations are in more than one data set and became one referent each, "
            f"{self.merged_referents} referents fewer; {self.repeated_sentences} of their sentences say the "
            "same twice, and are kept",
            f"result: {_told((refs, images, sentences))}, no image in any of these evaluation splits (checked)",
        ]


def combined_training_set(
    data_root: str | Path,
    *,
    require_images: bool = True,
    skip_broken: bool = False,
    notify: Notify = silent,
) -> tuple[ReferDataset, CombinationReport]:
    """The paper's training set: RefCOCO, RefCOCO+ and RefCOCOg (umd) without any image they are evaluated on.

    Both partitions of RefCOCOg are needed, since images of google's val are in the train split of the others.
    The arguments are those of `read_refer`.

    Raises:
        InputError: when one of the four is missing, lacks a split, or cannot be read; see `read_refer` and
            `combine`.
    """
    read: dict[tuple[str, str], ReferDataset] = {}
    problems: list[str] = []
    for key in HELD_OUT:
        try:
            dataset = read_refer(
                data_root,
                *key,
                # Of splits that are only held out, nothing but the numbers of their images matters.
                splits=["train"],
                require_images=require_images and key in TRAINING,
                skip_broken=skip_broken,
                notify=notify,
            )
        except InputError as error:
            problems.append(f"{_label(*key)}: {error}")
            continue
        lacking = [split for split in PUBLISHED[key] if split not in dataset.rows]
        if lacking:
            problems.append(f"{_label(*key)} has no split {' or '.join(lacking)}")
        read[key] = dataset
    if problems:
        needed = ", ".join(_label(*key) for key in HELD_OUT)
        raise InputError(
            f"the combined training set needs all of {needed}, because no image of any of their evaluation "
            f"splits may be trained on: {'; '.join(problems)}"
        )
    return combine([read[key] for key in TRAINING], [read[key] for key in HELD_OUT])


def combine(
    training: Sequence[ReferDataset], held_out: Sequence[ReferDataset], *, name: str = COMBINED
) -> tuple[ReferDataset, CombinationReport]:
    """Pool train splits, leaving out every image of any other split of the `held_out` data sets.

    Images and annotations are told apart by their ids, so all data sets must number them alike, as those made
    from COCO do. An annotation that several of them describe becomes one referent with the sentences of all;
    none is dropped, even if two are the same word for word. `ref_id` and `sent_id` are new, running from 1.

    A referent of `held_out` that could not be read keeps its image out too. So does one that a selection has
    dropped: the splits that the files name count, and those of the selection besides.

    Args:
        training: data sets with a split "train", all below one root.
        held_out: data sets whose splits other than "train" must share no image with the result. Those of
            `training` are not held out unless they are in here as well.
        name: name of the result.

    Returns:
        A data set with the one split "train", and the report of what was left out and why.

    Raises:
        InputError: nothing to train on, different roots, a data set without train split, an annotation with
            different images or categories, an image with different files or sizes, a category with
            different names, or broken referents of `held_out` whose image is not known.
    """
    if not training:
        raise InputError("there is no data set to combine")
    for dataset in training:
        if dataset.root != training[0].root:
            raise InputError(
                f"{training[0].name} is below {training[0].root} and {dataset.name} below {dataset.root}: "
                "put data sets that are to be combined below one data root"
            )
    held = _held_out_images(held_out)
    everything = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *held.values()]))
    pool, contributions = _Pool(), []
    for dataset in training:
        before = dataset.count("train")
        rows = dataset.rows["train"]
        images = np.asarray(dataset.columns.image_id)[dataset.columns.ref_image[rows]]
        kept = rows[~np.isin(images, everything)]
        images = np.unique(images)
        claims = {split: int(np.isin(images, ids).sum()) for split, ids in held.items()}
        pool.add(dataset, kept)
        contributions.append(
            Contribution(
                name=_label(dataset.name, dataset.split_by),
                before=before,
                after=dataset.with_rows({"train": kept}).count("train"),
                removed_images=int(np.isin(images, everything).sum()),
                removed_by={split: count for split, count in claims.items() if count},
            )
        )
    combined = pool.dataset(name, training)
    if np.isin(combined.image_ids("train"), everything).any():
        raise RuntimeError("an image of an evaluation split was left in the combined training set")
    total = combined.count("train")
    report = CombinationReport(
        contributions=tuple(contributions),
        held_out={split: len(ids) for split, ids in held.items()},
        held_out_images=len(everything),
        total=total,
        shared_annotations=sum(len(target.sources) > 1 for target in pool.targets.values()),
        merged_referents=sum(part.after[0] for part in contributions) - total[0],
        repeated_sentences=sum(target.repeated() for target in pool.targets.values()),
        redrawn_annotations=sum(target.redrawn for target in pool.targets.values()),
    )
    return combined, report


def _held_out_images(datasets: Sequence[ReferDataset]) -> dict[str, Ids]:
    """Ids of the images of every split that is not for training."""
    held: dict[str, list[Ids]] = {}
    for dataset in datasets:
        for split, ids in _evaluation_images(dataset):
            held.setdefault(f"{_label(dataset.name, dataset.split_by)} {split}", []).append(ids)
    return {split: np.unique(np.concatenate(parts)) for split, parts in held.items()}


def _evaluation_images(dataset: ReferDataset) -> Iterator[tuple[str, Ids]]:
    c = dataset.columns
    image_ids, codes = np.asarray(c.image_id), np.asarray(c.ref_split)
    left_out: dict[str, list[int]] = c.facts["left_out"]
    # Where a broken referent belongs is mostly known; where it is not, its image may be anywhere.
    broken = c.facts["broken"]
    if len(broken) > sum(len(ids) for ids in left_out.values()):
        raise InputError(
            f"{_label(dataset.name, dataset.split_by)} has broken referents whose image is not known, so its "
            f"evaluation images cannot all be kept out of training; repair them first: {broken[0]}"
        )
    rows = {split: np.flatnonzero(codes == code) for code, split in enumerate(c.facts["splits"])}
    for selection in (rows, dataset.rows):
        yield from ((split, image_ids[c.ref_image[k]]) for split, k in selection.items() if split != "train")
    yield from ((split, np.array(ids, np.int64)) for split, ids in left_out.items() if split != "train")


@dataclass(slots=True)
class _Target:
    """An annotation (or several, or none) with the sentences of all data sets."""

    image_id: int
    category_id: int
    run_lengths: bytes
    first: str
    redrawn: bool = False
    sources: list[int] = field(default_factory=list)
    sentences: list[tuple[int, str, str | None]] = field(default_factory=list)

    def repeated(self) -> int:
        """How many sentences another data set has said before, word for word."""
        if len(self.sources) < 2:
            return 0
        first: dict[str, int] = {}
        return sum(first.setdefault(text, source) != source for source, text, _ in self.sentences)


class _Pool:
    """Targets by the annotations they are made of, and all that belongs to them."""

    def __init__(self) -> None:
        self.targets: dict[tuple[int, tuple[int, ...]], _Target] = {}
        self._images: dict[int, tuple[tuple[str, int, int], str]] = {}
        self._categories: dict[int, tuple[str, str]] = {}
        self._datasets = 0

    def add(self, dataset: ReferDataset, rows: Ids) -> None:
        """Take the referents in some rows of a data set."""
        c, label, source = dataset.columns, _label(dataset.name, dataset.split_by), self._datasets
        self._datasets += 1
        for category_id, category in dataset.categories.items():
            known, first = self._categories.setdefault(category_id, (category, label))
            if known != category:
                raise InputError(
                    f"category {category_id} is {known!r} in {first}, but {category!r} in {label}"
                )
        self._add_images(dataset, np.unique(np.asarray(c.ref_image)[rows]), label)
        masks = _pieces(c.target_rle, c.target_rle_start)
        members, start = np.asarray(c.target_member).tolist(), np.asarray(c.target_member_start).tolist()
        texts = _pieces(c.sent_text, c.sent_text_start)
        kinds = [*c.facts["kinds"], None]  # -1, the last, stands for none
        sentence_kinds = np.asarray(c.sent_kind).tolist()
        sentence_start = np.asarray(c.ref_sentence_start)
        table = (
            np.asarray(c.ref_target)[rows],
            np.asarray(c.image_id)[c.ref_image[rows]],
            np.asarray(c.ref_category)[rows],
            sentence_start[rows],
            sentence_start[rows + 1],
        )
        for target, image_id, category_id, begin, end in zip(*(x.tolist() for x in table), strict=True):
            group = tuple(members[start[target] : start[target + 1]])
            # "Nothing" is one target in every image.
            key = (0 if group else image_id, group)
            known_target = self.targets.get(key)
            if known_target is None:
                known_target = _Target(image_id, category_id, masks[target], label)
                self.targets[key] = known_target
            else:
                _check_same(known_target, group, image_id, category_id, label)
                known_target.redrawn |= known_target.run_lengths != masks[target]
            if source not in known_target.sources:
                known_target.sources.append(source)
            known_target.sentences += [
                (source, texts[k].decode("utf-8", "surrogatepass"), kinds[sentence_kinds[k]])
                for k in range(begin, end)
            ]

    def _add_images(self, dataset: ReferDataset, image_rows: Ids, label: str) -> None:
        c = dataset.columns
        for row in image_rows.tolist():
            image_id = int(c.image_id[row])
            facts = (c.file_name(row), int(c.image_height[row]), int(c.image_width[row]))
            known, first = self._images.setdefault(image_id, (facts, label))
            if known != facts:
                raise InputError(
                    f"image {image_id} is {known[0]} of {known[1]} x {known[2]} pixels (height x width) in {first}, "
                    f"but {facts[0]} of {facts[1]} x {facts[2]} in {label}"
                )

    def dataset(self, name: str, training: Sequence[ReferDataset]) -> ReferDataset:
        """Everything that was taken, as one data set."""
        collector = Collector()
        collector.categories = {key: category for key, (category, _) in self._categories.items()}
        for image_id, ((file_name, height, width), _) in self._images.items():
            collector.image(image_id, file_name, height, width)
        sent_id = 0
        for ref_id, ((_, group), target) in enumerate(self.targets.items(), start=1):
            expressions = [
                Expression(sent_id + place, text, kind)
                for place, (_, text, kind) in enumerate(target.sentences, start=1)
            ]
            sent_id += len(expressions)
            # Of several annotations only the union is known; the union of unions is the same.
            masks = dict.fromkeys(group, target.run_lengths)
            collector.referent(ref_id, target.image_id, target.category_id, "train", expressions, masks)
        folders = tuple(dict.fromkeys(folder for dataset in training for folder in dataset.folders))
        columns = collector.columns()
        rows = {"train": np.arange(len(self.targets))}
        broken = tuple(dict.fromkeys(sentence for dataset in training for sentence in dataset.broken))
        return ReferDataset(name, "", training[0].root, columns, folders, rows, broken)


def _check_same(known: _Target, group: tuple[int, ...], image_id: int, category_id: int, label: str) -> None:
    what = f"annotation {', '.join(map(str, group))}" if group else f"the empty target of image {image_id}"
    if known.image_id != image_id:
        raise InputError(
            f"{what} is on image {known.image_id} in {known.first}, but on image {image_id} in {label}"
        )
    if known.category_id != category_id:
        raise InputError(
            f"{what} is of category {known.category_id} in {known.first}, but of {category_id} in {label}"
        )


def _pieces(blob: NDArray[np.uint8], start: Ids) -> list[bytes]:
    content, cuts = blob.tobytes(), np.asarray(start).tolist()
    return [content[first:stop] for first, stop in pairwise(cuts)]


def _label(name: str, split_by: str) -> str:
    return f"{name} ({split_by})" if split_by else name


def _told(counts: Counts) -> str:
    refs, images, sentences = counts
    return f"{refs} referents, {images} images, {sentences} sentences"
