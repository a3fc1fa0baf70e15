"""The parquet copies of the hub, written here from a REFER data set made by hand and read both ways."""

from __future__ import annotations

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from promptris.data import index, read_refer
from promptris.data.readers.hub import find_parquet, read_hub, unpack_images
from promptris.data.readers.refer import IMAGE_FOLDERS
from promptris.errors import InputError, MissingExtraError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SIZES = {7: (30, 20), 8: (3, 4), 9: (12, 10)}  # width, height
BOX = [0.0, 0.0, 10.0, 0.0, 10.0, 5.0, 0.0, 5.0]
SEGMENTATIONS = {
    # Two rectangles with a 5 x 5 square in common.
    10: (7, 3, [BOX, [5.0, 0.0, 10.0, 0.0, 10.0, 10.0, 5.0, 10.0]]),
    11: (7, 9, [[20.5, 0.0, 24.25, 0.0, 24.0, 4.0, 20.0, 4.0]]),
    12: (8, 3, {"size": [4, 3], "counts": [5, 2, 5]}),
    13: (9, 1, [BOX]),
}
REFS = [
    (1, 10, "train", [(100, "the left one", "The left one!"), (101, "", "Left ONE!")]),
    (2, 11, "val", [(102, "right one", "right one")]),
    (3, 12, "testA", [(103, "only one", "only one"), (104, "", "")]),
    (4, 13, "testB", [(105, "café ☕", "café ☕")]),
]
CATEGORIES = {1: "person", 3: "car", 9: "boat"}


def coco_name(image_id):
    return f"COCO_train2014_{image_id:012d}.jpg"


def annotation(ann_id):
    image_id, category_id, segmentation = SEGMENTATIONS[ann_id]
    crowd = int(isinstance(segmentation, dict))
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "iscrowd": crowd,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "area": 1.0,
    }


def image_entry(image_id):
    width, height = SIZES[image_id]
    return {"id": image_id, "file_name": coco_name(image_id), "width": width, "height": height}


def sentence(sent_id, sent, raw):
    return {"raw": raw, "sent": sent, "sent_id": sent_id, "tokens": sent.split()}


def write_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, size in SIZES.items():
        Image.new("RGB", size).save(folder / coco_name(image_id))


def write_refer(root, name="refcoco"):
    folder = root / name
    folder.mkdir(parents=True)
    refs = [
        {
            "ref_id": ref_id,
            "ann_id": ann_id,
            "image_id": SEGMENTATIONS[ann_id][0],
            "category_id": SEGMENTATIONS[ann_id][1],
            "split": split,
            "sentences": [sentence(*s) for s in sentences],
        }
        for ref_id, ann_id, split, sentences in REFS
    ]
    instances = {
        "images": [image_entry(k) for k in SIZES],
        "annotations": [annotation(k) for k in SEGMENTATIONS],
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances))


def exact_row(ref_id, ann_id, split, sentences, **changes):
    image_id, category_id, _ = SEGMENTATIONS[ann_id]
    row = {
        "sent_ids": [s[0] for s in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": [sentence(*s) for s in sentences],
        "category_id": category_id,
        "raw_anns": json.dumps(annotation(ann_id)),
        "raw_image_info": json.dumps(image_entry(image_id)),
        "raw_sentences": json.dumps([sentence(*s) for s in sentences]),
        "image_path": f"coco/train2014/{coco_name(image_id)}",
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "captions": [s[1] for s in sentences],
        "global_image_id": f"coco.{image_id}",
        "anns_id": f"coco.{ann_id}",
    }
    return {**row, **changes}


EXACT_SCHEMA = pa.schema(
    [
        ("sent_ids", pa.list_(pa.int64())),
        ("file_name", pa.string()),
        ("ann_id", pa.int64()),
        ("ref_id", pa.int64()),
        ("image_id", pa.int64()),
        ("split", pa.string()),
        (
            "sentences",
            pa.list_(
                pa.struct(
                    [
                        ("raw", pa.string()),
                        ("sent", pa.string()),
                        ("sent_id", pa.int64()),
                        ("tokens", pa.list_(pa.string())),
                    ]
                )
            ),
        ),
        ("category_id", pa.int64()),
        ("raw_anns", pa.string()),
        ("raw_image_info", pa.string()),
        ("raw_sentences", pa.string()),
        ("image_path", pa.string()),
        ("bbox", pa.list_(pa.float64())),
        ("captions", pa.list_(pa.string())),
        ("global_image_id", pa.string()),
        ("anns_id", pa.string()),
    ]
)
POLYGON_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.list_(pa.string())),
        ("segmentation", pa.list_(pa.float32())),
        ("bbox", pa.list_(pa.float32())),
        ("iscrowd", pa.int8()),
        ("file_name", pa.string()),
    ]
)


def save(path, rows, schema):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
    return path


def write_exact(root, rows=None, name="refcoco"):
    rows = [exact_row(*ref) for ref in REFS] if rows is None else rows
    files = {"train": "train", "val": "validation", "validation": "validation", "testA": "test"}
    for split in {row["split"] for row in rows}:
        chosen = [row for row in rows if row["split"] == split]
        name_of_file = f"{files.get(split, split)}-00000-of-00001-94431d5f4bd5b93f.parquet"
        save(root / name / "data" / name_of_file, chosen, EXACT_SCHEMA)


def picture(image_id, kind="JPEG"):
    stream = io.BytesIO()
    Image.new("RGB", SIZES[image_id], (200, 30, 30)).save(stream, kind)
    return stream.getvalue()


def polygon_row(image_id, number, polygon, texts, content=None, **changes):
    row = {
        "question_id": str(number),
        "image": {"bytes": picture(image_id) if content is None else content, "path": None},
        "question": "Provide a short description for this region.",
        "answer": texts,
        "segmentation": polygon,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "iscrowd": 0,
        "file_name": f"COCO_train2014_{image_id:012d}_{number}.jpg",
    }
    return {**row, **changes}


POLYGON_ROWS = {
    "val-00000-of-00002": [polygon_row(7, 0, BOX, ["left", "left one"]), polygon_row(9, 1, BOX, ["it"])],
    "val-00001-of-00002": [
        polygon_row(7, 16, SEGMENTATIONS[11][2][0], ["right"]),
        polygon_row(7, 4, BOX, ["left again"]),  # the same object, from the other partition
    ],
    "testA-00000-of-00001": [polygon_row(9, 0, BOX, ["it"])],
}


def write_polygons(root, rows=None, name="refcoco"):
    for stem, chosen in (POLYGON_ROWS if rows is None else rows).items():
        save(root / name / "data" / f"{stem}.parquet", chosen, POLYGON_SCHEMA)


def read(root, name="refcoco", split_by=None, **options):
    folders = [root / folder for folder in IMAGE_FOLDERS]
    return read_hub(root, name, split_by, find_parquet(root / name), folders, **options)


# ------------------------------------------------------------------------------------------------ exact copies


def test_exact_copy_is_the_refer_data_set(tmp_path):
    write_images(tmp_path / "a/images/train2014")
    write_images(tmp_path / "b/train2014")
    write_refer(tmp_path / "a")
    write_exact(tmp_path / "b")
    told = []
    expected, found = read_refer(tmp_path / "a", "refcoco"), read(tmp_path / "b", notify=told.append)
    assert (found.name, found.split_by, found.root) == ("refcoco", "unc", tmp_path / "b")
    assert found.splits == expected.splits
    assert list(found.splits) == ["train", "val", "testA", "testB"]
    for split in expected.splits:
        assert found.samples(split) == expected.samples(split)
        assert found.by_image(split).keys() == expected.by_image(split).keys()
        for referent in expected.splits[split]:
            assert np.array_equal(found.mask(referent), expected.mask(referent))
    assert found.categories == CATEGORIES
    for image_id, record in expected.images.items():
        other = found.images[image_id]
        assert (other.height, other.width) == (record.height, record.width)
        assert other.path == tmp_path / "b/train2014" / record.path.name
    assert told == []


def test_masks_of_an_exact_copy_by_hand(tmp_path):
    write_exact(tmp_path)
    dataset = read(tmp_path, require_images=False)
    mask = dataset.mask(dataset.splits["train"][0])
    expected = np.zeros((20, 30), dtype=bool)
    expected[:5, :10] = True
    expected[:10, 5:10] = True
    assert np.array_equal(mask, expected)
    run_lengths = dataset.mask(dataset.splits["testA"][0])
    assert run_lengths.astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_validation_is_val_and_an_annotation_may_stand_in_a_list(tmp_path):
    row = exact_row(2, 11, "validation", REFS[1][3], raw_anns=json.dumps([annotation(11)]))
    write_exact(tmp_path, [row])
    dataset = read(tmp_path, require_images=False)
    assert [(r.ref_id, r.ann_id, r.split) for r in dataset.splits["val"]] == [(2, 11, "val")]
    assert list(dataset.splits) == ["val"]


def test_partition_of_a_copy(tmp_path):
    write_exact(tmp_path, name="refcocog")
    assert read(tmp_path, "refcocog", require_images=False).split_by == "umd"
    assert read(tmp_path, "refcocog", "umd", require_images=False).split_by == "umd"
    with pytest.raises(InputError, match=r"refcocog in .* have no split_by 'google'; there is umd"):
        read(tmp_path, "refcocog", "google", require_images=False)


def test_missing_images_of_an_exact_copy_are_named(tmp_path):
    write_exact(tmp_path)
    with pytest.raises(InputError, match=r"3 of 3 image files of refcoco are missing.*images/train2014"):
        read(tmp_path)


BROKEN_EXACT = [
    ({"raw_anns": "{'id': 10}"}, "raw_anns of referent 1 in .* is not valid JSON"),
    ({"raw_anns": None}, "raw_anns of referent 1 in .* is not the JSON of one object"),
    ({"raw_anns": json.dumps([annotation(10), annotation(11)])}, "raw_anns of referent 1 .* one object"),
    ({"raw_anns": json.dumps(annotation(11))}, "referent 1 .* annotation 10, which .* does not hold"),
    (
        {"raw_anns": json.dumps({**annotation(10), "image_id": 8})},
        "on image 7, but its annotation 10 on image 8",
    ),
    (
        {"raw_anns": json.dumps({**annotation(10), "segmentation": [[1, 2, 3, 4]]})},
        "annotation 10: .*2 points",
    ),
    ({"raw_anns": json.dumps({**annotation(10), "id": [10]})}, "annotation 10, which"),
    ({"raw_image_info": json.dumps(image_entry(8))}, "referent 1 .* image 7, which .* does not hold"),
    ({"raw_image_info": json.dumps({**image_entry(7), "file_name": "../x.jpg"})}, "not a plain file name"),
    ({"raw_image_info": json.dumps({**image_entry(7), "height": 0})}, "no valid height and width"),
    ({"ann_id": None}, "referent 1 lacks or spoils a field"),
    ({"sentences": None}, "referent 1 lacks or spoils a field"),
    ({"ref_id": 2}, "referent 2 in .* is there twice"),
    (
        {"raw_image_info": json.dumps({**image_entry(7), "height": 2**40})},
        "image 7 has 30 x 1099511627776 pixels, more than",
    ),
    (
        {"raw_anns": json.dumps({**annotation(10), "segmentation": [[10**400, 1, 2, 3, 4, 5]]})},
        "annotation 10: .*not finite",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_EXACT)
def test_broken_rows_are_named_or_left_out(tmp_path, changes, message):
    good = exact_row(2, 13, "train", REFS[3][3])
    write_exact(tmp_path, [good, {**exact_row(1, 10, "train", REFS[0][3]), **changes}])
    with pytest.raises(InputError, match=message):
        read(tmp_path, require_images=False)
    dataset = read(tmp_path, require_images=False, skip_broken=True)
    assert [r.ref_id for r in dataset.splits["train"]] == [2]
    assert len(dataset.broken) == 1
    assert dataset.columns.facts["left_out"] == {"train": [7]}


@pytest.mark.parametrize("changes", [{"height": 21}, {"file_name": "other.jpg"}, {"id": 8}])
def test_rows_that_contradict_each_other_about_an_image(tmp_path, changes):
    other = exact_row(2, 11, "train", REFS[1][3], raw_image_info=json.dumps({**image_entry(7), **changes}))
    write_exact(tmp_path, [exact_row(1, 10, "train", REFS[0][3]), other])
    with pytest.raises(InputError, match=r"raw_image_info of referent 2 in .* say of image 7"):
        read(tmp_path, require_images=False)


# ---------------------------------------------------------------------------------------------- polygon copies


def test_polygon_copy(tmp_path):
    write_polygons(tmp_path)
    told = []
    dataset = read(tmp_path, notify=told.append)
    assert (dataset.name, dataset.split_by) == ("refcoco", "mixed")
    rows = [
        (r.ref_id, r.ann_id, r.image_id, r.split, [(e.sent_id, e.text) for e in r.expressions])
        for split in ("val", "testA")
        for r in dataset.splits[split]
    ]
    assert rows == [
        (1, 1, 7, "val", [(1, "left"), (2, "left one")]),
        (2, 2, 9, "val", [(3, "it")]),
        (3, 3, 7, "val", [(4, "right")]),
        (4, 1, 7, "val", [(5, "left again")]),
        (5, 2, 9, "testA", [(6, "it")]),
    ]
    box = np.zeros((20, 30), dtype=bool)
    box[:5, :10] = True
    assert np.array_equal(dataset.mask(dataset.splits["val"][0]), box)
    assert sum("masks are not exact" in line for line in told) == 1
    assert {r.category_id for r in dataset.splits["val"]} == {0}
    assert dataset.categories == {}


def test_embedded_images_are_written_once(tmp_path):
    write_polygons(tmp_path)
    dataset = read(tmp_path)
    folder = tmp_path / "refcoco/images"
    assert sorted(path.name for path in folder.iterdir()) == [coco_name(7), coco_name(9)]
    assert (folder / coco_name(7)).read_bytes() == picture(7)
    assert dataset.images[7].path == folder / coco_name(7)
    assert (dataset.images[7].height, dataset.images[7].width) == (20, 30)
    (folder / coco_name(7)).write_bytes(b"mine")
    (folder / coco_name(9)).unlink()
    read(tmp_path)
    assert (folder / coco_name(7)).read_bytes() == b"mine"
    assert (folder / coco_name(9)).read_bytes() == picture(9)


def test_images_in_the_usual_folders_are_used(tmp_path):
    write_polygons(tmp_path)
    write_images(tmp_path / "images/train2014")
    dataset = read(tmp_path)
    assert dataset.images[9].path == tmp_path / "images/train2014" / coco_name(9)
    assert not (tmp_path / "refcoco/images").exists()


def test_no_image_is_written_unless_images_are_needed(tmp_path):
    write_polygons(tmp_path)
    dataset = read(tmp_path, require_images=False)
    assert dataset.count("testA") == (1, 1, 1)
    assert not (tmp_path / "refcoco/images").exists()


def test_suffix_follows_the_content(tmp_path):
    row = polygon_row(9, 3, BOX, ["it"], content=picture(9, "PNG"))
    write_polygons(tmp_path, {"val-00000-of-00001": [row]})
    dataset = read(tmp_path)
    assert dataset.images[9].path == tmp_path / "refcoco/images/COCO_train2014_000000000009.png"
    assert dataset.images[9].path.read_bytes() == picture(9, "PNG")
    write_images(tmp_path / "images")
    assert read(tmp_path).images[9].path == tmp_path / "images" / coco_name(9)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    write_polygons(tmp_path)
    (tmp_path / "refcoco/images").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"cannot write the image .*COCO_train2014"):
        unpack_images(find_parquet(tmp_path / "refcoco"), [coco_name(9)], tmp_path / "refcoco/images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "photo.jpg"}, "referent 2 .photo.jpg. in .* file_name that is not one of COCO"),
        ({"file_name": None}, "file_name that is not one of COCO"),
        ({"segmentation": [0.0, 1.0]}, "referent 2 .*1 points"),
        ({"segmentation": None}, "referent 2 .*not a flat list"),
        ({"answer": None}, "referent 2 .*no list of sentences"),
        ({"image": {"bytes": b"hello", "path": None}}, "referent 2 .*embeds an image that cannot be read"),
        ({"image": None}, "referent 2 .*embeds no image"),
    ],
)
def test_broken_polygon_rows_are_named_or_left_out(tmp_path, changes, message):
    broken = polygon_row(7, 1, BOX, ["x"], **changes)
    write_polygons(
        tmp_path,
        {"val-00000-of-00001": [polygon_row(9, 0, BOX, ["it"]), broken, polygon_row(7, 2, BOX, ["y"])]},
    )
    with pytest.raises(InputError, match=message):
        read(tmp_path)
    dataset = read(tmp_path, skip_broken=True)
    assert [(r.ref_id, r.image_id) for r in dataset.splits["val"]] == [(1, 9), (3, 7)]
    assert dataset.images[7].path.read_bytes() == picture(7)
    told = {} if "file_name" in changes else {"val": [7]}
    assert dataset.columns.facts["left_out"] == told


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "testB-00000-of-00001.parquet"],
        [
            "data/train-00000-of-00001-0a.parquet",
            "data/validation-00000-of-00001-0b.parquet",
            "data/testB.parquet",
        ],
        ["default/train/0000.parquet", "default/validation/0000.parquet", "default/testB/0000.parquet"],
    ],
)
def test_finds_files_train_first(tmp_path, names):
    for name in (*reversed(names), ".cache/huggingface/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_parquet(tmp_path) == [tmp_path / name for name in names]


def test_no_files(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(b"")
    assert find_parquet(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["data/test-00000-of-00001-002.parquet", "data/test-00000-of-00001-82a.parquet"],
            "two versions of the test",
        ),
        (
            ["data/test-00000-of-00001.parquet", "data/test-00001-of-00002.parquet"],
            "two versions of the test",
        ),
        (
            ["data/val-00000-of-00003.parquet", "data/val-00002-of-00003.parquet"],
            "lacks part 00001 of the 3 parts",
        ),
        (["default/val/0000.parquet", "other/val/0000.parquet"], "several data sets .default, other."),
    ],
)
def test_files_that_would_spoil_the_counts(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=message):
        find_parquet(tmp_path)


def test_polygon_splits_are_named_by_files(tmp_path):
    rows = [polygon_row(9, 0, BOX, ["it"])]
    for name in ("default/val/0000.parquet", "default/testB/0000.parquet"):
        save(tmp_path / "refcoco" / name, rows, POLYGON_SCHEMA)
    assert list(read(tmp_path).splits) == ["val", "testB"]


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder = tmp_path / "refcoco"
    save(folder / "a.parquet", [{"x": 1}], pa.schema([("x", pa.int64())]))
    with pytest.raises(InputError, match=r"a\.parquet has the columns x, which are not"):
        read(tmp_path)
    (folder / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet"):
        read(tmp_path)
    (folder / "a.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet"):
        read(tmp_path)


def test_file_damaged_in_the_middle_is_named(tmp_path):
    write_polygons(tmp_path)
    path = tmp_path / "refcoco/data/testA-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"cannot read .*testA-00000-of-00001\.parquet"):
        read(tmp_path)


def test_numbers_of_tables_that_went_through_pandas(tmp_path):
    fields = [pa.field("ref_id", pa.float64()) if f.name == "ref_id" else f for f in EXACT_SCHEMA]
    good, bad = exact_row(2.0, 11, "train", REFS[1][3]), exact_row(1.5, 10, "val", REFS[0][3])
    endless = exact_row(float("inf"), 10, "val", REFS[0][3])
    save(tmp_path / "refcoco/train.parquet", [good, bad, endless], pa.schema(fields))
    dataset = read(tmp_path, require_images=False, skip_broken=True)
    assert [r.ref_id for r in dataset.referents("train")] == [2]
    for sentence, number in zip(dataset.broken, ("1.5", "inf"), strict=True):
        assert (
            f"referent {number} lacks or spoils a field (ref_id is {number}, not a whole number)" in sentence
        )
    assert dataset.broken_splits == ("val", "val")
    assert read(tmp_path, require_images=False, splits=["train"]).broken == ()


def test_images_of_other_splits_are_not_unpacked(tmp_path):
    write_polygons(tmp_path)
    assert read(tmp_path, splits=["testA"]).count("testA") == (1, 1, 1)
    assert [path.name for path in (tmp_path / "refcoco/images").iterdir()] == [coco_name(9)]


def test_an_embedded_image_of_too_many_pixels_is_named(tmp_path):
    content = io.BytesIO()
    Image.new("1", (20_000, 6_000)).save(content, "PNG")
    rows = [polygon_row(9, 0, BOX, ["it"], content=content.getvalue())]
    write_polygons(tmp_path, {"val-00000-of-00001": rows})
    with pytest.raises(InputError, match="embeds an image of 20000 x 6000 pixels, more than the 100,000,000"):
        read(tmp_path)


def test_both_forms_in_one_folder(tmp_path):
    write_exact(tmp_path)
    write_polygons(tmp_path, {"testA-00000-of-00001": POLYGON_ROWS["testA-00000-of-00001"]})
    with pytest.raises(InputError, match="of different data sets"):
        read(tmp_path)


def test_pyarrow_is_needed_for_the_first_reading_only(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "WORTH_INDEXING", 0)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    write_polygons(tmp_path)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed.*promptris\[data\]"):
        read(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(index, "WORTH_INDEXING", 0)
    expected = read(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    told = []
    found = read(tmp_path, notify=told.append)
    assert found.splits == expected.splits
    assert found.split_by == "mixed"
    assert any("not exact" in line for line in told)  # also when the files are not looked at


def test_read_refer_reads_a_hub_copy_where_there_are_no_refs_files(tmp_path):
    root = tmp_path / "copy"
    write_images(root / "images")
    write_exact(root)
    copy = read_refer(root, "refcoco")
    assert copy.split_by == "unc"
    assert [r.ref_id for r in copy.splits["train"]] == [1]
    with pytest.raises(InputError, match="have no split_by 'google'"):
        read_refer(root, "refcoco", "google")
    # The original files win where both are there.
    (root / "refcoco").rename(root / "parquet")
    write_refer(root)
    (root / "parquet").rename(root / "refcoco" / "data")
    assert read_refer(root, "refcoco").columns.facts.get("hub") is None


def test_broken_evaluation_items_of_both_forms_say_where_they_belong(tmp_path):
    for root, write in ((tmp_path / "refer", write_refer), (tmp_path / "copy", write_exact)):
        write_images(root / "images")
        SEGMENTATIONS[11] = (7, 9, [[1.0, 2.0]])
        try:
            write(root)
        finally:
            SEGMENTATIONS[11] = (7, 9, [[20.5, 0.0, 24.25, 0.0, 24.0, 4.0, 20.0, 4.0]])
        dataset = read_refer(root, "refcoco", skip_broken=True)
        assert dataset.columns.facts["left_out"] == {"val": [7]}
