"""Folders of one's own: both layouts, what people do to such files, and one sentence for everything wrong."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from promptris.data.readers.own import read_own
from promptris.data.readers.own_layout import LAYOUT_HELP, looks_like_own_data
from promptris.data.readers.own_masks import decode_mask, foreground, read_header
from promptris.data.readers.own_rows import inner_path, read_rows
from promptris.data.records import NO_TARGET
from promptris.errors import InputError
from promptris.images import load_image

WIDTH, HEIGHT = 12, 8


def photo(path: Path, size=(WIDTH, HEIGHT), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path, **options)
    return path


def block(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


MUG, PEN = block(1, 1, 4, 3), block(7, 4, 5, 2)


def save_mask(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def lines(path: Path, *rows, encoding="utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def desk(tmp_path) -> Path:
    """A photo, two masks, no sentences yet."""
    root = tmp_path / "desk"
    photo(root / "photos/a.jpg")
    save_mask(root / "masks/mug.png", MUG)
    save_mask(root / "masks/pen.png", PEN)
    return root


def row(**cells):
    return {"image": "photos/a.jpg", "mask": "masks/mug.png", "expression": "the mug", **cells}


def ring(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


INSTANCES = {
    "images": [
        {"id": 70, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
        {"id": 80, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
    ],
    "annotations": [
        {"id": 7, "image_id": 70, "category_id": 2, "segmentation": [ring(1, 1, 4, 3)]},
        {"id": 8, "image_id": 70, "category_id": 3, "segmentation": [ring(7, 4, 5, 2)]},
        {"id": 9, "image_id": 80, "category_id": 2, "segmentation": [ring(0, 0, 2, 2)]},
    ],
    "categories": [{"id": 2, "name": "mug"}, {"id": 3, "name": "pen"}],
}


@pytest.fixture
def coco(tmp_path) -> Path:
    """Two photos and their annotations, no sentences yet."""
    root = tmp_path / "coco"
    for name in ("a.jpg", "b.jpg"):
        photo(root / "images" / name)
    (root / "instances.json").write_text(json.dumps(INSTANCES))
    return root


def error_of(folder: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_own(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------- masks as pictures


def test_masks_from_jsonl(desk):
    lines(
        desk / "expressions.jsonl",
        row(split="train", kind="attribute"),
        row(expression="the white mug"),
        row(mask="masks/pen.png", expression="the pen", split="val", sent_id=50),
        row(mask=None, expression="the dog", split="val"),
    )
    dataset = read_own(desk)
    assert (dataset.name, dataset.split_by, dataset.root, dataset.broken) == ("desk", "", desk, ())
    mug, pen, dog = [*dataset.referents("train"), *dataset.referents("val")]
    assert [e.text for e in mug.expressions] == ["the mug", "the white mug"]
    assert [e.kind for e in mug.expressions] == ["attribute", None]
    assert (mug.ref_id, mug.ann_id, mug.ann_ids, mug.image_id, mug.category_id) == (1, 1, (1,), 1, -1)
    assert (pen.ref_id, pen.ann_id, dog.ref_id, dog.ann_id, dog.ann_ids) == (2, 2, 3, NO_TARGET, ())
    # Numbers that are not given go on behind those that are.
    assert [e.sent_id for r in (mug, pen, dog) for e in r.expressions] == [51, 52, 50, 53]
    assert np.array_equal(dataset.mask(mug), MUG)
    assert np.array_equal(dataset.mask(pen), PEN)
    assert dataset.mask(dog).shape == (HEIGHT, WIDTH) and not dataset.mask(dog).any()
    record = dataset.images[1]
    assert (record.path, record.height, record.width) == (desk / "photos/a.jpg", HEIGHT, WIDTH)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_masks_from_csv_as_spreadsheets_write_it(desk, separator, newline):
    table = [
        "Image|Mask|Expression|Split",
        'photos/a.jpg|masks/mug.png|"the mug, white|and ""round"""|train',
        "",
        "|||",
        "photos\\a.jpg| masks/pen.png |größter Stift|val",
        "photos/a.jpg||the dog|val",
    ]
    text = newline.join(table).replace("|", separator) + newline
    (desk / "expressions.csv").write_bytes(text.encode("utf-8-sig"))
    dataset = read_own(desk)
    texts = {split: [e.text for _, e in dataset.samples(split)] for split in dataset.rows}
    assert texts == {
        "train": [f'the mug, white{separator}and "round"'],
        "val": ["größter Stift", "the dog"],
    }
    assert len(dataset.images) == 1
    assert np.array_equal(dataset.mask(dataset.referents("val")[0]), PEN)
    assert dataset.referents("val")[1].ann_ids == ()


def test_jsonl_with_bom_blank_lines_and_line_separators_inside_text(desk):
    first = json.dumps(row(expression="the\u2028mug"), ensure_ascii=False)
    (desk / "expressions.jsonl").write_bytes(f"\ufeff{first}\r\n\r\n{json.dumps(row())}\r\n".encode())
    assert [e.text for _, e in read_own(desk).samples("train")] == ["the\u2028mug", "the mug"]


def test_one_label_map_for_many_objects(desk):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[MUG], labels[PEN] = 3, 7
    Image.fromarray(labels).save(desk / "masks/all.png")
    lines(
        desk / "expressions.csv",
        "image,mask,value,expression",
        "photos/a.jpg,masks/all.png,3,the mug",
        "photos/a.jpg,masks/all.png,7.0,the pen",
        "photos/a.jpg,masks/all.png,3,the round one",
        "photos/a.jpg,masks/all.png,,everything",
    )
    dataset = read_own(desk)
    mug, pen, both = dataset.referents("train")
    assert [len(r.expressions) for r in (mug, pen, both)] == [2, 1, 1]
    assert np.array_equal(dataset.mask(mug), MUG)
    assert np.array_equal(dataset.mask(pen), PEN)
    assert np.array_equal(dataset.mask(both), MUG | PEN)


def test_segmentations_in_rows(desk):
    counts = [int(n) for n in np.diff(np.flatnonzero(np.diff(PEN.T.ravel(), prepend=0, append=0)))]
    start = int(np.flatnonzero(PEN.T.ravel())[0])
    runs = [start, *counts]
    runs.append(HEIGHT * WIDTH - sum(runs))
    bare = {"image": "photos/a.jpg"}
    lines(
        desk / "expressions.jsonl",
        {**bare, "segmentation": [ring(1, 1, 4, 3)], "expression": "the mug"},
        {**bare, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}, "expression": "the pen"},
        {**bare, "segmentation": [ring(1, 1, 4, 3)], "expression": "the white thing"},
        {**bare, "segmentation": [], "expression": "the dog"},
    )
    dataset = read_own(desk)
    mug, pen, dog = dataset.referents("train")
    assert len(mug.expressions) == 2
    assert np.array_equal(dataset.mask(mug), MUG)
    assert np.array_equal(dataset.mask(pen), PEN)
    assert dog.ann_ids == ()


def test_segmentation_in_a_csv_cell(desk):
    cell = json.dumps([ring(1, 1, 4, 3)])
    lines(
        desk / "expressions.csv",
        "image;segmentation;expression",
        f"photos/a.jpg;{cell};the mug",
    )
    dataset = read_own(desk)
    assert np.array_equal(dataset.mask(dataset.referents("train")[0]), MUG)


def test_the_same_image_in_two_spellings_is_one_image(desk):
    photo(desk / "images/b.png")
    save_mask(desk / "b.png", MUG)
    lines(
        desk / "expressions.jsonl",
        row(),
        row(image="./photos//a.jpg", expression="it"),
        row(image="c.png", mask="b.png", expression="in the other folder"),
        row(image="images/c.png", mask="b.png", expression="the same"),
    )
    (desk / "images/b.png").rename(desk / "images/c.png")
    dataset = read_own(desk)
    assert [r.image_id for r in dataset.referents("train")] == [1, 2]
    assert [record.path for record in dataset.images.values()] == [
        desk / "photos/a.jpg",
        desk / "images/c.png",
    ]


def test_images_beside_the_rows_without_a_folder(desk):
    photo(desk / "x.webp")
    lines(desk / "expressions.jsonl", row(image="x.webp"))
    assert read_own(desk).images[1].path == desk / "x.webp"


def test_repeated_rows_stay_and_splits_make_their_own_referents(desk):
    lines(desk / "expressions.jsonl", row(), row(), row(split="val"))
    dataset = read_own(desk)
    (train,), (val,) = dataset.referents("train"), dataset.referents("val")
    assert (len(train.expressions), len(val.expressions)) == (2, 1)
    assert train.ann_id == val.ann_id and train.ref_id != val.ref_id


def test_another_file_name_will_do_when_it_is_the_only_one(desk):
    lines(desk / "annotations" / "sentences.jsonl", row())
    lines(desk / "notes.csv", "date,what", "monday,took photos")
    assert len(read_own(desk).samples("train")) == 1


def test_reading_twice_gives_the_same(desk):
    save_mask(desk / "masks/all.png", MUG | PEN)
    lines(
        desk / "expressions.jsonl", row(), row(mask="masks/all.png", expression="all"), row(expression="it")
    )
    first, second = read_own(desk), read_own(desk)
    assert list(first.referents("train")) == list(second.referents("train"))


# ---------------------------------------------------------------------------------------------- COCO


def test_coco_annotations_with_sentences(coco):
    lines(
        coco / "expressions.jsonl",
        {"ann_id": 7, "expression": "the mug"},
        {"ann_id": [8, 7], "expression": "both things"},
        {"ann_id": [7], "expression": "the round thing", "kind": "attribute"},
        {"ann_id": [7, 8], "expression": "everything"},
        {"ann_id": None, "image": "b.jpg", "expression": "the dog", "split": "val"},
        {"ann_id": [], "image_id": 80, "expression": "the cat", "split": "val"},
        {"ann_id": -1, "image": "images/b.jpg", "expression": "the cow", "split": "val"},
    )
    dataset = read_own(coco)
    mug, both = dataset.referents("train")
    assert (mug.ann_id, mug.ann_ids, mug.image_id, mug.category_id) == (7, (7,), 70, 2)
    assert both.ann_ids == (7, 8) and both.ann_id < NO_TARGET
    assert [e.text for e in mug.expressions] == ["the mug", "the round thing"]
    assert [e.text for e in both.expressions] == ["both things", "everything"]
    assert np.array_equal(dataset.mask(mug), MUG)
    assert np.array_equal(dataset.mask(both), MUG | PEN)
    assert [(r.ann_id, r.image_id) for r in dataset.referents("val")] == [(NO_TARGET, 80)] * 3
    assert dataset.categories == {2: "mug", 3: "pen"}
    assert dataset.images[70].path == coco / "images/a.jpg"


def test_coco_ids_from_a_csv_of_pandas(coco):
    lines(
        coco / "expressions.csv",
        "ann_id,image,expression",
        "7.0,,the mug",
        '"[7, 8]",,both',
        "8;7,a.jpg,all of it",
        ",b.jpg,the dog",
    )
    assert [r.ann_ids for r in read_own(coco).referents("train")] == [(7,), (7, 8), ()]


@pytest.mark.parametrize(
    "name", ["annotations.json", "_annotations.coco.json", "annotations/instances.json", "annotations/x.json"]
)
def test_names_of_the_coco_file(coco, name):
    (coco / "annotations").mkdir()
    (coco / "instances.json").rename(coco / name)
    (coco / "info.json").write_text("{}")
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    assert read_own(coco).referents("train")[0].ann_id == 7


def test_masks_beside_coco_annotations_get_numbers_of_their_own(coco):
    photo(coco / "images/c.jpg")
    save_mask(coco / "masks/pen.png", PEN)
    lines(
        coco / "expressions.jsonl",
        {"ann_id": 7, "expression": "the mug"},
        {"image": "a.jpg", "mask": "masks/pen.png", "expression": "the pen"},
        {"image": "c.jpg", "mask": "masks/pen.png", "expression": "another pen"},
    )
    found = [(r.ann_id, r.image_id) for r in read_own(coco).referents("train")]
    assert found == [(7, 70), (10, 70), (11, 81)]


def test_images_of_coco_in_folders(coco):
    photo(coco / "images/sub/d.jpg")
    instances = json.loads(json.dumps(INSTANCES))
    instances["images"][0]["file_name"] = "sub/d.jpg"
    (coco / "instances.json").write_text(json.dumps(instances))
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    assert read_own(coco).images[70].path == coco / "images/sub/d.jpg"


# ------------------------------------------------------------------------------------------------ REFER


def refer_folder(root: Path, images: Path) -> Path:
    root.mkdir(parents=True)
    refs = [
        {
            "ref_id": 1,
            "ann_id": 7,
            "image_id": 70,
            "category_id": 2,
            "split": "train",
            "sentences": [{"sent_id": 1, "sent": "the mug", "raw": "the mug", "tokens": ["the", "mug"]}],
        }
    ]
    (root / "refs(mine).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "instances.json").write_text(json.dumps(INSTANCES))
    photo(images / "a.jpg")
    return root


@pytest.mark.parametrize("images", ["harbour/images", "harbour", "images"])
def test_a_refer_folder_is_read_too(tmp_path, images):
    folder = refer_folder(tmp_path / "harbour", tmp_path / images)
    assert looks_like_own_data(folder)
    dataset = read_own(folder)
    assert (dataset.name, dataset.split_by) == ("harbour", "mine")
    assert dataset.images[70].path == tmp_path / images / "a.jpg"
    (tmp_path / images / "a.jpg").unlink()
    assert "a.jpg" in error_of(folder)


def test_a_data_root_is_told_from_a_data_set(tmp_path):
    refer_folder(tmp_path / "harbour", tmp_path / "images")
    assert not looks_like_own_data(tmp_path)
    assert error_of(tmp_path) == (
        f"{tmp_path} is a data root, not a data set: name one of the data sets in it, such as harbour"
    )


# ---------------------------------------------------------------------------------------------- layouts


def test_what_looks_like_own_data(desk, coco, tmp_path):
    assert not looks_like_own_data(desk)
    lines(desk / "sentences.csv", "image,mask,expression", "photos/a.jpg,masks/mug.png,the mug")
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    assert looks_like_own_data(desk) and looks_like_own_data(coco)
    assert not looks_like_own_data(tmp_path / "nowhere")
    assert not looks_like_own_data(desk / "photos/a.jpg")


def test_a_folder_without_sentences_is_told_what_is_expected(desk, coco):
    assert error_of(desk / "nowhere") == f"{desk / 'nowhere'} is not a folder"
    assert error_of(desk) == (
        f"{desk} has no expressions.jsonl or expressions.csv with one row per sentence, which names either a mask "
        "(image, mask, expression) or an annotation of a COCO file beside it (ann_id, expression)"
    )
    (desk / "settings.json").write_text("{}")
    assert "has no expressions.jsonl" in error_of(desk)
    assert "has annotations in instances.json but no sentences" in error_of(coco)
    assert "expressions.csv" in LAYOUT_HELP and "expressions.jsonl" in LAYOUT_HELP


def test_files_that_could_both_be_meant_are_named(desk, coco):
    lines(desk / "expressions.jsonl", row())
    lines(desk / "expressions.csv", "image,mask,expression", "photos/a.jpg,masks/mug.png,the mug")
    assert "several files of expressions, expressions.jsonl and expressions.csv" in error_of(desk)
    (desk / "expressions.jsonl").rename(desk / "a.jsonl")
    (desk / "expressions.csv").rename(desk / "b.csv")
    assert "several files with expressions, a.jsonl and b.csv" in error_of(desk)
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    (coco / "instances.json").rename(coco / "one.json")
    (coco / "two.json").write_text(json.dumps(INSTANCES))
    assert "several COCO files, one.json and two.json" in error_of(coco)


def test_ids_without_a_coco_file(desk):
    lines(desk / "expressions.jsonl", row(), {"ann_id": 7, "expression": "the mug"})
    assert "expressions.jsonl line 2 names an annotation or image by its id, but" in error_of(desk)


# -------------------------------------------------------------------------------------------- broken rows


BROKEN = [
    (
        {"image": "photos/a.jpg", "text": "x"},
        'line 2 has image, text; expected are "expression" and "ann_id"',
    ),
    ({}, "line 2 has nothing; expected are"),
    ("[1]", "line 2 is not a JSON object"),
    ('{"image": ', "line 2 is not valid JSON"),
    (row(expression=" "), "line 2: the expression is empty"),
    (row(expression=5), 'line 2: "expression" is 5, not text'),
    ('{"image": "photos/a.jpg", "mask": null, "expression": "\\ud800"}', "line 2: .* not valid Unicode"),
    (row(mask="../mug.png"), r"line 2: \"mask\" is '\.\./mug\.png', which is no path below the folder"),
    (row(image="/etc/passwd"), "line 2: \"image\" is '/etc/passwd', which is no path below"),
    (row(image="C:\\a.jpg"), "line 2: \"image\" is 'C:.*a.jpg', which is no path below"),
    (row(image=None), 'line 2 has no "image"'),
    (row(mask="masks/nothing.png"), "line 2: there is no mask at .*masks/nothing.png"),
    (row(image="photos/none.jpg", mask=None), "line 2: there is no image photos/none.jpg in"),
    (row(value=4), r"mug\.png has no pixel of value 4; it has 0, 255"),
    (row(value="red"), "line 2: \"value\" is 'red', not a whole number"),
    (row(value=True), 'line 2: "value" is True, not a whole number'),
    (row(mask="masks/wide.png"), "line 2: mask .*wide.png has 13 x 8 pixels, but its image 12 x 8 pixels"),
    (row(mask="masks/black.png"), "mask .*black.png is empty; where nothing is meant, give no mask"),
    (row(mask="masks/mug.jpg"), "mask .*mug.jpg is a JPEG"),
    (row(mask="masks/colour.png", value=1), 'mask .*colour.png is RGB, but a "value" picks'),
    (row(mask="masks/cut.png"), "cut.png is damaged or cut off"),
    (row(mask="masks/text.png"), "text.png is not an image that can be read"),
    (row(image="photos/zero.jpg"), "zero.jpg is not an image that can be read"),
    (row(image="photos/huge.png"), r"huge.png has .*more than the 100,000,000 pixels"),
    (row(segmentation=[ring(1, 1, 2, 2)]), "line 2 tells its target twice, by mask and segmentation"),
    (
        {"image": "photos/a.jpg", "segmentation": [[1, 1, 2, 2]], "expression": "x"},
        "line 2: Polygon 0 of the segmentation has 2 points",
    ),
    (
        {"image": "photos/a.jpg", "segmentation": "[[1", "expression": "x"},
        'line 2: "segmentation" is not JSON',
    ),
    (
        {"image": "photos/a.jpg", "segmentation": [ring(50, 1, 4, 3)], "expression": "x"},
        "line 2: its mask has no pixel, or only that in the corner; .* of the 12 x 8 image",
    ),
    (
        {"image": "photos/a.jpg", "segmentation": [ring(0.1, 0.1, 0.8, 0.8)], "expression": "x"},
        "line 2: its mask has no pixel",
    ),
    (
        {
            "image": "photos/a.jpg",
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [96]},
            "expression": "x",
        },
        "line 2: its mask has no pixel",
    ),
    (
        {"image": "photos/a.jpg", "segmentation": [[10**400, 1, 2, 3, 4, 5]], "expression": "x"},
        "line 2: Polygon 0 of the segmentation has coordinates that are not finite",
    ),
    (
        {
            "image": "photos/none.jpg",
            "segmentation": {"size": [10**30, 1], "counts": [10**30]},
            "expression": "x",
        },
        "line 2: there is no image photos/none.jpg in",
    ),
    (row(image="the mug " * 40, mask=None), "line 2: there is no image the mug the mug"),
    (row(mask="the mug " * 40), "line 2: there is no mask at .*the mug the mug"),
    (row(sent_id=10**400), 'line 2: "sent_id" is 1000.*, not a whole number'),
    (row(sent_id=1), "line 2 has the sent_id 1 of .*line 1"),
    (row(mask="masks/pen.png"), "line 2: 'the mug' means something else on the same image in .*line 1"),
    (row(mask=None), "line 2: 'the mug' means something else on the same image in .*line 1"),
]


def png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (body, data, b"IEND")
    )


@pytest.fixture
def messy_desk(desk) -> Path:
    masks, photos = desk / "masks", desk / "photos"
    Image.new("L", (13, 8), 1).save(masks / "wide.png")
    save_mask(masks / "black.png", MUG & False)
    Image.new("L", (WIDTH, HEIGHT), 255).save(masks / "mug.jpg")
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(masks / "colour.png")
    whole = (masks / "mug.png").read_bytes()
    (masks / "cut.png").write_bytes(whole[: whole.index(b"IDAT") + 12])
    (masks / "text.png").write_text("no picture")
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "huge.png").write_bytes(png_header(50_000, 50_000))
    return desk


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_broken_rows_are_named_and_can_be_skipped(messy_desk, broken, message):
    file = lines(
        messy_desk / "expressions.jsonl",
        row(sent_id=1),
        broken,
        row(mask="masks/pen.png", expression="the pen"),
    )
    with pytest.raises(InputError, match=message) as caught:
        read_own(messy_desk)
    assert "\n" not in str(caught.value)
    dataset = read_own(messy_desk, skip_broken=True)
    assert dataset.broken == (str(caught.value),)
    assert str(file) in dataset.broken[0] or ".png" in dataset.broken[0] or ".jpg" in dataset.broken[0]
    assert [e.text for _, e in dataset.samples("train")] == ["the mug", "the pen"]


BROKEN_COCO = [
    ({"ann_id": 77, "expression": "x"}, "line 2 has annotation 77, which .*instances.json does not hold"),
    ({"ann_id": [7, 77], "expression": "x"}, "line 2 has annotation 77, which"),
    ({"ann_id": [7, 9], "expression": "x"}, "line 2 is on image 70, but its annotation 9 on image 80"),
    ({"ann_id": 9, "image": "a.jpg", "expression": "x"}, "line 2 is on image 70, but its annotation 9"),
    ({"ann_id": "seven", "expression": "x"}, "line 2: \"ann_id\" is 'seven', not a whole number"),
    ({"ann_id": 7.5, "expression": "x"}, 'line 2: "ann_id" is 7.5, not a whole number'),
    ({"ann_id": [[7]], "expression": "x"}, r'line 2: "ann_id" is \[7\], not a whole number'),
    ({"ann_id": None, "expression": "x"}, 'line 2 has no "image"'),
    ({"ann_id": None, "image_id": 5, "expression": "x"}, "line 2 has image 5, which .* does not hold"),
    ({"ann_id": None, "image": "z.jpg", "expression": "x"}, "line 2 has image 'z.jpg', which .*instances"),
    ({"ann_id": 7, "mask": "m.png", "expression": "x"}, "line 2 tells its target twice, by ann_id and mask"),
    ({"ann_id": 20, "expression": "x"}, "annotation 20: Polygon 0 of the segmentation has 2 points"),
    ({"ann_id": 21, "expression": "x"}, "annotation 21 has no valid image_id"),
    ({"ann_id": 22, "expression": "x"}, "file_name of image 90 is '../e.jpg', which is no path below"),
    ({"ann_id": 24, "expression": "x"}, "annotation 24: its mask has no pixel"),
    ({"ann_id": 25, "expression": "x"}, "annotation 25: category_id is 'mug', not a whole number"),
    ({"ann_id": 26, "expression": "x"}, "line 2 has image 81, which .*instances.json does not hold"),
    ({"ann_id": [-5], "expression": "x"}, "annotation -5: annotations have no numbers below 0"),
    ({"ann_id": 23, "expression": "x"}, "c.jpg has 12 x 8 pixels, but .*instances.json was made for 8 x 12"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN_COCO, ids=[message[:40] for _, message in BROKEN_COCO])
def test_broken_coco_rows_are_named_and_can_be_skipped(coco, broken, message):
    instances = json.loads(json.dumps(INSTANCES))
    instances["images"] += [
        {"id": 90, "file_name": "../e.jpg", "height": HEIGHT, "width": WIDTH},
        {"id": 91, "file_name": "c.jpg", "height": WIDTH, "width": HEIGHT},
    ]
    instances["annotations"] += [
        {"id": 20, "image_id": 70, "segmentation": [[1, 1, 2, 2]]},
        {"id": 21, "image_id": "70", "segmentation": [ring(1, 1, 2, 2)]},
        {"id": 22, "image_id": 90, "segmentation": [ring(1, 1, 2, 2)]},
        {"id": 23, "image_id": 91, "segmentation": [ring(1, 1, 2, 2)]},
        {"id": 24, "image_id": 70, "segmentation": [ring(0.1, 0.1, 0.5, 0.5)]},
        {"id": 25, "image_id": 70, "category_id": "mug", "segmentation": [ring(1, 1, 2, 2)]},
        {"id": 26, "image_id": 81, "segmentation": [ring(1, 1, 2, 2)]},
        {"id": -5, "image_id": 70, "segmentation": [ring(1, 1, 2, 2)]},
    ]
    (coco / "instances.json").write_text(json.dumps(instances))
    photo(coco / "images/c.jpg")
    lines(
        coco / "expressions.jsonl",
        {"ann_id": 7, "expression": "the mug"},
        broken,
        {"ann_id": 8, "expression": "the pen"},
    )
    with pytest.raises(InputError, match=message) as caught:
        read_own(coco)
    assert "\n" not in str(caught.value)
    dataset = read_own(coco, skip_broken=True)
    assert dataset.broken == (str(caught.value),)
    assert [e.text for _, e in dataset.samples("train")] == ["the mug", "the pen"]


def test_the_first_of_several_broken_rows_is_told_with_their_number(desk):
    lines(desk / "expressions.jsonl", row(expression=""), row(), row(mask="x.png"))
    assert error_of(desk) == (
        f"{desk / 'expressions.jsonl'} line 1: the expression is empty (and 1 more broken items)"
    )
    assert len(read_own(desk, skip_broken=True).broken) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,mask,sentence\na,b,c\n", "line 1 has the columns image, mask, sentence; expected are"),
        (b"mask,expression\na,b\n", "line 1 has the columns mask, expression; expected are"),
        (b"image;expression\na;b\n", "line 1 has the columns image, expression; expected are"),
        (b"image,mask,mask,expression\n", "line 1 has the column mask twice"),
        (b'image,mask,expression\na,b,"c\n', "line 2 is not valid CSV"),
        (b"image,mask,expression\n", "has no rows; expected are"),
        (b"", "has no rows; expected are"),
        ("image,mask,expression\na,b,größe\n".encode("latin1"), "line 2 is not UTF-8 text; save the file"),
        ("image,mask,expression\n".encode("utf-16"), "line 1 is not UTF-8 text"),
    ],
)
def test_tables_that_cannot_be_used_at_all(desk, content, message):
    (desk / "expressions.csv").write_bytes(content)
    for skip_broken in (False, True):
        assert message in error_of(desk, skip_broken=skip_broken)


def test_a_text_with_the_separator_in_it_is_named(desk):
    lines(
        desk / "expressions.csv", "image,mask,expression", "photos/a.jpg,masks/mug.png,the mug, the red one"
    )
    assert "line 2 has 4 cells, the header 3; put quotes around text" in error_of(desk)


def test_line_numbers_of_csv_count_lines_of_the_file(desk):
    lines(
        desk / "expressions.csv",
        "image,mask,expression",
        "",
        'photos/a.jpg,masks/mug.png,"the',
        'mug"',
        "photos/a.jpg,masks/mug.png,",
    )
    assert "line 5: the expression is empty" in error_of(desk)


# ----------------------------------------------------------------------------------------- missing images


def test_missing_images_are_named_or_allowed_or_skipped(desk):
    photo(desk / "photos/b.jpg")
    lines(
        desk / "expressions.jsonl",
        row(),
        row(image="photos/b.jpg", mask="masks/pen.png", expression="the pen"),
        {
            "image": "photos/b.jpg",
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 2, 89]},
            "expression": "speck",
        },
    )
    (desk / "photos/b.jpg").unlink()
    assert "1 of 2 image files of desk are missing, the first is photos/b.jpg" in error_of(desk)
    dataset = read_own(desk, require_images=False)
    assert len(dataset.samples("train")) == 3
    assert np.array_equal(dataset.mask(dataset.referents("train")[1]), PEN)
    assert dataset.images[2].path == desk / "photos/b.jpg"
    kept = read_own(desk, skip_broken=True)
    assert [e.text for _, e in kept.samples("train")] == ["the mug"]
    assert "photos/b.jpg is missing" in kept.broken[0]


def test_a_missing_coco_image_is_named(coco):
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    (coco / "images/a.jpg").unlink()
    assert "1 of 1 image files of coco are missing, the first is a.jpg" in error_of(coco)
    assert read_own(coco, require_images=False).images[70].path == coco / "images/a.jpg"


# ------------------------------------------------------------------------------------ sizes and orientation


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_sizes_from_headers_are_those_of_the_decoded_image(tmp_path, kind, orientation):
    path = photo(tmp_path / f"x.{kind}", exif=exif(orientation))
    assert read_header(path).size == load_image(path).shape[:2]


@pytest.mark.parametrize("kind", ["gif", "bmp", "ppm"])
def test_sizes_of_other_formats(tmp_path, kind):
    path = photo(tmp_path / f"x.{kind}")
    assert read_header(path).size == load_image(path).shape[:2] == (HEIGHT, WIDTH)


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    import struct
    import zlib

    path = photo(tmp_path / "x.png")
    chunk = b"eXIf" + exif(6).tobytes()[6:]
    content = path.read_bytes()
    end = content.index(b"IEND") - 4
    extra = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:end] + extra + content[end:])
    assert read_header(path).size == load_image(path).shape[:2] == (WIDTH, HEIGHT)


def test_a_png_is_not_decoded_for_its_size(tmp_path):
    path = tmp_path / "x.png"
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a drawing program")
    Image.new("L", (300, 200)).save(path, pnginfo=info)
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    with pytest.raises(InputError, match="damaged"):
        load_image(path)
    assert read_header(path).size == (200, 300)


def test_masks_belong_to_the_upright_photo(desk):
    photo(desk / "photos/turned.jpg", exif=exif(6))
    save_mask(desk / "masks/upright.png", MUG.T)
    lines(desk / "expressions.jsonl", row(image="photos/turned.jpg", mask="masks/upright.png"))
    dataset = read_own(desk)
    assert (dataset.images[1].height, dataset.images[1].width) == (WIDTH, HEIGHT)
    assert np.array_equal(dataset.mask(dataset.referents("train")[0]), MUG.T)
    lines(desk / "expressions.jsonl", row(image="photos/turned.jpg"))
    assert (
        "mug.png has 12 x 8 pixels, but its image 8 x 12 pixels, after its EXIF orientation has been applied"
        in error_of(desk)
    )


# ------------------------------------------------------------------------------------------- mask pictures


def stored(path: Path, picture: Image.Image, value: int | None = None, **options) -> np.ndarray:
    """What is read back from a mask that was saved as PNG."""
    picture.save(path, **options)
    return foreground(decode_mask(path), value, path)


def palette_picture(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8)).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)


def layers(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    rgb = np.repeat(colour.astype(np.uint8)[..., None], 3, axis=-1) * 255
    return Image.fromarray(np.dstack([rgb, alpha.astype(np.uint8) * 255]), "RGBA")


EVERYTHING = np.ones_like(MUG)

PICTURES = {
    "1-bit": Image.fromarray(MUG),
    "grey": Image.fromarray(MUG.astype(np.uint8)),
    "16-bit": Image.fromarray(MUG.astype(np.uint16) * 256),
    "rgb": Image.fromarray(np.dstack([MUG * 0, MUG * 0, MUG * 9]).astype(np.uint8)),
    "grey with alpha": Image.fromarray(np.dstack([MUG * 255, MUG * 0 + 255]).astype(np.uint8), "LA"),
    "opaque": layers(MUG, EVERYTHING),
    "white on transparent white": layers(EVERYTHING, MUG),
    "black on transparent black": layers(~EVERYTHING, MUG),
    "white on transparent black": layers(MUG, MUG),
    "alpha 0 everywhere": layers(MUG, ~EVERYTHING),
    "palette": palette_picture(MUG * 2, BLACK, RED, WHITE),
    "palette with other blacks": palette_picture(MUG * 2, BLACK, RED, BLACK),
    "palette that starts with white": palette_picture(~MUG, WHITE, BLACK),
    "palette without black": palette_picture(MUG, WHITE, RED),
}


@pytest.mark.parametrize("name", PICTURES)
def test_whatever_is_not_background_is_the_referent(tmp_path, name):
    assert np.array_equal(stored(tmp_path / "m.png", PICTURES[name]), MUG)


def test_transparent_entry_of_a_palette_is_background(tmp_path):
    picture = palette_picture(MUG, WHITE, RED)
    assert np.array_equal(stored(tmp_path / "m.png", picture, transparency=0), MUG)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_of_label_maps(tmp_path, dtype):
    labels = (MUG * 3 + PEN * 200).astype(dtype)
    assert np.array_equal(stored(tmp_path / "m.png", Image.fromarray(labels), 200), PEN)
    assert np.array_equal(
        stored(tmp_path / "n.png", palette_picture(MUG * 2 + PEN, RED, BLACK, WHITE), 2), MUG
    )
    assert np.array_equal(stored(tmp_path / "o.png", Image.fromarray(MUG), 1), MUG)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_masks_come_back_as_they_were_painted(tmp_path_factory, height, width, seed):
    root = tmp_path_factory.mktemp("own")
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    mask[height // 2, width // 2] = True
    photo(root / "a.png", (width, height))
    save_mask(root / "m.png", mask)
    lines(root / "expressions.jsonl", {"image": "a.png", "mask": "m.png", "expression": "it"})
    dataset = read_own(root)
    assert np.array_equal(dataset.mask(dataset.referents("train")[0]), mask)


# ------------------------------------------------------------------------------------------- rows and paths


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b.jpg", "..", ".", "", "c:", "/", "\\", "\0"]), max_size=6), st.data())
def test_no_path_leads_out(parts, data):
    inner = inner_path(data.draw(st.sampled_from(["/", "\\"])).join(parts))
    if inner is not None:
        root = Path("/data/set")
        assert root in (root / inner).parents
        assert not {"..", "."} & set(inner.split("/")) and "\\" not in inner and "\0" not in inner


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts.filter(str.strip), min_size=1, max_size=5), st.sampled_from(",;\t"), st.booleans())
def test_any_sentence_survives_csv_and_jsonl(tmp_path_factory, sentences, separator, bom):
    import csv

    folder = tmp_path_factory.mktemp("rows")
    encoding = "utf-8-sig" if bom else "utf-8"
    with (folder / "x.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([["image", "mask", "expression"], *(["a", "", text] for text in sentences)])
    (folder / "x.jsonl").write_text(
        "".join(
            json.dumps({"mask": None, "expression": text}, ensure_ascii=False) + "\n" for text in sentences
        ),
        encoding=encoding,
        newline="",
    )
    expected = [text.strip() for text in sentences]
    for name in ("x.csv", "x.jsonl"):
        assert [found.expression() for found in read_rows(folder / name)] == expected


# -------------------------------------------------------------------------------------------------- index


def test_masks_are_encoded_once(desk, monkeypatch):
    monkeypatch.setattr("promptris.data.index.WORTH_INDEXING", 1)
    lines(desk / "expressions.jsonl", row(), row(mask="masks/pen.png", expression="the pen"))
    told: list[str] = []
    first = read_own(desk, notify=told.append)
    with monkeypatch.context() as patch:
        patch.setattr("promptris.data.readers.own.decode_mask", None)  # calling it would fail
        second = read_own(desk, notify=told.append)
    assert len(told) == 1
    assert list(second.referents("train")) == list(first.referents("train"))
    assert np.array_equal(second.mask(second.referents("train")[1]), PEN)

    save_mask(desk / "masks/pen.png", MUG | PEN)
    third = read_own(desk, notify=told.append)
    assert len(told) == 2
    assert np.array_equal(third.mask(third.referents("train")[1]), MUG | PEN)


def test_an_image_that_comes_later_is_found(desk, monkeypatch):
    monkeypatch.setattr("promptris.data.index.WORTH_INDEXING", 1)
    lines(desk / "expressions.jsonl", row(), row(image="late.jpg", mask=None, expression="nothing"))
    assert "there is no image late.jpg" in error_of(desk)
    photo(desk / "images/late.jpg")
    assert read_own(desk).images[2].path == desk / "images/late.jpg"


def test_images_of_coco_may_come_and_move_when_there_is_an_index(coco, monkeypatch):
    monkeypatch.setattr("promptris.data.index.WORTH_INDEXING", 1)
    instances = json.loads(json.dumps(INSTANCES))
    instances["images"][0]["file_name"] = "sub/a.jpg"
    (coco / "instances.json").write_text(json.dumps(instances))
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    told: list[str] = []
    with pytest.raises(InputError, match=r"the first is sub/a\.jpg"):
        read_own(coco, notify=told.append)
    photo(coco / "images/sub/a.jpg")
    assert read_own(coco, notify=told.append).images[70].path == coco / "images/sub/a.jpg"
    (coco / "images/sub").rename(coco / "sub")
    assert read_own(coco, notify=told.append).images[70].path == coco / "sub/a.jpg"
    assert len(told) == 1


def test_an_image_of_coco_that_is_replaced_by_a_better_one_is_looked_at_again(coco, monkeypatch):
    monkeypatch.setattr("promptris.data.index.WORTH_INDEXING", 1)
    lines(coco / "expressions.jsonl", {"ann_id": 7, "expression": "the mug"})
    photo(coco / "images/a.jpg", (HEIGHT, WIDTH))
    assert "made for 12 x 8" in error_of(coco)
    photo(coco / "images/a.jpg")
    assert len(read_own(coco).samples("train")) == 1


# ---------------------------------------------------------------------------------------------- splits and ids


def test_rows_know_their_split_when_they_are_broken(desk):
    lines(
        desk / "expressions.jsonl",
        row(split="val"),
        row(split="train", mask="masks/none.png", expression="x"),
        row(mask="masks/none.png", expression="y"),  # train, as it says nothing else
    )
    assert read_own(desk, splits=["val"]).count("val") == (1, 1, 1)
    assert read_own(desk, skip_broken=True).broken_splits == ("train", "train")
    assert "line 2" in error_of(desk, splits=["train"])
    with (desk / "expressions.jsonl").open("a") as file:
        file.write("{\n")
    assert "line 4 is not valid JSON" in error_of(desk, splits=["val"])
    lines(desk / "expressions.jsonl", row(split="val"), row(split=5))
    assert 'line 2: "split" is 5, not text' in error_of(desk, splits=["val"])


def test_numbers_that_reach_the_last_one_there_is(coco):
    instances = json.loads(json.dumps(INSTANCES))
    instances["images"][1]["id"] = instances["annotations"][2]["image_id"] = 2**63 - 1
    instances["annotations"][2]["id"] = 2**63 - 1
    (coco / "instances.json").write_text(json.dumps(instances))
    photo(coco / "images/c.jpg")
    save_mask(coco / "masks/pen.png", PEN)
    lines(
        coco / "expressions.jsonl",
        {"ann_id": 7, "expression": "a mug"},
        {"image": "c.jpg", "mask": "masks/pen.png", "expression": "the pen"},
    )
    assert [(r.ann_id, r.image_id) for r in read_own(coco).referents("train")] == [(7, 70), (1, 1)]


def test_a_picture_that_may_not_be_read_is_not_called_damaged(desk, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    lines(desk / "expressions.jsonl", row())
    monkeypatch.setattr(Image, "open", closed)
    assert error_of(desk).endswith(f"cannot read {desk / 'photos/a.jpg'}: Permission denied")


# ---------------------------------------------------------------------------------------------- documentation


def test_the_examples_of_the_documentation_are_read(tmp_path):
    text = (Path(__file__).parents[3] / "docs/own-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`([\w./]+)`[^\n`]*:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL)
    assert [name for name, _ in blocks] == [
        "desk/expressions.csv",
        "desk/expressions.jsonl",
        "shelf/instances.json",
        "shelf/expressions.jsonl",
    ]
    for name in ("desk/photos/0001.jpg", "desk/photos/0002.jpg", "shelf/images/a.jpg", "shelf/images/b.jpg"):
        photo(tmp_path / name, (640, 480))
    for name, values in (("0001_mug", [255]), ("0001_pen", [255]), ("0002_all", [1, 2])):
        labels = np.zeros((480, 640), dtype=np.uint8)
        labels[10:30, 10 : 10 + len(values)] = values
        (tmp_path / "desk/masks").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / f"desk/masks/{name}.png")
    counts = []
    for name, content in blocks:
        (tmp_path / name).write_text(content, encoding="utf-8")
        if name.endswith("instances.json"):
            continue
        dataset = read_own((tmp_path / name).parent)
        counts.append({split: dataset.count(split) for split in dataset.rows})
        (tmp_path / name).unlink()
    assert counts == [
        {"train": (3, 1, 4), "val": (2, 1, 2)},
        {"train": (2, 1, 2), "val": (1, 1, 1)},
        {"train": (2, 1, 2), "val": (1, 1, 1)},
    ]
