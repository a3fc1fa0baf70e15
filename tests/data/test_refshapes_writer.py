"""The data set on disk: layout, equal bytes, whole or not at all; and the way back through the reader."""

from __future__ import annotations

import hashlib
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from promptris.data import read_refer
from promptris.data.refshapes import UNSEEN_CATEGORIES, WorldOptions, make_example, write_refshapes
from promptris.data.refshapes.tags import TAGS
from promptris.data.refshapes.writer import split_seed
from promptris.errors import InputError

SPLITS = {"train": 12, "val": 5, "test": 3}
OPTIONS = WorldOptions(size=96, categories="unseen")


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    return folder, write_refshapes(folder, SPLITS, seed=4, options=OPTIONS)


def test_layout_is_that_of_refer(written):
    folder, summary = written
    assert {path.name for path in folder.iterdir()} == {"images", "refshapes"}
    assert len(list((folder / "images").glob("refshapes_0000000000??.jpg"))) == 20
    raw = (folder / "refshapes" / "refs(unc).p").read_bytes()
    assert raw[:2] == b"\x80\x02"
    refs = pickle.loads(raw)
    assert {frozenset(ref) for ref in refs} == {
        frozenset(
            ("ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sent_ids", "sentences")
        )
    }
    for ref in refs:
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert set(sentence) == {"tokens", "raw", "sent", "sent_id"}
            assert " ".join(sentence["tokens"]) == sentence["sent"]
    assert summary.splits["train"].images == 12
    assert sum(counts.expressions for counts in summary.splits.values()) == sum(
        len(r["sent_ids"]) for r in refs
    )


def test_instances_are_coco(written):
    folder, _ = written
    instances = json.loads((folder / "refshapes" / "instances.json").read_text())
    assert len(instances["categories"]) == 8
    assert {(image["height"], image["width"]) for image in instances["images"]} == {(96, 96)}
    for annotation in instances["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert 0 < annotation["area"] <= width * height
        assert x >= 0 and y >= 0 and x + width <= 96 and y + height <= 96
        assert annotation["iscrowd"] == 0
        for ring in annotation["segmentation"]:
            assert len(ring) >= 6 and len(ring) % 2 == 0
            assert min(ring) >= 0 and max(ring) <= 96


def test_reader_gives_back_what_was_made(written):
    folder, summary = written
    dataset = read_refer(folder, "refshapes")
    for split, world_options in (("val", OPTIONS), ("train", WorldOptions(size=96))):
        expected = {}
        for index in range(SPLITS[split]):
            example = make_example(split_seed(4, split), index, world_options)
            for description in example.descriptions:
                expected.setdefault((index, description.target), (example, []))[1].append(description)
        referents = dataset.splits[split]
        assert len(referents) == len(expected) == summary.splits[split].referents
        for found, ((_, target), (example, descriptions)) in zip(
            referents, sorted(expected.items()), strict=True
        ):
            assert [(e.text, e.kind) for e in found.expressions] == [(d.text, d.kind) for d in descriptions]
            assert np.array_equal(dataset.mask(found), example.masks[target])
            assert dataset.categories[found.category_id] == example.scene.objects[target].category
            stored = np.asarray(Image.open(dataset.images[found.image_id].path)).astype(float)
            assert np.abs(stored - example.image).mean() < 4


def test_other_programs_read_it_as_they_read_refcoco(written):
    """The steps of the REFER toolkit, which every RIS repository builds on, with nothing of ours."""
    folder, _ = written
    raw = (folder / "refshapes" / "refs(unc).p").read_bytes()
    assert raw[:2] == b"\x80\x02"  # protocol 2, for Python 2
    refs = pickle.loads(raw)
    instances = json.loads((folder / "refshapes" / "instances.json").read_text())
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    images = {image["id"]: image for image in instances["images"]}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    dataset = read_refer(folder, "refshapes")
    ours = {r.ref_id: r for split in SPLITS for r in dataset.splits[split]}
    assert len(refs) == len(ours)
    assert [ref["ref_id"] for ref in refs] == list(ours)
    sent_ids = [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]]
    assert len(set(sent_ids)) == len(sent_ids)
    for ref in refs:
        assert set(ref) == {
            *("ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sent_ids", "sentences")
        }
        annotation, image, known = annotations[ref["ann_id"]], images[ref["image_id"]], ours[ref["ref_id"]]
        assert annotation["image_id"] == ref["image_id"] == known.image_id
        assert (
            ref["category_id"] == annotation["category_id"] == known.category_id and names[known.category_id]
        )
        assert (folder / "images" / image["file_name"]).is_file()
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert [(s["sent_id"], s["sent"]) for s in ref["sentences"]] == [
            (e.sent_id, e.text) for e in known.expressions
        ]
        assert all(s["tokens"] == s["sent"].split() and s["raw"] for s in ref["sentences"])
        # The toolkit takes the first element for a list of numbers, and adds the layers up.
        assert type(annotation["segmentation"][0]) is list
        layers = coco_mask.decode(
            coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"])
        )
        mask = np.sum(layers, axis=2)
        assert mask.max() == 1
        assert mask.sum() == annotation["area"]
        assert np.array_equal(mask.astype(bool), dataset.mask(known))


def test_a_card_lies_beside_the_data(written):
    folder, summary = written
    text = (folder / "refshapes" / "README.md").read_text(encoding="utf-8")
    val = summary.splits["val"]
    assert f"| val | unseen | 5 | {val.referents} | {val.expressions} |" in text
    assert "| train | seen | 12 |" in text
    (command,) = re.findall("promptris refshapes DIR (.*)", text)
    assert command == "--splits train:12,val:5,test:3 --seed 4 --size 96 --level standard --categories unseen"
    assert all(f"| `{name}` |" in text for name in TAGS)
    assert "Apache-2.0" in text


def test_the_card_of_unusual_training_categories_names_the_call(tmp_path):
    options = WorldOptions(size=64, level="easy")
    write_refshapes(tmp_path, {"train": 1}, 7, options, train_categories="all")
    text = (tmp_path / "refshapes" / "README.md").read_text(encoding="utf-8")
    (call,) = re.findall(r"    (write_refshapes\(.*\))", text)
    before = hashes(tmp_path)
    eval(call, {"write_refshapes": write_refshapes, "WorldOptions": WorldOptions, "DIR": tmp_path})
    assert hashes(tmp_path) == before
    assert "| train | all | 1 |" in text


def test_unseen_categories_stay_out_of_training(written):
    folder, _ = written
    dataset = read_refer(folder, "refshapes")
    names = {split: {dataset.categories[r.category_id] for r in rs} for split, rs in dataset.splits.items()}
    assert not names["train"] & set(UNSEEN_CATEGORIES)
    assert names["val"] <= set(UNSEEN_CATEGORIES)
    instances = json.loads((folder / "refshapes" / "instances.json").read_text())
    first_val = min(r.image_id for r in dataset.splits["val"])
    in_training = {a["category_id"] for a in instances["annotations"] if a["image_id"] < first_val}
    assert not {dataset.categories[c] for c in in_training} & set(UNSEEN_CATEGORIES)


def test_splits_and_seeds_share_no_world():
    seeds = {split_seed(seed, split) for seed in range(50) for split in ("train", "val", "test")}
    assert len(seeds) == 150
    assert min(seeds) > 10**6


def test_same_arguments_give_the_same_bytes(written, tmp_path):
    folder, _ = written
    write_refshapes(tmp_path / "again", SPLITS, seed=4, options=OPTIONS)
    assert hashes(tmp_path / "again") == hashes(folder)
    write_refshapes(tmp_path / "other", SPLITS, seed=5, options=OPTIONS)
    assert hashes(tmp_path / "other")["refshapes/refs(unc).p"] != hashes(folder)["refshapes/refs(unc).p"]


def test_an_older_dataset_is_replaced_whole(tmp_path):
    write_refshapes(tmp_path, {"train": 4}, seed=1)
    write_refshapes(tmp_path, {"train": 2}, seed=2)
    write_refshapes(tmp_path / "fresh" / "deep", {"train": 2}, seed=2)
    fresh = hashes(tmp_path / "fresh" / "deep")
    assert {
        name: digest for name, digest in hashes(tmp_path).items() if not name.startswith("fresh")
    } == fresh


@pytest.mark.parametrize("existed", [True, False])
def test_an_interrupted_run_leaves_nothing(tmp_path, existed):
    target = tmp_path / "data"
    if existed:
        target.mkdir()

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_refshapes(target, {"train": 5}, progress=stop)
    assert target.exists() == existed
    assert not existed or list(target.iterdir()) == []


def test_an_interrupted_run_keeps_the_older_dataset(tmp_path):
    write_refshapes(tmp_path, {"train": 2}, seed=1)
    before = hashes(tmp_path)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_refshapes(tmp_path, {"train": 2}, seed=2, progress=stop)
    assert hashes(tmp_path) == before


def test_progress_counts_scenes(tmp_path):
    calls = []
    write_refshapes(
        tmp_path, {"train": 2, "val": 1}, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_directory_with_other_content_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        write_refshapes(tmp_path, {"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("stranger", ["images/holiday.jpg", "refcoco"])
def test_a_dataset_with_strangers_is_refused(tmp_path, stranger):
    write_refshapes(tmp_path, {"train": 1})
    (tmp_path / stranger).write_bytes(b"mine")
    with pytest.raises(InputError, match=stranger.split("/")[-1]):
        write_refshapes(tmp_path, {"train": 1})
    assert (tmp_path / stranger).read_bytes() == b"mine"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_refshapes(tmp_path / "data", {"train": 1})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"splits": {"train": -1}}, "'train' has -1"),
        ({"splits": {"train": 2.5}}, "2.5"),
        ({"splits": {"../x": 1}}, "split name"),
        ({"splits": {"train": 0}}, "no scene"),
        ({"splits": {}}, "no scene"),
        ({"seed": -3}, "seed -3"),
        ({"train_categories": "none"}, "'none'"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(tmp_path, arguments, word):
    with pytest.raises(InputError, match=word):
        write_refshapes(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
