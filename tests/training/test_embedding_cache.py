"""The cache of SAM embeddings: what is read is what SAM gives, nothing is computed twice, nothing is half."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from promptris.data import ReferDataset, read_refer
from promptris.data import embedding_cache as reading
from promptris.data.embedding_cache import INDEX_FILE, EmbeddingCache, EmbeddingKind, plan_embedding_cache
from promptris.data.embedding_shards import STALE_SECONDS, ImageFile, open_shard, write_durably, write_shard
from promptris.data.pictures import load_record
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.modeling.build import build_random
from promptris.modeling.content_hash import content_hash
from promptris.modeling.prompt_ris import PromptRIS
from promptris.team import Team
from promptris.training.embedding_cache import build_embedding_cache, embedding_kind

IMAGES = 10
SHAPE = (64, 16, 16)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    write_refshapes(folder, {"train": IMAGES, "val": 1}, seed=5)
    return folder


@pytest.fixture
def dataset(world: Path, tmp_path: Path) -> ReferDataset:
    shutil.copytree(world, tmp_path / "world")
    return read_refer(tmp_path / "world", "refshapes")


@pytest.fixture
def ids(dataset: ReferDataset) -> list[int]:
    return dataset.image_ids("train")


@pytest.fixture(scope="session")
def kind(small_model: PromptRIS) -> EmbeddingKind:
    return embedding_kind(small_model)


@pytest.fixture
def encoded(small_model: PromptRIS, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of SAM's image encoder got."""
    calls: list[int] = []
    encode = small_model.sam.encode_image

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(small_model.sam, "encode_image", counted)
    return calls


@pytest.fixture
def build(small_model: PromptRIS, dataset: ReferDataset, ids: list[int], tmp_path: Path) -> Any:
    def run(**changes: Any) -> EmbeddingCache:
        options: dict[str, Any] = {"image_ids": ids, "per_shard": 4, "batch_size": 3}
        return build_embedding_cache(tmp_path / "cache", small_model, dataset, **(options | changes))

    return run


def shards(folder: Path) -> dict[str, int]:
    """Names of the files other than the index, and when each was written."""
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.iterdir()) if p.name != INDEX_FILE}


def at_once(model: PromptRIS, dataset: ReferDataset, ids: list[int]) -> torch.Tensor:
    """What a training step would compute."""
    processor = model.processor()
    pixels = [load_record(dataset.images[i], processor.enough(with_sam=True)) for i in ids]
    features = model.encode_image(processor.images(pixels))
    assert features.sam_embeddings is not None
    return features.sam_embeddings


# ---------------------------------------------------------------------------------------------------- what is read


def test_it_gives_what_sam_gives_rounded_to_bfloat16(
    small_model: PromptRIS, dataset: ReferDataset, ids: list[int], build: Any
) -> None:
    cache = build()
    exact = at_once(small_model, dataset, ids)
    read = cache.read(ids)
    assert read.dtype == torch.bfloat16
    assert read.shape == (IMAGES, *SHAPE)
    # Half a unit in the last of 8 binary digits, and float noise of other batch sizes.
    assert (read.float() - exact).abs().le(exact.abs() * 2**-8 + 1e-6).all()
    assert exact.std() > 0.1
    assert not torch.equal(read[0], read[1])
    # In any order, one at a time, and in memory that belongs to the caller.
    assert torch.equal(cache.read([ids[7], ids[2]]), read[[7, 2]])
    first = cache[ids[0]]
    first.zero_()
    assert torch.equal(cache[ids[0]], read[0])
    assert len(cache) == IMAGES
    assert ids[3] in cache
    assert 999_999 not in cache
    with pytest.raises(InputError, match="was not opened for image 999999"):
        cache[999_999]


def test_photographs_are_decoded_as_in_training(
    small_model: PromptRIS, dataset: ReferDataset, ids: list[int], kind: EmbeddingKind, build: Any
) -> None:
    # A JPEG of four times the size, which training decodes at a quarter.
    record = dataset.images[ids[0]]
    assert kind.decode_size == 128
    noise = torch.randint(
        0, 256, (512, 512, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    Image.fromarray(noise.numpy()).save(record.path, format="JPEG", quality=90)
    dataset.columns.image_height.setflags(write=True)
    dataset.columns.image_width.setflags(write=True)
    dataset.columns.image_height[:] = dataset.columns.image_width[:] = 512
    read = build(image_ids=ids[:1])[ids[0]].float()
    reduced = at_once(small_model, dataset, ids[:1])[0]
    full = small_model.encode_image(small_model.processor().images([record.path])).sam_embeddings[0]
    assert (read - reduced).abs().le(reduced.abs() * 2**-8 + 1e-6).all()
    assert (full - reduced).abs().max() > 0.05


def test_the_files_are_plain_safetensors(build: Any, ids: list[int], tmp_path: Path) -> None:
    cache = build()
    # Ten images in shards of four.
    assert list(shards(tmp_path / "cache")) == [f"shard-0000{k}.safetensors" for k in range(3)]
    tensors = [load_file(path)["embeddings"] for path in sorted((tmp_path / "cache").glob("shard*"))]
    assert [len(t) for t in tensors] == [4, 4, 2]
    assert torch.equal(torch.cat(tensors), cache.read(sorted(ids)))


def test_workers_of_a_loader_can_read_it(build: Any, ids: list[int], dataset: ReferDataset) -> None:
    cache = build(workers=1)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.read(ids), cache.read(ids))


def test_it_can_compute_in_half_precision(
    build: Any, small_model: PromptRIS, dataset: ReferDataset, ids: list[int], encoded: list[int]
) -> None:
    half = build(autocast=torch.bfloat16).read(ids).float()
    exact = at_once(small_model, dataset, ids)
    error = (half - exact).abs().mean() / exact.abs().mean()
    # More than the rounding of the result, whose mean is about 2**-10, and no more than a few times as much.
    assert 1.5 * 2**-10 < error < 2**-5


def test_building_draws_no_random_numbers(build: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build()
    assert torch.equal(torch.rand(4), expected)


# ------------------------------------------------------------------------------------------ what is computed again


def test_the_size_is_told_before_anything_is_encoded(
    build: Any, dataset: ReferDataset, ids: list[int], kind: EmbeddingKind, encoded: list[int], tmp_path: Path
) -> None:
    plan = plan_embedding_cache(tmp_path / "cache", kind, dataset, ids, per_shard=4)
    assert not (tmp_path / "cache").exists()
    assert plan.missing == [0, 1, 2]
    assert plan.missing_images == ids
    # 64 x 16 x 16 values of two bytes for each of ten images, and headers.
    assert IMAGES * 32768 < plan.bytes == plan.needed_bytes < IMAGES * 33400
    told: list[tuple[str, int]] = []
    build(notify=lambda text: told.append((text, len(encoded))))
    ((text, calls),) = told
    assert "0.3 MB in all, 0.3 MB more to be written" in text
    assert "10 images are to be encoded" in text
    assert calls == 0
    real = sum(p.stat().st_size for p in (tmp_path / "cache").glob("shard*"))
    assert 0.97 < real / plan.bytes <= 1


def test_a_whole_cache_is_not_built_again(build: Any, encoded: list[int], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build(progress=lambda done, total: seen.append((done, total)))
    assert encoded == [3, 1, 3, 1, 2]
    assert seen == [(3, 10), (4, 10), (7, 10), (8, 10), (10, 10)]
    before = shards(tmp_path / "cache")
    told: list[str] = []
    build(notify=told.append)
    assert sum(encoded) == IMAGES
    assert shards(tmp_path / "cache") == before
    assert told == []


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "a header that is too long": lambda path: path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:]),
    "a flipped bit": lambda path: flip(path, -1000),
    "a flipped hash of SAM": lambda path: flip(path, path.read_bytes().index(b'"sam') + 12),
    "a flipped file name": lambda path: flip(path, path.read_bytes().index(b".jpg") - 1),
    "a flipped image number": lambda path: flip(path, path.read_bytes().index(b'"images\\": [[') + 14),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_the_damaged_shard_is_built_again(
    damage: str, build: Any, encoded: list[int], ids: list[int], tmp_path: Path
) -> None:
    whole = build()
    assert whole.verify() == []
    expected, before = whole.read(ids), shards(tmp_path / "cache")
    encoded.clear()
    path = tmp_path / "cache" / "shard-00001.safetensors"
    DAMAGES[damage](path)
    assert whole.verify() == [path]
    cache = build()
    assert sum(encoded) == 4
    after = shards(tmp_path / "cache")
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == [path.name]
    assert torch.equal(cache.read(ids), expected)


def test_without_the_check_bits_are_not_looked_at(build: Any, encoded: list[int], tmp_path: Path) -> None:
    build()
    flip(tmp_path / "cache" / "shard-00000.safetensors", -1)
    encoded.clear()
    build(check=False)
    assert encoded == []
    build(check=True)
    assert sum(encoded) == 4


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1, 2", b'{"kind": 3, "shards": 4}'])
def test_a_lost_or_damaged_index_costs_nothing(
    content: bytes | None, build: Any, encoded: list[int], tmp_path: Path
) -> None:
    build()
    encoded.clear()
    index = tmp_path / "cache" / INDEX_FILE
    good = index.read_bytes()
    index.unlink()
    if content is not None:
        index.write_bytes(content)
    build()
    assert encoded == []
    assert index.read_bytes() == good


def test_fewer_and_more_images_keep_what_is_there(
    build: Any, encoded: list[int], ids: list[int], tmp_path: Path
) -> None:
    build(image_ids=ids[:6])
    before = shards(tmp_path / "cache")
    encoded.clear()
    few = build(image_ids=ids[2:5])
    assert encoded == []
    assert ids[2] in few
    assert ids[0] not in few
    both = build(image_ids=ids)
    assert sum(encoded) == 4
    assert before.items() <= shards(tmp_path / "cache").items()
    assert torch.equal(both.read(ids[2:5]), few.read(ids[2:5]))
    assert len(both) == IMAGES


# ------------------------------------------------------------------------------------------------- what is refused


def mirror(path: Path) -> None:
    """Put another picture in a file."""
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, format="PNG")


def test_a_changed_image_is_encoded_again(
    build: Any,
    small_model: PromptRIS,
    dataset: ReferDataset,
    ids: list[int],
    encoded: list[int],
    kind: Any,
    tmp_path: Path,
) -> None:
    old = build()
    before = old.read(ids)
    encoded.clear()
    path = dataset.images[ids[5]].path
    mirror(path)
    plan = plan_embedding_cache(tmp_path / "cache", kind, dataset, ids, per_shard=4)
    assert plan.missing == [1]
    with pytest.raises(InputError, match=r"lacks 4 of 10 images"):
        EmbeddingCache.open(tmp_path / "cache", kind, dataset, ids)
    now = build().read(ids)
    assert sum(encoded) == 4
    changed = [not torch.equal(a, b) for a, b in zip(before, now, strict=True)]
    assert [k for k, c in enumerate(changed) if c] == [5]
    with pytest.raises(InputError, match=r"shard-00001.safetensors was replaced while it was in use"):
        old[ids[5]]


def test_a_copy_of_the_images_is_as_good(
    build: Any, dataset: ReferDataset, ids: list[int], encoded: list[int]
) -> None:
    build()
    encoded.clear()
    for image_id in ids:
        os.utime(dataset.images[image_id].path, (1, 1))
    build()
    assert encoded == []


def test_another_sam_is_refused_by_name(
    build: Any, dataset: ReferDataset, ids: list[int], small_model: PromptRIS, tmp_path: Path
) -> None:
    build()
    other = build_random("refshapes", seed=1)
    here, there = content_hash(other.sam.sam)[:12], content_hash(small_model.sam.sam)[:12]
    message = rf"cache holds .* differ in SAM's weights \({there} there, {here} here\): give another folder"
    with pytest.raises(InputError, match=message):
        build_embedding_cache(tmp_path / "cache", other, dataset, ids)
    # Also when only shards tell.
    (tmp_path / "cache" / INDEX_FILE).unlink()
    with pytest.raises(InputError, match=message):
        build_embedding_cache(tmp_path / "cache", other, dataset, ids)


def test_other_sizes_and_older_formats_are_refused(
    build: Any, kind: EmbeddingKind, dataset: ReferDataset, ids: list[int], tmp_path: Path, monkeypatch: Any
) -> None:
    build()
    other = EmbeddingKind(kind.sam, 256, kind.decode_size, kind.shape)
    with pytest.raises(InputError, match=r"SAM's image size \(128 there, 256 here\)"):
        EmbeddingCache.open(tmp_path / "cache", other, dataset, ids)
    monkeypatch.setattr(reading, "FORMAT", "promptris-sam-embeddings-9")
    with pytest.raises(InputError, match=r"format \(promptris-sam-embeddings-1 there"):
        EmbeddingCache.open(tmp_path / "cache", kind, dataset, ids)


def test_another_data_set_is_refused(
    build: Any, ids: list[int], dataset: ReferDataset, tmp_path: Path
) -> None:
    build()
    path = tmp_path / "cache" / "shard-00000.safetensors"
    shard = open_shard(path)
    assert shard is not None
    name = dataset.images[ids[0]].path.name
    images = shard.images | {ids[0]: replace(shard.images[ids[0]], name="other.png")}
    write_shard(path, shard.kind, images, {}, load_file(path)["embeddings"])
    with pytest.raises(InputError, match=rf"image {ids[0]} was other.png there and is {name} here"):
        build()


def test_a_file_is_no_folder(build: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(InputError, match="cache is a file: give a folder"):
        build()


def test_values_that_are_not_finite_are_not_stored(
    build: Any,
    small_model: PromptRIS,
    dataset: ReferDataset,
    ids: list[int],
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    def poisoned(pixels: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(len(pixels), *SHAPE)
        result[1, 0, 3, 3] = torch.inf
        return result

    monkeypatch.setattr(small_model.sam, "encode_image", poisoned)
    with pytest.raises(InputError, match=rf"{dataset.images[ids[1]].path.name} is not finite"):
        build()
    assert shards(tmp_path / "cache") == {}


def test_broken_images(
    build: Any, dataset: ReferDataset, ids: list[int], encoded: list[int], tmp_path: Path
) -> None:
    path = dataset.images[ids[1]].path
    good = path.read_bytes()
    path.write_bytes(good[:200])
    with pytest.raises(InputError, match=rf"{path.name} is damaged or cut off"):
        build()
    encoded.clear()
    cache = build(skip_broken=True)
    assert sum(encoded) == IMAGES - 1
    assert ids[1] not in cache
    assert list(cache.left_out) == [ids[1]]
    with pytest.raises(InputError, match=rf"{path.name} is damaged or cut off"):
        cache[ids[1]]
    others = [i for i in ids if i != ids[1]]
    expected = cache.read(others)
    encoded.clear()
    build(skip_broken=True)
    assert encoded == []
    path.write_bytes(good)
    assert torch.equal(build().read(others), expected)
    assert sum(encoded) == 4


# ----------------------------------------------------------------------------------------------- disks and processes


def test_too_little_room_is_found_out_first(
    build: Any, encoded: list[int], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(reading, "free_bytes", lambda folder: 200_000)
    with pytest.raises(InputError, match=r"needs 0.3 MB more in .*cache, but only 0.2 MB are free there"):
        build()
    assert encoded == []
    assert not (tmp_path / "cache").exists()


def test_a_replaced_shard_needs_room_once_more_for_a_moment(
    build: Any, kind: EmbeddingKind, dataset: ReferDataset, ids: list[int], tmp_path: Path
) -> None:
    build()
    mirror(dataset.images[ids[0]].path)
    plan = plan_embedding_cache(tmp_path / "cache", kind, dataset, ids, per_shard=4)
    assert plan.missing == [0]
    assert 4 * 32768 < plan.needed_bytes < 4 * 33400 + 2000


def test_a_disk_that_fills_up_keeps_finished_shards(
    build: Any, encoded: list[int], tmp_path: Path, monkeypatch: Any
) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 5:  # index, its folder, the first shard, its folder, the second shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match=r"No space left on device; .*finished shards are kept"):
            build()
    assert list(shards(tmp_path / "cache")) == ["shard-00000.safetensors"]
    encoded.clear()
    build()
    assert sum(encoded) == 6


def killed_on_the_way(build: Any) -> None:
    """The second shard has its content, but not yet its name."""
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    build()


def test_a_killed_process_leaves_nothing_half(build: Any, encoded: list[int], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=killed_on_the_way, args=(build,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first, partial = list(shards(cache))
    assert first == "shard-00000.safetensors"
    assert partial.startswith("shard-00001.safetensors.")
    assert partial.endswith(".partial")
    before = shards(cache)
    os.utime(cache / partial, (0, before[partial] / 1e9 - STALE_SECONDS - 1))
    built = build()
    assert sum(encoded) == 6
    assert list(shards(cache)) == [f"shard-0000{k}.safetensors" for k in range(3)]
    assert shards(cache)[first] == before[first]
    assert built.verify() == []


def test_a_partial_file_that_may_be_in_use_is_left_alone(build: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "shard-00000.safetensors.abcd.partial").write_bytes(b"another process")
    build()
    assert len(shards(cache)) == 4


@dataclass(frozen=True)
class ThreadTeam(Team):
    """Processes of a team, played by threads."""

    values: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def gather(self, value: Any) -> list[Any]:
        self.values.append(value)
        self.barrier.wait(timeout=30)
        return self.values


def run_team(build: Any, changes: list[dict[str, Any]]) -> list[Any]:
    values, barrier = [], threading.Barrier(2)
    results: list[Any] = [None, None]

    def work(rank: int) -> None:
        try:
            results[rank] = build(team=ThreadTeam(rank, 2, values, barrier), **changes[rank])
        except InputError as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_processes_build_the_whole_without_overlap(
    build: Any, encoded: list[int], ids: list[int], tmp_path: Path
) -> None:
    seen: list[list[tuple[int, int]]] = [[], []]
    told: list[str] = []
    changes = [
        {"progress": lambda *at, k=rank: seen[k].append(at), "notify": told.append} for rank in range(2)
    ]
    first, second = run_team(build, changes)
    # Shards 0 and 2, of four and two images, and shard 1.
    assert [seen[0][-1], seen[1][-1]] == [(6, 6), (4, 4)]
    assert sum(encoded) == IMAGES
    assert len(first) == len(second) == IMAGES
    assert torch.equal(first.read(ids), second.read(ids))
    assert len(told) <= 1
    alone = build()
    assert sum(encoded) == IMAGES
    assert alone.verify() == []
    assert list(shards(tmp_path / "cache")) == [f"shard-0000{k}.safetensors" for k in range(3)]


def test_the_failure_of_one_process_reaches_the_others(
    build: Any, dataset: ReferDataset, ids: list[int]
) -> None:
    path = dataset.images[sorted(ids)[4]].path  # in shard 1, which the second process builds
    path.write_bytes(path.read_bytes()[:200])
    for result in run_team(build, [{}, {}]):
        assert isinstance(result, InputError)
        assert path.name in str(result)


# ------------------------------------------------------------------------------------------------------ single parts


def test_what_an_image_file_is_known_by(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    gone = ImageFile.of(path)
    assert gone.size == -1
    assert gone.is_still(path)
    path.write_bytes(b"abc")
    os.utime(path, ns=(5_000, 5_000))
    file = ImageFile.of(path)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180's own example
    assert file == ImageFile("a.png", 3, 5_000, sha256)
    assert file.is_still(path)
    assert not gone.is_still(path)
    path.write_bytes(b"abd")
    os.utime(path, ns=(6_000, 6_000))
    assert not file.is_still(path)
    path.unlink()
    assert not file.is_still(path)


def test_no_half_file_gets_its_name(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "bad disk")))
    with pytest.raises(OSError, match="bad disk"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_index_names_what_the_embeddings_are_of(
    build: Any, kind: EmbeddingKind, ids: list[int], tmp_path: Path
) -> None:
    build()
    index = json.loads((tmp_path / "cache" / INDEX_FILE).read_text())
    assert index["kind"]["sam"] == kind.sam
    assert index["kind"]["image_size"] == 128
    assert index["kind"]["shape"] == [64, 16, 16]
    assert [image_id for shard in index["shards"] for image_id in shard] == sorted(ids)
    shard = open_shard(tmp_path / "cache" / "shard-00002.safetensors")
    assert shard is not None
    assert list(shard.images) == sorted(ids)[8:]
