"""The published counts: that they agree among themselves, and how a data set is compared with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.data import published
from promptris.data.columns import Collector
from promptris.data.dataset import ReferDataset
from promptris.data.published import (
    OPEN_VOCABULARY,
    PUBLISHED,
    CountRow,
    GroupRow,
    compare_counts,
    compare_open_vocabulary,
)
from promptris.data.records import Expression

EMPTY_4X3 = b"<"


def dataset(name="refcoco", split_by="unc"):
    """Splits a: 2 referents on one image, 3 sentences; b: 1 referent of an unseen category; c: 1, seen."""
    collector = Collector()
    collector.categories = {1: "person", 17: "cat"}
    for image_id in (1, 2):
        collector.image(image_id, f"{image_id}.jpg", 4, 3)
    for ref_id, image_id, category_id, split, sentences in (
        (1, 1, 1, "a", 2),
        (2, 1, 1, "a", 1),
        (3, 2, 17, "b", 1),
        (4, 2, 1, "c", 1),
    ):
        texts = [Expression(10 * ref_id + k, "it") for k in range(sentences)]
        collector.referent(ref_id, image_id, category_id, split, texts, {ref_id: EMPTY_4X3})
    return ReferDataset.from_columns(name, split_by, Path("/data"), collector.columns(), [])


def test_totals_of_the_benchmarks():
    # What the papers say of the data sets as a whole.
    def total(key, column):
        return sum(counts[column] for counts in PUBLISHED[key].values())

    assert [total(("refcoco", "unc"), k) for k in range(3)] == [50000, 19994, 142210]
    assert [total(("refcoco+", "unc"), k) for k in range(3)] == [49856, 19992, 141564]
    # Both partitions of RefCOCOg hold the same referents and sentences; umd's splits share no image, while
    # 3549 images are in both of google's.
    assert [total(("refcocog", "umd"), k) for k in (0, 2)] == [49822, 95010]
    assert [total(("refcocog", "google"), k) for k in (0, 2)] == [49822, 95010]
    assert total(("refcocog", "umd"), 1) == total(("refcocog", "google"), 1) - 3549


def test_groups_fit_into_their_splits():
    assert OPEN_VOCABULARY.keys() == PUBLISHED.keys()
    for key, rows in OPEN_VOCABULARY.items():
        assert {split for splits in rows for split in splits} == set(PUBLISHED[key])
        for splits, groups in rows.items():
            assert sum(groups.values()) < sum(PUBLISHED[key][split][0] for split in splits)


def test_counts_beside_the_published_ones(monkeypatch):
    expected = {"b": (1, 1, 2), "a": (2, 1, 3), "val": (5, 5, 5)}
    monkeypatch.setattr(published, "PUBLISHED", {("refcoco", "unc"): expected})
    assert compare_counts(dataset()) == [
        CountRow("b", (1, 1, 1), (1, 1, 2), ok=False),
        CountRow("a", (2, 1, 3), (2, 1, 3), ok=True),
        CountRow("val", None, (5, 5, 5), ok=False),
        CountRow("c", (1, 1, 1), None, ok=True),
    ]
    assert [row.published for row in compare_counts(dataset(split_by="mixed"))] == [None, None, None]


def test_groups_beside_the_expected_ones(monkeypatch):
    expected = {("a",): {"seen": 2}, ("b", "c"): {"seen": 1, "unseen": 2}, ("val",): {"seen": 1}}
    monkeypatch.setattr(published, "OPEN_VOCABULARY", {("refcoco", "unc"): expected})
    assert compare_open_vocabulary(dataset()) == [
        GroupRow(("a",), "seen", 2, 2, ok=True),
        GroupRow(("b", "c"), "seen", 1, 1, ok=True),
        GroupRow(("b", "c"), "unseen", 1, 2, ok=False),
        GroupRow(("val",), "seen", 0, 1, ok=False),
    ]
    assert compare_open_vocabulary(dataset(name="harbour")) == []


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_small_data_set_is_not_taken_for_a_benchmark(key):
    rows = compare_counts(dataset(*key))
    assert [row.ok for row in rows if row.published] == [False] * len(PUBLISHED[key])
