"""The combined training set: nothing leaks, nothing is doubled, nothing is lost, and the report says so."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from promptris.data.columns import Collector
from promptris.data.combined import HELD_OUT, combine, combined_training_set
from promptris.data.dataset import ReferDataset
from promptris.data.published import PUBLISHED
from promptris.data.records import Expression
from promptris.errors import InputError

ROOT = Path("/data")
SIZE = (4, 5)


def run_lengths(pixels):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask.flat[list(pixels)] = 1
    return coco_mask.encode(mask)["counts"]


def dataset(
    referents, name="refcoco", split_by="unc", root=ROOT, categories=None, size=SIZE, folder="images"
):
    """referents: (split, ann_id or ids, image_id, texts); the mask of annotation k is the pixel k modulo 20."""
    collector = Collector()
    collector.categories = {1: "person"} if categories is None else categories
    sent_id = 0
    for ref_id, (split, ann_ids, image_id, texts) in enumerate(referents):
        collector.image(image_id, f"{image_id}.jpg", *size)
        expressions = []
        for text in texts:
            expressions.append(Expression(sent_id, text, "relation" if text.startswith("r") else None))
            sent_id += 1
        group = ann_ids if isinstance(ann_ids, tuple) else (ann_ids,)
        masks = {ann_id: run_lengths([ann_id % 20]) for ann_id in group}
        collector.referent(ref_id, image_id, 1 if group else -1, split, expressions, masks)
    return ReferDataset.from_columns(name, split_by, root, collector.columns(), [root / folder])


def contents(combined):
    return {
        (r.image_id, r.ann_ids): [(e.text, e.kind) for e in r.expressions]
        for r in combined.referents("train")
    }


FIRST = [
    ("train", 1, 101, ["left one", "red one"]),
    ("train", 2, 101, ["right one"]),
    ("train", 3, 102, ["her"]),
    ("train", 4, 103, ["him"]),
    ("val", 5, 104, ["it"]),
]
SECOND = [
    ("train", 1, 101, ["left one", "man on the left", "left one"]),
    ("train", 6, 104, ["the dog"]),
    ("train", 7, 105, ["a cat"]),
    ("val", 3, 102, ["a woman"]),
    ("test", 8, 102, ["a hat"]),
]


def example():
    first = dataset(FIRST)
    second = dataset(SECOND, "refcocog", "umd")
    third = dataset([("val", 9, 103, ["x"]), ("train", 9, 105, ["y"])], "refcocog", "google")
    return combine([first, second], [first, second, third])


def test_example_by_hand():
    combined, _ = example()
    assert list(combined.splits) == ["train"]
    # Image 102 is in umd's val, 103 in google's val, 104 in refcoco's val; 105 is nowhere held out.
    assert contents(combined) == {
        (101, (1,)): [
            ("left one", None),
            ("red one", "relation"),
            ("left one", None),
            ("man on the left", None),
            ("left one", None),
        ],
        (101, (2,)): [("right one", "relation")],
        (105, (7,)): [("a cat", None)],
    }
    referents = list(combined.referents("train"))
    assert [(r.ref_id, r.ann_id, r.category_id, r.split) for r in referents] == [
        (1, 1, 1, "train"),
        (2, 2, 1, "train"),
        (3, 7, 1, "train"),
    ]
    assert [e.sent_id for _, e in combined.samples("train")] == list(range(1, 8))
    assert np.flatnonzero(combined.mask(referents[2])).tolist() == [7]
    assert (combined.name, combined.split_by, combined.root) == ("refcoco-combined", "", ROOT)
    assert combined.images[105].path == ROOT / "images/105.jpg"
    assert combined.categories == {1: "person"}


def test_report_by_hand():
    _, report = example()
    first, second = report.contributions
    assert (first.name, first.before, first.after) == ("refcoco (unc)", (4, 3, 5), (2, 1, 3))
    # Image 102 is in two splits of umd: told for both, counted once.
    assert first.removed_images == 2
    assert first.removed_by == {
        "refcocog (umd) val": 1,
        "refcocog (umd) test": 1,
        "refcocog (google) val": 1,
    }
    assert (second.name, second.before, second.after) == ("refcocog (umd)", (3, 3, 5), (2, 2, 4))
    assert (second.removed_images, second.removed_by) == (1, {"refcoco (unc) val": 1})
    assert report.held_out == {
        "refcoco (unc) val": 1,
        "refcocog (umd) val": 1,
        "refcocog (umd) test": 1,
        "refcocog (google) val": 1,
    }
    assert (report.held_out_images, report.total) == (3, (3, 2, 7))
    assert (report.shared_annotations, report.merged_referents, report.repeated_sentences) == (1, 1, 2)
    assert report.lines() == [
        "3 images of 4 evaluation splits are kept out of training",
        "refcoco (unc) train: 4 referents, 3 images, 5 sentences",
        "  2 images removed (1 in refcocog (umd) val, 1 in refcocog (umd) test, 1 in refcocog (google) val; "
        "one in several splits counts in each)",
        "  left: 2 referents, 1 images, 3 sentences",
        "refcocog (umd) train: 3 referents, 3 images, 5 sentences",
        "  1 images removed (1 in refcoco (unc) val)",
        "  left: 2 referents, 2 images, 4 sentences",
        "1 annotations are in more than one data set and became one referent each, 1 referents fewer; "
        "2 of their sentences say the same twice, and are kept",
        "result: 3 referents, 2 images, 7 sentences, no image in any of these evaluation splits (checked)",
    ]


def test_several_and_no_targets():
    one = dataset([("train", (3, 4), 1, ["both"]), ("train", (), 1, ["a unicorn"]), ("train", (), 2, ["x"])])
    two = dataset(
        [("train", (3, 4), 1, ["the two"]), ("train", (), 1, ["y"]), ("train", 3, 1, ["left"])], "grefcoco"
    )
    combined, report = combine([one, two], [])
    assert {key: [text for text, _ in texts] for key, texts in contents(combined).items()} == {
        (1, (3, 4)): ["both", "the two"],
        (1, ()): ["a unicorn", "y"],
        (2, ()): ["x"],
        (1, (3,)): ["left"],
    }
    masks = [np.flatnonzero(combined.mask(r)).tolist() for r in combined.referents("train")]
    assert masks == [[3, 4], [], [], [3]]
    assert [r.ann_id for r in combined.referents("train")][1:] == [-1, -1, 3]
    assert report.shared_annotations == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            dataset([("train", 1, 9, [])], "b"),
            r"annotation 1 is on image 101 in refcoco .unc., but on image 9 in b",
        ),
        (
            dataset([("train", 21, 101, [])], "b", categories={1: "cat"}),
            "category 1 is 'person' in refcoco .* 'cat'",
        ),
        (
            dataset([("train", 21, 101, [])], "b", size=(5, 4)),
            r"image 101 is 101.jpg of 4 x 5 .* of 5 x 4 in b",
        ),
        (dataset([("train", 21, 101, [])], "b", root=Path("/other")), "below one data root"),
        (dataset([("val", 21, 101, [])], "b"), "b .unc. has no split 'train'"),
    ],
)
def test_contradictions_are_named(other, message):
    with pytest.raises(InputError, match=message):
        combine([dataset(FIRST), other], [])


def test_of_different_masks_the_first_is_kept_and_counted():
    first = dataset(FIRST)
    columns = first.columns
    rle = columns.target_rle.copy()
    rle[0] += 1
    other = dataclasses.replace(first, name="b", columns=dataclasses.replace(columns, target_rle=rle))
    combined, report = combine([first, other], [])
    assert report.redrawn_annotations == 1
    assert any("1 annotations have another mask" in line for line in report.lines())
    kept = combined.referents("train")[0]
    assert combined.run_lengths(kept) == first.run_lengths(first.referents("train")[0])


def test_a_different_category_is_named():
    first = dataset(FIRST)
    columns = first.columns
    category = np.full_like(columns.ref_category, 2)
    other = dataclasses.replace(first, name="b", columns=dataclasses.replace(columns, ref_category=category))
    with pytest.raises(InputError, match=r"annotation 1 is of category 1 in refcoco .*, but of 2 in b"):
        combine([first, other], [])


def test_nothing_to_combine_and_nothing_left():
    with pytest.raises(InputError, match="no data set to combine"):
        combine([], [dataset(FIRST)])
    train = dataset([("train", 1, 101, ["x"])])
    combined, report = combine([train], [dataset([("val", 2, 101, ["y"])], "other")])
    assert list(combined.referents("train")) == []
    assert report.total == (0, 0, 0)


def test_selections_do_not_let_images_slip_in():
    first, second = dataset(FIRST), dataset(SECOND, "refcocog", "umd")
    narrowed = second.with_rows({"train": second.rows["train"], "val": second.rows["val"][:0]})
    combined, _ = combine([first], [narrowed])
    assert 102 not in combined.image_ids("train")
    own_val = first.hold_out(0.4, into="own")  # of training images, which the columns call train
    combined, _ = combine([first], [own_val])
    assert not set(own_val.image_ids("own")) & set(combined.image_ids("train"))
    assert set(own_val.image_ids("train")) == set(combined.image_ids("train"))


def test_images_of_broken_evaluation_referents_stay_out():
    first = dataset(FIRST)
    held = dataset([("val", 50, 500, ["x"])], "other")
    facts = {**held.columns.facts, "broken": ["one", "two"], "left_out": {"val": [101], "train": [102]}}
    broken = dataclasses.replace(held, columns=dataclasses.replace(held.columns, facts=facts))
    combined, _ = combine([first], [broken])
    assert combined.image_ids("train") == [102, 103]
    facts["broken"].append("referent 7 lacks its image")
    with pytest.raises(
        InputError, match=r"other \(unc\) has broken referents whose image is not known.*: one"
    ):
        combine([first], [broken])


# ------------------------------------------------------------------------------------------------- properties


@st.composite
def data_sets(draw):
    """Data sets that describe annotations of the same images: annotation k is on image k // 3."""
    made = []
    for number in range(draw(st.integers(1, 3))):
        rows = draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["train", "train", "val", "test"]),
                    st.integers(0, 23),
                    st.lists(st.sampled_from(["left", "right", "red", "ü ☕", ""]), max_size=3),
                ),
                max_size=15,
            )
        )
        rows.append(("train", 90 + number, ["always"]))
        made.append(dataset([(split, ann, ann // 3, texts) for split, ann, texts in rows], f"set{number}"))
    return made


@settings(max_examples=100, deadline=None)
@given(data_sets(), st.data())
def test_no_leak_no_double_no_loss(made, data):
    held_out = [one for one in made if data.draw(st.booleans())]
    combined, report = combine(made, held_out)
    held = {
        r.image_id
        for one in held_out
        for split, referents in one.splits.items()
        if split != "train"
        for r in referents
    }
    left = list(combined.referents("train"))
    assert not {r.image_id for r in left} & held
    assert len({r.ann_id for r in left}) == len(left)
    assert [r.ref_id for r in left] == list(range(1, len(left) + 1))
    expected = Counter(
        (r.ann_id, e.text)
        for one in made
        for r in one.splits["train"]
        if r.image_id not in held
        for e in r.expressions
    )
    assert Counter((r.ann_id, e.text) for r in left for e in r.expressions) == expected
    wanted = {r.ann_id for one in made for r in one.splits["train"] if r.image_id not in held}
    assert {r.ann_id for r in left} == wanted
    for referent in left:
        assert np.flatnonzero(combined.mask(referent)).tolist() == [referent.ann_id % 20]
    assert report.total == combined.count("train")
    assert report.held_out_images == len(held)
    for part, one in zip(report.contributions, made, strict=True):
        assert part.before == one.count("train")
        assert part.removed_images == len(set(one.image_ids("train")) & held)
        assert part.before[1] - part.after[1] == part.removed_images


# ------------------------------------------------------------------------------------------------- from files


def write(root, name, split_by, referents):
    """referents: (split, ann_id, image_id); the files of every data set of a name share instances.json."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    refs = [
        {
            "ref_id": k,
            "ann_id": ann_id,
            "image_id": image_id,
            "category_id": 1,
            "split": split,
            "sentences": [{"sent_id": k, "sent": f"{name} {split_by}", "raw": "", "tokens": []}],
        }
        for k, (split, ann_id, image_id) in enumerate(referents)
    ]
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 4, "width": 5} for k in range(60)],
        "annotations": [
            {"id": k, "image_id": k // 10, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}
            for k in range(600)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))


def write_all(root):
    """Each of the four trains on images 1 to 30 and evaluates on its own, some of which others train on."""
    for number, (name, split_by) in enumerate(HELD_OUT):
        splits = [split for split in PUBLISHED[name, split_by] if split != "train"]
        rows = [("train", 10 * image + number // 3, image) for image in range(1, 31)]
        rows += [(split, 10 * (4 * k + number + 1), 4 * k + number + 1) for k, split in enumerate(splits)]
        write(root, name, split_by, rows)


def test_paper_training_set_from_files(tmp_path):
    write_all(tmp_path)
    combined, report = combined_training_set(tmp_path, require_images=False)
    # Evaluated on: 1, 5, 9 (refcoco), 2, 6, 10 (refcoco+), 3, 7 (umd), 4 (google).
    assert combined.image_ids("train") == [8, *range(11, 31)]
    assert [part.name for part in report.contributions] == [
        "refcoco (unc)",
        "refcoco+ (unc)",
        "refcocog (umd)",
    ]
    assert len(report.held_out) == 9
    # Three data sets describe the same annotation; google's own sentences are not trained on.
    texts = {e.text for _, e in combined.samples("train")}
    assert texts == {"refcoco unc", "refcoco+ unc", "refcocog umd"}
    assert report.shared_annotations == 21
    with pytest.raises(InputError, match="image files of refcoco are missing"):
        combined_training_set(tmp_path)


def test_missing_data_sets_are_named_with_the_reason(tmp_path):
    write_all(tmp_path)
    (tmp_path / "refcocog/refs(google).p").unlink()
    (tmp_path / "refcoco+/refs(unc).p").unlink()
    with pytest.raises(
        InputError,
        match=r"needs all of refcoco \(unc\), .* because no image of any of their evaluation splits may be "
        r"trained on: refcoco\+ \(unc\): .*; refcocog \(google\): ",
    ):
        combined_training_set(tmp_path, require_images=False)


def test_missing_evaluation_split_is_named(tmp_path):
    write_all(tmp_path)
    write(tmp_path, "refcoco", "unc", [("train", 10, 1), ("val", 20, 2)])
    with pytest.raises(InputError, match=r"refcoco \(unc\) has no split testA or testB"):
        combined_training_set(tmp_path, require_images=False)
