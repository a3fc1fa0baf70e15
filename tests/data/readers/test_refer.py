"""The REFER reader and its restricted unpickler, on small data sets made by hand."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from promptris.data import ReferDataset, read_refer
from promptris.data.readers.restricted_pickle import load_plain_pickle
from promptris.errors import InputError


def sentence(sent_id, text, raw=None):
    return {"tokens": text.split(), "raw": raw or text, "sent": text, "sent_id": sent_id}


def ref(ref_id, ann_id, image_id, split, *sentences):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 3,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sent_ids": [s["sent_id"] for s in sentences],
        "sentences": list(sentences),
    }


REFS = [
    ref(1, 10, 7, "train", sentence(100, "the left one"), sentence(101, "", raw="Left ONE!")),
    ref(2, 11, 7, "train", sentence(102, "right one")),
    ref(3, 12, 8, "testA", sentence(103, "only one")),
]
INSTANCES = {
    "images": [
        {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 20, "width": 30},
        {"id": 8, "file_name": "COCO_train2014_000000000008.jpg", "height": 4, "width": 3},
    ],
    "annotations": [
        # Two rectangles, 10 x 5 and 5 x 10, with a 5 x 5 square in common: the union has 75 pixels.
        {
            "id": 10,
            "image_id": 7,
            "category_id": 3,
            "segmentation": [[0, 0, 10, 0, 10, 5, 0, 5], [5, 0, 10, 0, 10, 10, 5, 10]],
        },
        {"id": 11, "image_id": 7, "category_id": 3, "segmentation": [[20, 0, 24, 0, 24, 4, 20, 4]]},
        # Runs go down the columns: 5 off, 2 on, 5 off.
        {"id": 12, "image_id": 8, "category_id": 3, "segmentation": {"size": [4, 3], "counts": [5, 2, 5]}},
    ],
    "categories": [{"id": 3, "name": "boat", "supercategory": "vehicle"}],
}


def build(
    root, refs=None, instances=None, name="refcoco", split_by="unc", images="images/train2014", raw=None
):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    content = pickle.dumps(REFS if refs is None else refs, protocol=2) if raw is None else raw
    (folder / f"refs({split_by}).p").write_bytes(content)
    (folder / "instances.json").write_text(json.dumps(INSTANCES if instances is None else instances))
    (root / images).mkdir(parents=True, exist_ok=True)
    for entry in INSTANCES["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(root / images / entry["file_name"])
    return root


def test_reads_splits_texts_and_categories(tmp_path):
    dataset = read_refer(build(tmp_path), "refcoco")
    assert isinstance(dataset, ReferDataset)
    assert (dataset.name, dataset.split_by, dataset.root) == ("refcoco", "unc", tmp_path)
    assert {split: [r.ref_id for r in rs] for split, rs in dataset.splits.items()} == {
        "train": [1, 2],
        "testA": [3],
    }
    assert [(r.ann_id, e.sent_id, e.text) for r, e in dataset.samples("train")] == [
        (10, 100, "the left one"),
        (10, 101, "Left ONE!"),  # no cleaned text: the raw one stands in
        (11, 102, "right one"),
    ]
    assert dataset.categories == {3: "boat"}


@pytest.mark.parametrize(
    "images", ["images", "images/train2014", "images/mscoco/images/train2014", "train2014"]
)
def test_finds_images_in_the_usual_folders(tmp_path, images):
    dataset = read_refer(build(tmp_path, images=images), "refcoco")
    record = dataset.images[7]
    assert record.path == tmp_path / images / "COCO_train2014_000000000007.jpg"
    assert (record.height, record.width) == (20, 30)


def test_mask_is_the_union_of_the_polygons(tmp_path):
    dataset = read_refer(build(tmp_path), "refcoco")
    mask = dataset.mask(dataset.splits["train"][0])
    expected = np.zeros((20, 30), dtype=bool)
    expected[:5, :10] = True
    expected[:10, 5:10] = True
    assert mask.dtype == bool
    assert np.array_equal(mask, expected)


def test_mask_from_run_lengths(tmp_path):
    dataset = read_refer(build(tmp_path), "refcoco")
    assert dataset.mask(dataset.splits["testA"][0]).astype(int).tolist() == [
        [0, 0, 0],
        [0, 1, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]


def test_damaged_segmentation_names_the_annotation(tmp_path):
    instances = json.loads(json.dumps(INSTANCES))
    instances["annotations"][0]["segmentation"] = []
    with pytest.raises(InputError, match=r"instances\.json, annotation 10: The segmentation is empty"):
        read_refer(build(tmp_path, instances=instances), "refcoco")


def test_split_by_defaults_and_choice(tmp_path):
    build(tmp_path, name="refcocog", split_by="umd")
    build(tmp_path, name="refcocog", split_by="google", refs=REFS[:1])
    assert read_refer(tmp_path, "refcocog").split_by == "umd"
    assert list(read_refer(tmp_path, "refcocog", "google").splits) == ["train"]
    with pytest.raises(InputError, match="no split_by 'unc'; there is google, umd"):
        read_refer(tmp_path, "refcocog", "unc")


def test_own_folder_with_a_single_refs_file(tmp_path):
    assert read_refer(build(tmp_path, name="harbour", split_by="mine"), "harbour").split_by == "mine"


def test_unknown_split_lists_what_is_there(tmp_path):
    with pytest.raises(InputError, match=r"refcoco \(unc\) has no split 'val'; it has train, testA"):
        read_refer(build(tmp_path), "refcoco").samples("val")


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_refer(tmp_path / "nowhere", "refcoco")
    with pytest.raises(InputError, match="no folder 'refcoco\\+'; known data sets are refcoco,"):
        read_refer(build(tmp_path), "refcoco+")
    with pytest.raises(InputError, match="not the name of a folder"):
        read_refer(tmp_path, "../refcoco")
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(InputError, match=r"instances\.json"):
        read_refer(tmp_path, "refcoco")
    (tmp_path / "refcoco" / "refs(unc).p").unlink()
    with pytest.raises(InputError, match=r"no refs\(\.\.\.\)\.p"):
        read_refer(tmp_path, "refcoco")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [], "annotations": {}}'])
def test_broken_instances_are_named(tmp_path, content):
    build(tmp_path)
    (tmp_path / "refcoco" / "instances.json").write_text(content)
    with pytest.raises(InputError, match=r"instances\.json"):
        read_refer(tmp_path, "refcoco")


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([ref(5, 99, 7, "train", sentence(1, "x"))], "referent 5 .* annotation 99"),
        ([ref(6, 10, 77, "train", sentence(1, "x"))], "referent 6 .* image 77"),
        ([ref(7, 12, 7, "train", sentence(1, "x"))], "referent 7 is|referent 7 .* on image 7"),
        ([{"ref_id": 8}], "referent 8 lacks"),
        ([3], "referent 3 lacks"),
        ({"a": 1}, "list of referents"),
    ],
)
def test_wrong_referents_are_named(tmp_path, refs, message):
    with pytest.raises(InputError, match=message):
        read_refer(build(tmp_path, refs=refs), "refcoco")


def test_missing_image_file_is_named_unless_allowed(tmp_path):
    build(tmp_path)
    (tmp_path / "images/train2014/COCO_train2014_000000000008.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 2 image files .* COCO_train2014_000000000008\.jpg"):
        read_refer(tmp_path, "refcoco")
    dataset = read_refer(tmp_path, "refcoco", require_images=False)
    assert [record.path.is_file() for record in dataset.images.values()] == [True, False]


@pytest.mark.parametrize("file_name", ["../secret.jpg", "/etc/passwd", None, "", ".."])
def test_image_names_may_not_leave_the_folder(tmp_path, file_name):
    instances = json.loads(json.dumps(INSTANCES))
    instances["images"][0]["file_name"] = file_name
    with pytest.raises(InputError, match="image 7"):
        read_refer(build(tmp_path, instances=instances), "refcoco")


# ---------------------------------------------------------------------------------------------- pickles


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_evil_pickle_is_refused_and_not_run(tmp_path, protocol):
    proof = tmp_path / "ran"
    payload = pickle.dumps([Evil(proof)], protocol=protocol)
    build(tmp_path, raw=payload)
    with pytest.raises(InputError, match=r"eval"):
        read_refer(tmp_path, "refcoco")
    assert not proof.exists()
    pickle.loads(payload)  # the payload itself works
    assert proof.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'echo'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"c_codecs\ndecode\n.",
        b"ccopyreg\n_reconstructor\n.",
        b"cnumpy\nload\n.",
        b"cpromptris.data.restricted_pickle\nload_plain_pickle\n.",
        b"c_codecs\nencode\n(Vabc\nVidna\ntR.",  # an allowed name, but a codec that would be imported
        b"c_codecs\nencode\n}(Vx\nK\x01ub.",  # an allowed name, altered instead of called
    ],
)
def test_other_ways_to_run_something_are_refused(tmp_path, payload):
    (tmp_path / "x.p").write_bytes(payload)
    with pytest.raises(InputError, match=r"x\.p"):
        load_plain_pickle(tmp_path / "x.p")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n", pickle.dumps([1, 2])[:-2], b"\x80\x63."])
def test_files_that_are_no_pickle_are_named(tmp_path, content):
    with pytest.raises(InputError, match=r"refs\(unc\)\.p"):
        read_refer(build(tmp_path, raw=content), "refcoco")


def py2_str(data):
    """A Python 2 str as protocol 2 writes it: SHORT_BINSTRING."""
    return b"U" + struct.pack("B", len(data)) + data


def test_python_2_text_is_read_as_latin1(tmp_path):
    # {"sent": "caf\xe9", "n": 258} as Python 2 would write it.
    (tmp_path / "py2.p").write_bytes(
        b"\x80\x02}(" + py2_str(b"sent") + py2_str(b"caf\xe9") + py2_str(b"n") + b"M\x02\x01" + b"u."
    )
    assert load_plain_pickle(tmp_path / "py2.p") == {"sent": "café", "n": 258}


def test_python_2_numpy_scalar_is_its_number(tmp_path):
    # numpy.int64(-2) as Python 2 would write it: the bytes are a str that is not ASCII.
    (tmp_path / "py2.p").write_bytes(
        b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n("
        + py2_str(b"i8")
        + b"K\x00K\x01tR(K\x03"
        + py2_str(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + py2_str(b"\xfe" + b"\xff" * 7)
        + b"tR."
    )
    assert load_plain_pickle(tmp_path / "py2.p") == -2


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_plain_and_numpy_values_come_back_as_plain_values(tmp_path, protocol):
    values = {
        "text": "ü",
        "bytes": [b"", b"\x00\xff", bytearray(b"ab")],
        "numbers": [1, -(2**70), 2.5, True, None],
        "sets": [{1, 2}, frozenset({3})],
        "tuple": (1, (2,)),
        "scalars": [np.int64(-5), np.float32(0.5), np.bool_(True)],
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    (tmp_path / "x.p").write_bytes(pickle.dumps(values, protocol=protocol))
    read = load_plain_pickle(tmp_path / "x.p")
    assert read == {
        **values,
        "scalars": [-5, 0.5, True],
        "array": [[0, 1, 2], [3, 4, 5]],
        "fortran": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
    }
    assert [type(value) for value in read["scalars"]] == [int, float, bool]


def test_object_arrays_are_refused(tmp_path):
    (tmp_path / "x.p").write_bytes(pickle.dumps(np.array([{}], dtype=object), protocol=2))
    with pytest.raises(InputError, match="not plain numbers or text"):
        load_plain_pickle(tmp_path / "x.p")


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_refs_as_python_2_wrote_them_read_the_same(tmp_path, dumps_python2, protocol):
    refs = json.loads(json.dumps(REFS))
    refs[0]["sentences"][0].update(sent='the café\'s "left" one\\', raw="l'\xe9t\xe9\n")
    raw = dumps_python2(refs, protocol)
    assert (b"U" in raw) == (protocol > 0)
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(raw)  # what a reader without the latin1 fallback meets
    dataset = read_refer(build(tmp_path, raw=raw), "refcoco")
    modern = read_refer(build(tmp_path / "modern", refs=refs), "refcoco")
    assert dataset.splits["train"] == modern.splits["train"]
    assert dataset.splits["train"][0].expressions[0].text == 'the café\'s "left" one\\'


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",  # a memo of 4 billion places
        b"]p99999999999\n.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",  # a bytearray of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # and as bytes
        b"cbuiltins\nbytearray\n(L1099511627776L\ntR.",
    ],
)
def test_a_few_bytes_cannot_fill_the_memory(tmp_path, payload):
    (tmp_path / "x.p").write_bytes(payload)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(InputError):
        assert load_plain_pickle(tmp_path / "x.p") == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("field", [None, "ref_id", "ann_id", "split", "sentences", "category_id"])
def test_a_bomb_of_nested_lists_is_refused_in_one_short_sentence(tmp_path, field):
    bomb = ["x"]
    for _ in range(60):  # 2**60 values in a few hundred bytes
        bomb = [bomb, bomb]
    refs = json.loads(json.dumps(REFS))
    refs[0] = bomb if field is None else {**refs[0], field: bomb}
    with pytest.raises(InputError, match="spoils a field") as caught:
        read_refer(build(tmp_path, raw=pickle.dumps(refs)), "refcoco")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


BY_HAND = {
    "tuple as key": b"}" + b")" + b"2\x86" * 200 + b"K\x01s.",  # {t: 1} with t of 2**200 empty tuples
    "tuples as keys": b"}(" + b")" + b"2\x86" * 200 + b"K\x01u.",
    "tuple as key of a dict in one": b"(" + b")" + b"2\x86" * 200 + b"K\x01d.",
    "tuple in a set": b"\x8f(" + b")" + b"2\x86" * 200 + b"\x90.",
    "tuple in a frozenset": b"(" + b")" + b"2\x86" * 200 + b"\x91.",
    "tuple in a set by name": b"cbuiltins\nset\n(](" + b")" + b"2\x86" * 200 + b"etR.",
    "tuple in a frozenset by name": b"c__builtin__\nfrozenset\n(](" + b")" + b"2\x86" * 200 + b"etR.",
    "tuple as the name of a codec": b"c_codecs\nencode\n(Vx\n" + b")" + b"2\x86" * 200 + b"tR.",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_nested_tuples_are_neither_hashed_nor_shown(tmp_path, name):
    (tmp_path / "x.p").write_bytes(b"\x80\x04" + BY_HAND[name])
    with pytest.raises(InputError, match=r"x\.p"):
        load_plain_pickle(tmp_path / "x.p")


def test_simple_keys_and_members_of_all_kinds(tmp_path):
    keys = ["text", b"bytes", 3, 2.5, True, None]
    value = {
        "dict": {key: [key] for key in keys},
        "set": set(keys),
        "frozenset": frozenset(keys),
        "one": {1: 2},
    }
    for protocol in range(6):
        (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol=protocol))
        assert load_plain_pickle(tmp_path / "x.p") == value


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_without_values_cannot_claim_rows(tmp_path, protocol):
    (tmp_path / "x.p").write_bytes(pickle.dumps(np.empty((10**9, 0)), protocol=protocol))
    with pytest.raises(InputError, match="holds nothing"):
        load_plain_pickle(tmp_path / "x.p")
    (tmp_path / "x.p").write_bytes(pickle.dumps([np.empty(0), np.empty((0, 4))], protocol=protocol))
    assert load_plain_pickle(tmp_path / "x.p") == [[], []]


# ----------------------------------------------------------------------------------------------- ids and values


def changed(place, **fields):
    """The referents and instances with other values in the first entry of one of their lists."""
    refs, instances = json.loads(json.dumps([REFS, INSTANCES]))
    lists = {"refs": refs, "sentences": refs[0]["sentences"], **instances}
    lists[place][0].update(fields)
    return {"raw": pickle.dumps(refs, protocol=4), "instances": instances}


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        (
            "refs",
            {"ref_id": float("inf")},
            "referent without a ref_id lacks or spoils a field .ref_id is inf",
        ),
        ("refs", {"ref_id": 10**30}, "ref_id is a number of more than 64 bits"),
        ("refs", {"ref_id": True}, "ref_id is True, not a whole number"),
        ("refs", {"ann_id": 10.9}, "referent 1 lacks or spoils a field .ann_id is 10.9, not a whole number"),
        ("refs", {"ann_id": "10"}, "ann_id is '10', not a whole number"),
        ("refs", {"ann_id": None}, "referent 1 in .* has no annotation"),
        ("refs", {"ann_id": []}, "referent 1 in .* has no annotation"),
        ("refs", {"ann_id": [None]}, "referent 1 in .* has no annotation"),
        ("refs", {"category_id": 10**400}, "category_id is a number of more than 64 bits"),
        ("refs", {"split": "\ud800"}, "referent 1 .*split is not valid Unicode"),
        ("sentences", {"sent": "the \ud800 man"}, "referent 1 .*sentence 100 is not valid Unicode"),
        ("sentences", {"sent": 5}, "referent 1 .*sentence 100 is 5, not text"),
        ("sentences", {"sent_id": 10**30}, "sent_id is a number of more than 64 bits"),
        ("images", {"height": 2**40}, "image 7 has 30 x 1099511627776 pixels, more than the 100,000,000"),
        ("images", {"height": True}, "image 7 has no valid height and width .height is True"),
        ("images", {"width": 1e400}, "image 7 has no valid height and width .width is inf"),
        ("annotations", {"segmentation": [[10**400, 1, 2, 3, 4, 5]]}, "annotation 10: .* not finite"),
    ],
)
def test_values_are_not_bent_into_what_they_might_mean(tmp_path, place, fields, message):
    root = build(tmp_path, **changed(place, **fields))
    with pytest.raises(InputError, match=message):
        read_refer(root, "refcoco")
    dataset = read_refer(root, "refcoco", skip_broken=True)
    assert [r.ref_id for r in dataset.referents("testA")] == [3]
    assert 1 not in [r.ref_id for split in dataset.rows for r in dataset.referents(split)]


def test_numbers_without_a_fraction_are_whole(tmp_path):
    refs, instances = json.loads(json.dumps([REFS, INSTANCES]))
    refs[0].update(ann_id=10.0, ref_id=2.0**40, category_id=2**40)
    instances["images"][0].update(id=7.0, height=20.0)
    dataset = read_refer(build(tmp_path, refs=refs, instances=instances), "refcoco")
    referent = dataset.referents("train")[0]
    assert (referent.ann_id, referent.ref_id, referent.category_id) == (10, 2**40, 2**40)
    assert dataset.mask(referent).sum() == 75


@pytest.mark.parametrize("key", ["images", "annotations"])
@pytest.mark.parametrize("number", [True, "7", None, 7.5, 2**63])
def test_ids_that_are_no_numbers_are_named(tmp_path, key, number):
    with pytest.raises(InputError, match=f"instances.json has no list of '{key}' with ids.*an id is"):
        read_refer(build(tmp_path, **changed(key, id=number)), "refcoco")


def test_one_id_cannot_mean_two_things(tmp_path):
    instances = json.loads(json.dumps(INSTANCES))
    instances["annotations"].append(dict(instances["annotations"][0]))
    assert read_refer(build(tmp_path / "a", instances=instances), "refcoco").broken == ()
    instances["annotations"][-1]["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    with pytest.raises(
        InputError, match="two entries with the id 10 in 'annotations', which differ in segmentation"
    ):
        read_refer(build(tmp_path / "b", instances=instances), "refcoco")
    instances["annotations"].pop()
    instances["images"].append({**instances["images"][0], "file_name": "other.jpg"})
    with pytest.raises(InputError, match="two entries with the id 7 in 'images', which differ in file_name"):
        read_refer(build(tmp_path / "c", instances=instances), "refcoco")


@pytest.mark.parametrize("changes", [{}, {"split": "val"}])
def test_a_referent_that_comes_twice_is_broken(tmp_path, changes):
    root = build(tmp_path, refs=[*REFS, {**REFS[2], **changes}])
    with pytest.raises(InputError, match=r"referent 3 in .* is there twice"):
        read_refer(root, "refcoco")
    dataset = read_refer(root, "refcoco", skip_broken=True)
    assert {split: dataset.count(split)[0] for split in dataset.rows} == {"train": 2, "testA": 1}
    assert dataset.columns.facts["left_out"] == {changes.get("split", "testA"): [8]}


def test_annotations_with_negative_ids_cannot_be_used(tmp_path):
    # -1 says "nothing", and numbers below it stand for sets of annotations.
    refs, instances = json.loads(json.dumps([REFS, INSTANCES]))
    refs[0]["ann_id"] = instances["annotations"][0]["id"] = -2
    with pytest.raises(InputError, match=r"referent 1 .* annotation -2: annotations have no numbers below 0"):
        read_refer(build(tmp_path, refs=refs, instances=instances), "refcoco")


def test_in_a_file_with_lists_of_annotations_none_is_no_target(tmp_path):
    refs = json.loads(json.dumps(REFS))
    refs[0]["ann_id"], refs[1]["ann_id"] = [10, 11], None
    dataset = read_refer(build(tmp_path, refs=refs), "refcoco")
    assert [r.ann_ids for r in dataset.referents("train")] == [(10, 11), ()]


def test_kinds_that_are_no_text_are_broken(tmp_path):
    root = build(tmp_path)
    (root / "refcoco/tags.json").write_text(json.dumps({"100": {"kind": ["a"]}, "102": {"kind": "b"}}))
    with pytest.raises(InputError, match=r"referent 1 .*kind of 100 is a list, not text"):
        read_refer(root, "refcoco")
    assert [e.kind for _, e in read_refer(root, "refcoco", skip_broken=True).samples("train")] == ["b"]


def test_annotations_without_pixels_stay(tmp_path):
    instances = json.loads(json.dumps(INSTANCES))
    instances["annotations"][0]["segmentation"] = [[100, 100, 200, 100, 200, 200]]
    dataset = read_refer(build(tmp_path, instances=instances), "refcoco")
    assert not dataset.mask(dataset.referents("train")[0]).any()


# ----------------------------------------------------------------------------------------- files that are none


def test_links_into_nowhere_and_folders_are_no_images(tmp_path):
    root = build(tmp_path)
    first, second = sorted((root / "images/train2014").iterdir())
    for path in (first, second):
        path.unlink()
    first.symlink_to(root / "nowhere.jpg")
    second.mkdir()
    with pytest.raises(InputError, match="2 of 2 image files"):
        read_refer(root, "refcoco")
    Image.new("RGB", (30, 20)).save(root / "nowhere.jpg")
    with pytest.raises(InputError, match="1 of 2 image files"):
        read_refer(root, "refcoco")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_is_closed_is_named(tmp_path):
    root = build(tmp_path)
    for folder in (root / "images/train2014", root / "refcoco"):
        folder.chmod(0)
        try:
            with pytest.raises(InputError, match=f"cannot list the folder {folder}: Permission denied"):
                read_refer(root, "refcoco")
        finally:
            folder.chmod(0o755)


def test_a_split_is_read_though_images_of_another_are_missing(tmp_path):
    root = build(tmp_path)
    (root / "images/train2014/COCO_train2014_000000000007.jpg").unlink()
    assert read_refer(root, "refcoco", splits=["testA"]).count("testA") == (1, 1, 1)
    with pytest.raises(InputError, match="1 of 1 image files"):
        read_refer(root, "refcoco", splits=["train"])


# ------------------------------------------------------------------------------------------ skipping broken items


def test_broken_items_are_skipped_on_request_and_listed(tmp_path):
    refs = json.loads(json.dumps(REFS))
    refs.append(ref(4, 99, 7, "train", sentence(104, "annotation that is not there")))
    instances = json.loads(json.dumps(INSTANCES))
    instances["annotations"][0]["segmentation"] = [[0, 0, 10, 0]]
    root = build(tmp_path, refs=refs, instances=instances)
    (root / "images/train2014/COCO_train2014_000000000008.jpg").unlink()
    with pytest.raises(InputError, match=r"annotation 10: .* has 2 points.*and 1 more broken item"):
        read_refer(root, "refcoco")
    dataset = read_refer(root, "refcoco", skip_broken=True)
    assert {split: [r.ref_id for r in refs] for split, refs in dataset.splits.items()} == {
        "train": [2],
        "testA": [],
    }
    told = "\n".join(dataset.broken)
    assert len(dataset.broken) == 3
    for sign in ("annotation 10", "annotation 99", "COCO_train2014_000000000008.jpg"):
        assert sign in told
