"""Statistics of a small data set, counted by hand."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import pytest

from promptris.data import read_refer
from promptris.data.refshapes import WorldOptions, write_refshapes
from promptris.data.statistics import NO_CATEGORY, Spread, split_statistics
from promptris.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def square(ann_id, image_id, category_id, side):
    ring = [0, 0, side, 0, side, side, 0, side]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "segmentation": [ring],
    }


def ref(ref_id, ann_id, image_id, category_id, split, *texts):
    sentences = [{"sent_id": 10 * ref_id + k, "sent": text, "raw": text} for k, text in enumerate(texts)]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "split": split,
        "sentences": sentences,
    }


@pytest.fixture
def root(tmp_path):
    """Two images of 20 x 10 and one of 10 x 10; squares of 2, 4, 6 and 10 pixels."""
    folder = tmp_path / "mine"
    folder.mkdir()
    refs = [
        ref(1, 1, 1, 1, "train", "The red one", "red"),
        ref(2, 2, 1, 2, "train", "a  red\u00a0dog"),  # words may be apart by any white space
        ref(3, 3, 2, 1, "train", "", "the big THE one", "The Red"),
        ref(4, 4, 3, 1, "val", "it"),
    ]
    instances = {
        "images": [
            {"id": 1, "file_name": "1.jpg", "height": 10, "width": 20},
            {"id": 2, "file_name": "2.jpg", "height": 10, "width": 20},
            {"id": 3, "file_name": "3.jpg", "height": 10, "width": 10},
        ],
        "annotations": [square(1, 1, 1, 2), square(2, 1, 2, 4), square(3, 2, 1, 6), square(4, 3, 1, 10)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def statistics(root, split, **changes):
    return split_statistics(read_refer(root, "mine", require_images=False), split, **changes)


def test_counts_by_hand(root):
    found = statistics(root, "train")
    assert (found.images, found.referents, found.expressions) == (2, 3, 6)
    assert found.expressions_per_referent == Spread(1, 2.0, 3)
    # 3, 1, 3, 0, 4 and 2 words
    assert found.words_per_expression == Spread(0, round(13 / 6, 4), 4)
    assert found.word_counts == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1}
    assert found.frequent_words == {"red": 4, "the": 4, "one": 2, "a": 1, "big": 1, "dog": 1}
    assert found.distinct_words == 6
    assert found.categories == {"cat": 2, "dog": 1}
    assert (found.no_target, found.several_targets, found.kinds, found.tags) == (0, 0, {}, {})


def test_sizes_by_hand(root):
    # 4, 16 and 36 of 200 pixels
    share = statistics(root, "train").referent_share
    assert (share["least"], share["median"], share["most"]) == (0.02, 0.08, 0.18)
    assert share["25%"] == pytest.approx(0.05)
    assert set(statistics(root, "val").referent_share.values()) == {1.0}


def test_an_object_in_two_referents_counts_twice(root):
    path = root / "mine" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    refs += [ref(5, 3, 2, 1, "train", "again"), ref(6, 3, 2, 1, "train", "and again")]
    path.write_bytes(pickle.dumps(refs, protocol=2))
    share = statistics(root, "train").referent_share
    assert (share["median"], share["most"]) == (0.18, 0.18)  # 0.02, 0.08 and thrice 0.18


def test_an_unknown_split_is_named(root):
    with pytest.raises(InputError, match=r"'test'.*train, val"):
        statistics(root, "test")


def test_tags_by_value_or_by_quantiles(root):
    tags = {
        10: {"kind": "a", "colour": "red", "others": 0, "share": 0.5},
        11: {"kind": "a", "colour": "blue", "others": 2, "share": 0.1},
        20: {"kind": "b", "colour": "red", "others": 2, "share": 0.3},
        40: {"kind": "b", "colour": "red", "others": 9, "share": 0.9},  # of another split
    }
    found = statistics(root, "train", tags=tags).tags
    assert list(found) == ["colour", "others", "share"]
    assert found["colour"].counts == {"red": 2, "blue": 1}
    assert found["others"].counts == {"0": 1, "2": 2}
    assert found["share"].counts == {}
    assert [found["share"].quantiles[q] for q in ("least", "median", "most")] == [0.1, 0.3, 0.5]


def test_whole_numbers_of_many_values_are_told_by_quantiles(root):
    refs = [ref(1, 1, 1, 1, "train", *[f"number {k}" for k in range(11)])]
    (root / "mine" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    tags = {10 + k: {"n": k, "few": k % 10} for k in range(11)}
    found = statistics(root, "train", tags=tags).tags
    assert found["n"].quantiles["median"] == 5
    assert found["few"].counts["0"] == 2 and len(found["few"].counts) == 10


def test_referents_without_a_target_have_no_size(root):
    refs = pickle.loads((root / "mine" / "refs(unc).p").read_bytes())
    refs = [{**entry, "ann_id": [entry["ann_id"]], "category_id": [entry["category_id"]]} for entry in refs]
    refs.append({**ref(7, -1, 1, 1, "train", "nothing at all"), "ann_id": [-1], "category_id": [-1]})
    refs.append({**ref(8, -1, 1, 1, "train", "both"), "ann_id": [1, 2], "category_id": [1, 2]})
    refs.append({**ref(9, -1, 1, 1, "none", "nobody"), "ann_id": [-1], "category_id": [-1]})
    (root / "mine" / "refs(unc).p").unlink()
    (root / "mine" / "grefs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    found = statistics(root, "train")
    assert (found.referents, found.no_target, found.several_targets) == (5, 1, 1)
    assert found.categories == {"cat": 3, "dog": 1, NO_CATEGORY: 1}
    assert found.referent_share["least"] == 0.02
    # Both squares lie in one corner, so the larger one is all there is to see.
    assert found.referent_share["75%"] == pytest.approx(0.105)  # of 0.02, 0.08, 0.08, 0.18
    assert statistics(root, "none").referent_share == {}


def test_refshapes_is_told_whole(tmp_path):
    summary = write_refshapes(tmp_path, {"train": 20, "val": 4}, 3, WorldOptions(size=64))
    dataset = read_refer(tmp_path, "refshapes")
    found = split_statistics(dataset, "train")
    assert found.images == 20
    assert found.referents == summary.splits["train"].referents == sum(found.categories.values())
    assert found.expressions == summary.splits["train"].expressions == sum(found.kinds.values())
    assert set(found.kinds) == {"attribute", "location", "relation"}
    assert sum(found.word_counts.values()) == found.expressions
    assert found.words_per_expression.least >= 2 and found.words_per_expression.most <= 12
    areas = sorted(dataset.mask(referent).mean() for referent in dataset.referents("train"))
    assert found.referent_share["least"] == pytest.approx(areas[0], abs=1e-6)
    assert found.referent_share["most"] == pytest.approx(areas[-1], abs=1e-6)
    assert sum(found.tags["size"].counts.values()) == found.expressions
    assert found.tags["category_group"].counts == {"seen": found.expressions}
    plain = found.to_dict()
    assert json.loads(json.dumps(plain))["tags"]["size"] == found.tags["size"].counts
    assert plain["words_per_expression"]["least"] == found.words_per_expression.least


def test_memory_does_not_grow_with_the_sentences(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from refcoco_sized import write_refcoco_sized

    peaks = []
    for sentences in (2_000, 20_000):
        write_refcoco_sized(tmp_path, images=200, referents=400, sentences=sentences)
        dataset = read_refer(tmp_path, "refcoco", require_images=False)
        tracemalloc.start()
        found = split_statistics(dataset, "train", tags={})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.expressions > 0.7 * sentences
    # Row numbers take some 50 bytes for each sentence more; the sentences as objects would take 200 and more.
    assert (peaks[1] - peaks[0]) / 18_000 < 100
