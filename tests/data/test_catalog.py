"""Every way to name a data set, with and without a root."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from promptris.data.catalog import read_dataset
from promptris.data.combined import COMBINED
from promptris.errors import InputError

INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 12}],
    "annotations": [
        {"id": 7, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
    ],
    "categories": [{"id": 2, "name": "mug"}],
}


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(path)


def refer_folder(folder: Path, *partitions: str) -> Path:
    """A data set in the REFER layout, of which each partition has one split, of its own name."""
    folder.mkdir(parents=True)
    for partition in partitions:
        sentence = {"sent_id": 1, "sent": partition, "raw": partition, "tokens": [partition]}
        ref = {"ref_id": 1, "ann_id": 7, "image_id": 1, "category_id": 2}
        refs = [{**ref, "split": f"{partition} split", "sentences": [sentence]}]
        (folder / f"refs({partition}).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    photo(folder.parent / "images/a.jpg")
    return folder


def own_folder(folder: Path) -> Path:
    photo(folder / "images/a.jpg")
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    (folder / "expressions.jsonl").write_text('{"ann_id": 7, "expression": "the mug"}\n')
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("name", ["harbour", "harbour/", "./harbour", "harbour//"])
@pytest.mark.parametrize("with_root", [True, False])
def test_the_partition_asked_for_is_read(here, name, with_root):
    refer_folder(here / "harbour", "mine", "yours")
    for partition in ("mine", "yours"):
        dataset = read_dataset(name, here if with_root else None, partition)
        assert (dataset.name, dataset.split_by) == ("harbour", partition)
        assert list(dataset.rows) == [f"{partition} split"]
    with pytest.raises(InputError, match="has no split_by 'other'; there is mine, yours"):
        read_dataset(name, here if with_root else None, "other")


@pytest.mark.parametrize("name", ["refcocog", "refcocog/"])
def test_a_benchmark_with_a_slash_behind_it_is_the_benchmark(here, name):
    refer_folder(here / "refcocog", "google", "umd")
    assert read_dataset(name, here).split_by == "umd"
    assert read_dataset(name, here, "google").split_by == "google"
    assert read_dataset(name, None, "google").split_by == "google"


def test_what_has_no_partitions_says_so(here):
    own_folder(here / "desk")
    with pytest.raises(InputError, match=r"expressions\.jsonl has only one partition, and none called 'umd'"):
        read_dataset("desk", None, "umd")
    with pytest.raises(InputError, match="refcoco-combined has no partition 'umd'"):
        read_dataset(COMBINED, here, "umd")


def test_a_path_is_a_path_though_a_root_is_set(here, tmp_path):
    own_folder(here / "desk")
    refer_folder(here / "harbour", "mine")
    (tmp_path / "data").mkdir()
    for name in ("desk", "./desk", str(here / "desk")):
        assert read_dataset(name, tmp_path / "data").root.resolve() == here / "desk"
    assert read_dataset("harbour", tmp_path / "data").split_by == "mine"
    # What is below the root comes first, and a benchmark is nowhere else.
    own_folder(tmp_path / "data/desk")
    assert read_dataset("desk", tmp_path / "data").root == tmp_path / "data/desk"
    refer_folder(here / "refcoco", "unc")
    with pytest.raises(InputError, match="has no folder 'refcoco'"):
        read_dataset("refcoco", tmp_path / "data")


def test_nothing_at_all(here, tmp_path):
    with pytest.raises(InputError, match="has no folder 'desk'"):
        read_dataset("desk", tmp_path)
    with pytest.raises(InputError, match="data root nowhere is not a folder"):
        read_dataset("desk", "nowhere")
    for root in (None, tmp_path):
        with pytest.raises(InputError, match=r"'no/desk' is neither a known data set .* nor a folder"):
            read_dataset("no/desk", root)


def test_home_is_known_where_no_shell_has_put_it(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    refer_folder(here / "data/refcoco", "unc")
    own_folder(here / "desk")
    assert read_dataset("refcoco", "~/data").root == here / "data"
    assert read_dataset("~/desk").root == here / "desk"


def test_a_hub_copy_is_read_by_its_path(here):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (image,), (annotation,) = INSTANCES["images"], INSTANCES["annotations"]
    row = {
        "ref_id": 1,
        "ann_id": 7,
        "image_id": 1,
        "category_id": 2,
        "split": "val",
        "sentences": [{"raw": "it", "sent": "it", "sent_id": 5, "tokens": ["it"]}],
        "raw_anns": json.dumps(annotation),
        "raw_image_info": json.dumps(image),
    }
    (here / "copy/data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), here / "copy/data/val-00000-of-00001.parquet")
    photo(here / "images/a.jpg")
    assert [r.ann_id for r in read_dataset("copy").referents("val")] == [7]
    assert [r.ann_id for r in read_dataset(str(here / "copy"), here / "images").referents("val")] == [7]
    (here / "copy/data/val-00000-of-00001.parquet").rename(here / "copy/data/val-00000-of-00002.parquet")
    with pytest.raises(InputError, match="lacks part 00001"):
        read_dataset("copy")


@pytest.mark.parametrize("kind", ["refer", "own"])
def test_what_is_broken_elsewhere_does_not_stop_a_split(here, kind):
    if kind == "refer":
        folder = refer_folder(here / "desk", "mine")
        (ref,) = pickle.loads((folder / "refs(mine).p").read_bytes())
        refs = [{**ref, "split": "val"}, {**ref, "ref_id": 2, "ann_id": 99, "split": "train"}]
        (folder / "refs(mine).p").write_bytes(pickle.dumps(refs, protocol=2))
    else:
        folder = own_folder(here / "desk")
        rows = [
            {"ann_id": 7, "expression": "the mug", "split": "val"},
            {"ann_id": 99, "expression": "the pen", "split": "train"},
        ]
        (folder / "expressions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read_dataset("desk", splits=["val"])
    assert (dataset.count("val"), dataset.broken) == ((1, 1, 1), ())
    for splits in (None, ["train"], ["val", "train"]):
        with pytest.raises(InputError, match="annotation 99"):
            read_dataset("desk", splits=splits)
        assert len(read_dataset("desk", splits=splits, skip_broken=True).broken) == 1
