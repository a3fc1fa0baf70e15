"""Selections of a data set: by split, by image, by category, held out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptris.data.columns import Collector, Place
from promptris.data.dataset import ReferDataset
from promptris.data.records import NO_TARGET, Expression
from promptris.errors import InputError
from promptris.ops.run_lengths import mask_to_rle


def square(left: int, size: int = 2) -> bytes:
    mask = np.zeros((4, 9), dtype=bool)
    mask[:size, left : left + size] = True
    return mask_to_rle(mask)["counts"].encode()


def make(rows, categories=None):
    """rows: (image_id, category_id, split, texts, {ann_id: run lengths})."""
    collector = Collector()
    collector.categories = categories or {1: "boat", 2: "kite"}
    sent_id = 0
    for ref_id, (image_id, category_id, split, texts, parts) in enumerate(rows):
        collector.image(image_id, f"{image_id}.png", 4, 9)
        expressions = [Expression(sent_id + k, text) for k, text in enumerate(texts)]
        sent_id += len(texts)
        collector.referent(ref_id, image_id, category_id, split, expressions, parts)
    return collector.columns()


ROWS = [
    (30, 1, "train", ["left boat", "boat"], {7: square(0)}),
    (10, 2, "train", ["kite"], {8: square(3)}),
    (30, 2, "train", ["kite on the right"], {9: square(5)}),
    (20, 1, "val", [], {5: square(1)}),
    (20, 1, "val", ["both boats"], {5: square(1), 6: square(6)}),
    (20, -1, "val", ["a cow"], {}),
    (40, -1, "val", ["a cow"], {}),
]


@pytest.fixture
def dataset(tmp_path) -> ReferDataset:
    return ReferDataset.from_columns("mine", "unc", tmp_path, make(ROWS), [tmp_path])


def test_sequences_are_made_on_demand_and_behave_like_lists(dataset):
    train = dataset.splits["train"]
    assert len(train) == 3
    assert [r.ref_id for r in train] == [0, 1, 2]
    assert train[-1].ref_id == 2
    assert [r.ref_id for r in train[1:]] == [1, 2]
    assert train == dataset.referents("train")
    assert train[0] in train
    with pytest.raises(IndexError):
        train[3]


def test_samples_pair_every_sentence_with_its_referent(dataset):
    assert [(r.ref_id, e.text) for r, e in dataset.samples("train")] == [
        (0, "left boat"),
        (0, "boat"),
        (1, "kite"),
        (2, "kite on the right"),
    ]
    # A referent without sentences has no sample.
    assert [r.ref_id for r, _ in dataset.samples("val")] == [4, 5, 6]


def test_counts_and_grouping_by_image(dataset):
    assert dataset.count("train") == (3, 2, 4)
    assert dataset.count("val") == (4, 2, 3)
    groups = dataset.by_image("train")
    assert list(groups) == [30, 10]  # in the order of their first referent
    assert [r.ref_id for r in groups[30]] == [0, 2]
    assert dataset.image_ids("train") == [10, 30]


def test_targets_of_one_several_and_no_annotation(dataset):
    one, both, none, none_elsewhere = dataset.splits["val"]
    assert (one.ann_id, one.ann_ids) == (5, (5,))
    assert both.ann_ids == (5, 6)
    assert both.ann_id < NO_TARGET
    assert (none.ann_id, none.ann_ids) == (NO_TARGET, ())
    union = np.zeros((4, 9), dtype=bool)
    union[:2, 1:3] = union[:2, 6:8] = True
    assert np.array_equal(dataset.mask(both), union)
    assert not dataset.mask(none).any()
    assert dataset.mask(none_elsewhere).shape == (4, 9)


def test_the_same_annotation_is_stored_once(dataset):
    assert len(dataset.columns.target_id) == 7  # 7, 8, 9, 5, {5, 6} and nothing in two images
    again = make([*ROWS, (30, 1, "train", ["the boat again"], {7: square(0)})])
    assert len(again.target_id) == 7


def test_only_some_categories(dataset):
    kites = dataset.only_categories({2})
    assert [r.ref_id for r in kites.splits["train"]] == [1, 2]
    assert len(kites.splits["val"]) == 0
    assert len(dataset.splits["train"]) == 3  # untouched


def test_unknown_splits_name_those_there_are(dataset):
    for ask in (dataset.referents, dataset.samples, dataset.by_image, dataset.count, dataset.image_ids):
        with pytest.raises(InputError, match=r"mine \(unc\) has no split 'test'; it has train, val"):
            ask("test")


def test_a_data_set_goes_to_another_process(dataset):
    there = pickle.loads(pickle.dumps(dataset))
    assert there.splits["train"] == dataset.splits["train"]


@given(
    images=st.lists(st.integers(1, 30), min_size=2, max_size=40).filter(lambda ids: len(set(ids)) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_held_out_images_are_in_one_split_only(tmp_path_factory, images, share, seed):
    columns = make([(image, 1, "train", ["x"], {k: square(0)}) for k, image in enumerate(images)])
    dataset = ReferDataset.from_columns("mine", "", tmp_path_factory.getbasetemp(), columns, [])
    parted = dataset.hold_out(share, seed=seed)
    train, val = set(parted.image_ids("train")), set(parted.image_ids("val"))
    assert train and val
    assert not train & val
    assert train | val == set(images)
    assert len(parted.splits["train"]) + len(parted.splits["val"]) == len(images)
    assert parted.image_ids("val") == dataset.hold_out(share, seed=seed).image_ids("val")


def test_holding_out_says_what_is_wrong(dataset):
    with pytest.raises(InputError, match="has a split 'val' already"):
        dataset.hold_out(0.5)
    with pytest.raises(InputError, match="share 1 to hold out must lie between"):
        dataset.hold_out(1.0, into="test")
    with pytest.raises(InputError, match="1 image in 'train': too few"):
        dataset.only_categories({1}).hold_out(0.5, into="test")


# ------------------------------------------------------------------------------------------------------ usable


def with_broken(root, rows, *broken: tuple[str, Place]) -> ReferDataset:
    """A data set that lacks items which its reader found broken, each at a place."""
    collector = Collector()
    for ref_id, (image_id, split, name) in enumerate(rows):
        collector.image(image_id, name, 4, 9)
        collector.referent(ref_id, image_id, 1, split, [Expression(ref_id, "it")], {image_id: square(0)})

    def fail(sentence: str) -> None:
        raise InputError(sentence)

    for sentence, place in broken:
        collector.attempt(fail, sentence, place=lambda place=place: place)
    return ReferDataset.from_columns("mine", "", root, collector.columns(), [root])


def test_broken_items_stop_those_who_use_their_split(tmp_path):
    dataset = with_broken(
        tmp_path,
        [(1, "train", "1.png"), (2, "val", "2.png")],
        ("one of train", ("train", 1)),
        ("one of test", ("test", None)),
    )
    assert dataset.columns.facts["left_out"] == {"train": [1]}
    for splits, message in (
        (None, "one of train .and 1 more"),
        (["train"], "one of train$"),
        (["test"], "one of test$"),
    ):
        with pytest.raises(InputError, match=message):
            dataset.usable(False, False, splits)
    assert dataset.usable(False, False, ["val"]).broken == ()
    kept = dataset.usable(False, True, ["test", "val"])
    assert (kept.broken, kept.broken_splits) == (("one of test",), ("test",))
    assert dataset.usable(False, True).broken == dataset.broken == ("one of train", "one of test")


def test_a_broken_item_that_may_be_anywhere_stops_everybody(tmp_path):
    dataset = with_broken(tmp_path, [(1, "val", "1.png")], ("no split", (None, 1)))
    with pytest.raises(InputError, match="no split"):
        dataset.usable(False, False, ["val"])
    assert dataset.columns.facts["left_out"] == {}


def test_missing_images_of_other_splits_do_not_matter(tmp_path):
    rows = [(1, "train", "1.png"), (2, "train", "2.png"), (3, "val", "3.png"), (4, "val", "4.png")]
    dataset = with_broken(tmp_path, rows)
    for name in ("2.png", "3.png", "4.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "1.png").mkdir()  # no file
    assert dataset.usable(True, False, ["val", "held out"]) is dataset
    with pytest.raises(
        InputError, match=r"1 of 2 image files of mine are missing, the first is 1\.png; looked in \. "
    ):
        dataset.usable(True, False, ["train"])
    (tmp_path / "3.png").unlink()
    dataset = with_broken(tmp_path, rows)
    kept = dataset.usable(True, True, ["val"])
    assert {split: [r.image_id for r in kept.referents(split)] for split in kept.rows} == {
        "train": [1, 2],  # not looked at
        "val": [4],
    }
    (sentence,) = kept.broken
    assert sentence.startswith("image file 3.png is missing")
    assert dataset.missing_images() == ["1.png", "3.png"]
    assert dataset.missing_images(["val"]) == ["3.png"]


def test_images_in_folders_are_looked_for_in_each_place(tmp_path):
    dataset = with_broken(tmp_path, [(1, "val", "sub/1.png")])
    dataset = ReferDataset.from_columns(
        "mine", "", tmp_path, dataset.columns, [tmp_path, tmp_path / "images"]
    )
    assert dataset.missing_images() == ["sub/1.png"]
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "images/sub/1.png").write_bytes(b"")
    assert dataset.path_of(0) == tmp_path / "images/sub/1.png"
    assert dataset.missing_images() == []


def test_large_numbers_stay_what_they_are(tmp_path):
    collector = Collector()
    collector.image(1, "1.png", 4, 9)
    for k in range(33000):  # more splits than 16 bits can count
        collector.referent(2**63 - 1, 1, 2**40 + 1, f"s{k}", [], {})
    columns = collector.columns()
    assert int(columns.ref_category[0]) == 2**40 + 1
    assert columns.ref_split.tolist() == list(range(33000))
