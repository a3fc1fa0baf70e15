"""The index: what is read through it equals what was read without, and it is never stale or half written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from promptris.data import index, read_refer
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError

KEPT = Path("refshapes/.promptris/refs(unc).safetensors")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A small data set, with every annotation file worth an index; and an empty cache folder."""
    monkeypatch.setattr(index, "WORTH_INDEXING", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_refshapes(tmp_path / "world", {"train": 6, "val": 3}, seed=4)
    return tmp_path / "world"


def read(world, told=None):
    return read_refer(world, "refshapes", notify=(told if told is not None else []).append)


def test_the_index_gives_back_the_same_data_set(world):
    told = []
    first, second = read(world, told), read(world, told)
    assert len(told) == 1 and "first time" in told[0]
    assert (world / KEPT).is_file()
    assert first.categories == second.categories
    for split in ("train", "val"):
        assert list(first.splits[split]) == list(second.splits[split])
        for referent in first.splits[split]:
            assert np.array_equal(first.mask(referent), second.mask(referent))
            assert first.images[referent.image_id] == second.images[referent.image_id]
    kinds = {e.kind for _, e in second.samples("train")}
    assert kinds <= {"attribute", "location", "relation"} and kinds


def test_arrays_are_mapped_not_read(world):
    read(world)
    columns = read(world).columns
    for array in columns.arrays().values():
        base = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
        assert not array.flags.writeable


def test_changed_annotations_are_read_again(world):
    count = len(read(world).splits["train"])
    path = world / "refshapes" / "instances.json"
    content = json.loads(path.read_text())
    before = path.stat()
    content["categories"][0]["name"] = content["categories"][0]["name"][::-1]  # the same size
    path.write_text(json.dumps(content, separators=(",", ":")))
    assert path.stat().st_size == before.st_size
    told = []
    again = read(world, told)
    assert len(told) == 1
    assert content["categories"][0]["name"] in again.categories.values()
    assert len(again.splits["train"]) == count


def test_a_file_that_is_new_among_the_sources_makes_the_index_stale(world):
    read(world)
    (world / "refshapes" / "tags.json").unlink()
    told = []
    assert {e.kind for _, e in read(world, told).samples("train")} == {None}
    assert len(told) == 1


@pytest.mark.parametrize("cut", [0, 7, 100, 5000, -1])
def test_a_damaged_index_is_rebuilt(world, cut):
    whole = list(read(world).splits["train"])
    raw = (world / KEPT).read_bytes()
    (world / KEPT).write_bytes(raw[:cut])
    told = []
    assert list(read(world, told).splits["train"]) == whole
    assert len(told) == 1
    read(world, told)
    assert len(told) == 1


def test_an_index_of_another_format_is_rebuilt(world, monkeypatch):
    read(world)
    monkeypatch.setattr(index, "FORMAT", "promptris-index-0")
    told = []
    read(world, told)
    assert len(told) == 1


def test_read_only_data_is_indexed_in_the_cache_folder(world, tmp_path, monkeypatch):
    save = index._save
    monkeypatch.setattr(
        index, "_save", lambda c, place, key: world not in place.parents and save(c, place, key)
    )
    told = []
    first, second = read(world, told), read(world, told)
    assert len(told) == 1
    assert not (world / KEPT).exists()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    assert list(first.splits["train"]) == list(second.splits["train"])


def test_where_nothing_can_be_written_the_data_is_read_without_an_index(world, monkeypatch):
    (world / "refshapes" / ".promptris").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    told = []
    assert len(read(world, told).splits["train"]) == len(read(world, told).splits["train"]) > 0
    assert len(told) == 2


def test_a_failed_write_leaves_the_old_index_and_no_litter(world, monkeypatch):
    read(world)
    raw = (world / KEPT).read_bytes()
    os.utime(world / "refshapes" / "instances.json", ns=(1, 1))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    read(world)
    assert (world / KEPT).read_bytes() == raw
    assert [path.name for path in (world / KEPT).parent.iterdir()] == [KEPT.name]


def test_small_annotation_files_get_no_index(tmp_path):
    write_refshapes(tmp_path / "world", {"train": 2}, seed=1)
    read_refer(tmp_path / "world", "refshapes")
    assert not (tmp_path / "world" / "refshapes" / ".promptris").exists()


def test_broken_items_are_remembered_by_the_index(world):
    path = world / "refshapes" / "instances.json"
    content = json.loads(path.read_text())
    victim = next(iter(read(world).splits["train"])).ann_id
    content["annotations"][victim - 1]["segmentation"] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(InputError, match=f"annotation {victim}: .* 2 points"):
            read(world)
        assert len(read_refer(world, "refshapes", skip_broken=True).broken) == 1


def test_opening_from_the_index_brings_neither_torch_nor_the_annotation_file(world):
    read(world)
    code = (
        "import sys; from promptris.data import index, read_refer; index.WORTH_INDEXING = 0;"
        f"d = read_refer({str(world)!r}, 'refshapes'); list(d.samples('train')); d.by_image('train');"
        "print([m for m in ('torch', 'pycocotools', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_home_folder_the_index_lies_beside_the_data(world, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where nobody knows the user
    told = []
    read(world, told)
    read(world, told)
    assert len(told) == 1
    assert (world / KEPT).is_file()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_the_data_may_read_the_index(world, mask, mode):
    before = os.umask(mask)
    try:
        read(world)
    finally:
        os.umask(before)
    assert (world / KEPT).stat().st_mode & 0o777 == mode


def test_what_may_be_mended_without_a_change_of_the_sources_is_not_kept(world):
    built = []

    def build():
        built.append(read_refer(world, "refshapes").columns)
        return dataclasses.replace(built[-1], facts={**built[-1].facts, "unsettled": True})

    for _ in range(2):
        index.open_or_build([world / "refshapes/instances.json"], "other", build)
    assert len(built) == 2
    assert not (world / "refshapes/.promptris/other.safetensors").exists()
