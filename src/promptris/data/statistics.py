"""What a data set holds, in numbers: referents, words, sizes, categories, tags. Images are not looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from promptris.data.dataset import ReferDataset, Rows
from promptris.data.refshapes.tags import Tag, read_tags

QUANTILES: dict[str, float] = {
    "least": 0.0,
    "5%": 0.05,
    "25%": 0.25,
    "median": 0.5,
    "75%": 0.75,
    "95%": 0.95,
    "most": 1.0,
}
FREQUENT_WORDS = 50
MOST_TAG_VALUES = 10
"""Tags of whole numbers with more values than this are told by quantiles, as those with fractions are."""
NO_CATEGORY = "(no category)"


@dataclass(frozen=True)
class Spread:
    """The least, the mean and the most of some numbers; all 0 where there are none."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True)
class SplitStatistics:
    """One split in numbers.

    Attributes:
        images, referents, expressions: how many there are.
        no_target, several_targets: referents that mean nothing, or several objects (generalised RIS).
        expressions_per_referent, words_per_expression: words are what white space separates.
        word_counts: number of expressions by their number of words.
        frequent_words: the FREQUENT_WORDS most frequent words in lower case, with their numbers.
        distinct_words: number of different words in lower case.
        referent_share: QUANTILES of the referents' shares of their images' pixels, of those with a target.
        categories: number of referents by category, the most frequent first.
        kinds: number of expressions by kind; empty where the data set tells none.
        tags: other tags of expressions: numbers of expressions by value for words and a few whole numbers,
            QUANTILES for the rest; see `TagStatistics`.
    """

    images: int
    referents: int
    expressions: int
    no_target: int
    several_targets: int
    expressions_per_referent: Spread
    words_per_expression: Spread
    word_counts: dict[int, int]
    frequent_words: dict[str, int]
    distinct_words: int
    referent_share: dict[str, float]
    categories: dict[str, int]
    kinds: dict[str, int]
    tags: dict[str, TagStatistics]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into JSON."""
        tags = {name: tag.counts or tag.quantiles for name, tag in self.tags.items()}
        return {**asdict(self), "tags": tags}


@dataclass(frozen=True)
class TagStatistics:
    """Either the number of expressions by value, or the quantiles of the values; the other one is empty."""

    counts: dict[str, int]
    quantiles: dict[str, float]


def split_statistics(
    dataset: ReferDataset, split: str, tags: Mapping[int, Mapping[str, Tag]] | None = None
) -> SplitStatistics:
    """The numbers of one split.

    They are taken from the columns; sentences pass by one at a time, so that memory stays bounded by the
    number of different words, and by the tags where there are any.

    Args:
        dataset: the data.
        split: which split; InputError if there is no such one.
        tags: of expressions by sent_id; by default those beside the data set.
    """
    referents, images, expressions = dataset.count(split)
    c, rows = dataset.columns, np.asarray(dataset.rows[split])
    starts = np.asarray(c.ref_sentence_start)
    per_referent = starts[rows + 1] - starts[rows]
    sentences = _ranges(starts[rows], per_referent)
    members = np.diff(np.asarray(c.target_member_start))[np.asarray(c.ref_target)[rows]]
    word_counts: Counter[int] = Counter()
    words: Counter[str] = Counter()
    for row in sentences.tolist():
        found = c.expression(row).text.lower().split()
        word_counts[len(found)] += 1
        words.update(found)
    kinds = np.asarray(c.sent_kind)[sentences]
    if tags is None:
        tags = read_tags(dataset.root, dataset.name)
    return SplitStatistics(
        images=images,
        referents=referents,
        expressions=expressions,
        no_target=int((members == 0).sum()),
        several_targets=int((members > 1).sum()),
        expressions_per_referent=_spread(Counter(per_referent.tolist())),
        words_per_expression=_spread(word_counts),
        word_counts=dict(sorted(word_counts.items())),
        frequent_words=_most_common(words, FREQUENT_WORDS),
        distinct_words=len(words),
        referent_share=_quantiles(_shares(dataset, rows[members > 0])),
        categories=_categories(dataset, rows),
        kinds=_most_common(Counter(c.facts["kinds"][kind] for kind in kinds[kinds >= 0].tolist())),
        tags=_tag_statistics(tags, np.asarray(c.sent_id)[sentences].tolist()),
    )


def _ranges(starts: Rows, counts: Rows) -> Rows:
    """starts[0], starts[0] + 1 ... for every start as many as its count."""
    shifts = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return np.arange(len(shifts)) + shifts


def _spread(counts: Counter[int]) -> Spread:
    """Of numbers given as {number: how often}."""
    total = counts.total()
    if not total:
        return Spread(0, 0.0, 0)
    mean = sum(number * count for number, count in counts.items()) / total
    return Spread(min(counts), round(mean, 4), max(counts))


def _most_common(counts: Counter[str], at_most: int | None = None) -> dict[str, int]:
    """The most frequent first; those that are equally frequent by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:at_most])


def _shares(dataset: ReferDataset, rows: Rows) -> NDArray[np.float64]:
    """Share of the image's pixels of each referent; every target is measured once."""
    c = dataset.columns
    targets, first, inverse = np.unique(
        np.asarray(c.ref_target)[rows], return_index=True, return_inverse=True
    )
    images = np.asarray(c.ref_image)[rows][first]
    heights, widths = np.asarray(c.image_height)[images], np.asarray(c.image_width)[images]
    shares = np.empty(len(targets))
    sizes = zip(heights.tolist(), widths.tolist(), strict=True)
    for place, (target, size) in enumerate(zip(targets.tolist(), sizes, strict=True)):
        # One by one: for a list of masks some versions of pycocotools count areas in eight bits.
        area = coco_mask.area({"size": list(size), "counts": c.run_lengths(target)})
        shares[place] = area / (size[0] * size[1])
    return shares[inverse]


def _quantiles(values: NDArray[np.float64] | list[float]) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(value), 6) for name, value in zip(QUANTILES, found, strict=True)}


def _categories(dataset: ReferDataset, rows: Rows) -> dict[str, int]:
    ids, counts = np.unique(np.asarray(dataset.columns.ref_category)[rows], return_counts=True)
    found: Counter[str] = Counter()
    for category_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
        found[dataset.categories.get(category_id, NO_CATEGORY)] += count
    return _most_common(found)


def _tag_statistics(
    tags: Mapping[int, Mapping[str, Tag]], sent_ids: Iterable[int]
) -> dict[str, TagStatistics]:
    """Of all tags but the kind, which the columns tell."""
    values: dict[str, Counter[Tag]] = {}
    for sent_id in sent_ids if tags else ():
        for name, value in tags.get(sent_id, {}).items():
            if name != "kind":
                values.setdefault(name, Counter())[value] += 1
    return {name: _tag(counts) for name, counts in values.items()}


def _tag(counts: Counter[Tag]) -> TagStatistics:
    numbers = [value for value in counts if not isinstance(value, str)]
    if len(numbers) < len(counts):
        named: Counter[str] = Counter()
        for value, count in counts.items():
            named[str(value)] += count
        return TagStatistics(_most_common(named), {})
    if len(numbers) <= MOST_TAG_VALUES and all(isinstance(value, int) for value in numbers):
        return TagStatistics({str(value): counts[value] for value in sorted(numbers)}, {})
    repeated = np.repeat(np.array(numbers, dtype=np.float64), [counts[value] for value in numbers])
    return TagStatistics({}, _quantiles(repeated))
