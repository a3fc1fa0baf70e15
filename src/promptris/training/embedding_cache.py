"""Fills a cache of SAM's image embeddings, alone or together with other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import lightning as L
import torch
from jaxtyping import BFloat16
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from promptris.data.dataset import ReferDataset
from promptris.data.embedding_cache import (
    PER_SHARD,
    CachePlan,
    EmbeddingCache,
    EmbeddingKind,
    plan_embedding_cache,
    write_index,
)
from promptris.data.embedding_shards import ImageFile, remove_stale, write_shard
from promptris.data.fetching.archives import free_bytes
from promptris.data.index import Notify, silent
from promptris.data.pictures import load_record
from promptris.errors import InputError
from promptris.modeling.content_hash import content_hash
from promptris.modeling.prompt_ris import PromptRIS
from promptris.processing import SAM_MEAN, SAM_STD, normalise, stretch
from promptris.team import ALONE, Team

Progress = Callable[[int, int], None]
"""(images done, images to do), of this process."""


def embedding_kind(model: PromptRIS) -> EmbeddingKind:
    """Of the embeddings that a model's SAM makes. Hashes its weights: a second or a few; before they are sharded."""
    sam = model.sam
    return EmbeddingKind(
        sam=content_hash(sam.sam),
        image_size=sam.image_size,
        decode_size=model.processor().enough(with_sam=True),
        shape=(sam.dim, sam.grid_size, sam.grid_size),
    )


def build_embedding_cache(
    folder: str | Path,
    model: PromptRIS,
    dataset: ReferDataset,
    image_ids: Iterable[int],
    *,
    batch_size: int = 8,
    per_shard: int = PER_SHARD,
    workers: int = 0,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
    skip_broken: bool = False,
    check: bool = True,
    progress: Progress | None = None,
    notify: Notify = silent,
    team: Team = ALONE,
) -> EmbeddingCache:
    """Encode the images whose embeddings are not in a cache yet, and open it.

    Shards that are whole, unharmed and of these very images are kept; shards that are missing, damaged or have an
    image that has changed since are built. Every process of a team builds its own part, and all of them return
    when all is done.

    Args:
        folder: of the cache; made if needed.
        model: whose SAM encodes.
        dataset: where the images are.
        image_ids: images to encode.
        batch_size: images that go through SAM at once.
        per_shard: images in a new shard, all of whose embeddings are in memory until it is written.
        workers: processes that read images.
        device: where to encode; SAM is moved there and back. None is where it is.
        autocast: compute in this type (bfloat16 or float16) where torch thinks it safe; None in the model's own.
        skip_broken: leave out images that cannot be read, see `EmbeddingCache.left_out`.
        check: read the shards that are there and compare their checksums.
        progress: told after every batch.
        notify: told the size in a sentence before anything is computed, by the first process.
        team: the processes that build this cache together, each on the same files.

    Raises:
        InputError: see `plan_embedding_cache`; there is not enough room on the disk, which is found out before
            anything is computed, or it is full after all or cannot be written, which leaves the finished shards;
            an image cannot be read; SAM gives values that are no finite numbers.
    """
    folder, image_ids = Path(folder), list(image_ids)
    failure: str | None = None
    try:
        kind = embedding_kind(model)
        plan = plan_embedding_cache(folder, kind, dataset, image_ids, per_shard)
        own = [number for number in plan.wanted if number % team.size == team.rank]
        if check:
            plan = _without_damaged(plan, own)
        if plan.missing and team.rank == 0:
            notify(plan.summary())
        plan.require_space()
        with _writing(plan):
            write_index(plan)
        todo = [number for number in own if number not in plan.present]
        if todo:
            _fill(plan, todo, model, dataset, batch_size, workers, device, autocast, skip_broken, progress)
    except InputError as error:
        if team.size == 1:
            raise
        failure = str(error)
    # The others wait here, so they have to learn of a failure too.
    failures = [text for text in team.gather(failure) if text is not None]
    if failures:
        raise InputError(failures[0])
    return EmbeddingCache.open(folder, kind, dataset, image_ids)


def _without_damaged(plan: CachePlan, numbers: Sequence[int]) -> CachePlan:
    damaged = [n for n in numbers if n in plan.present and not plan.present[n].is_intact()]
    kept = {number: shard for number, shard in plan.present.items() if number not in damaged}
    replaced = plan.replaced + sum(plan.present[number].stamp[0] for number in damaged)
    return replace(plan, present=kept, replaced=replaced)


def _fill(
    plan: CachePlan,
    numbers: Sequence[int],
    model: PromptRIS,
    dataset: ReferDataset,
    batch_size: int,
    workers: int,
    device: torch.device | None,
    autocast: torch.dtype | None,
    skip_broken: bool,
    progress: Progress | None,
) -> None:
    """Build some shards of a cache, each being written as soon as it is complete."""
    chunks = [
        plan.wanted[number][k : k + batch_size]
        for number in numbers
        for k in range(0, len(plan.wanted[number]), batch_size)
    ]
    squares = _SquareBatches(dataset, chunks, plan.kind, skip_broken)
    # With a generator of its own: a loader draws a seed, and training must not depend on what is cached.
    loader = iter(DataLoader(squares, batch_size=None, num_workers=workers, generator=torch.Generator()))
    done, total = 0, sum(map(len, chunks))
    home = next(model.sam.parameters()).device
    try:
        model.sam.to(device or home)
        for number in numbers:
            remove_stale(plan.path(number))
            ids = plan.wanted[number]
            embeddings = torch.empty(len(ids), *plan.kind.shape, dtype=torch.bfloat16)
            images: dict[int, ImageFile] = {}
            left_out: dict[int, tuple[ImageFile, str]] = {}
            for batch in _take(loader, len(ids)):
                if batch.fault is not None:
                    raise InputError(batch.fault)
                rows = slice(len(images), len(images) + len(batch.images))
                if batch.images:
                    embeddings[rows] = encode_squares(model, batch.pixels, autocast)
                    _require_finite(embeddings[rows], batch, dataset)
                images |= batch.images
                left_out |= batch.left_out
                done += len(batch.images) + len(batch.left_out)
                if progress is not None:
                    progress(done, total)
            with _writing(plan):
                write_shard(
                    plan.path(number), plan.kind.to_dict(), images, left_out, embeddings[: len(images)]
                )
    finally:
        model.sam.to(home)


@contextmanager
def _writing(plan: CachePlan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write the SAM embedding cache in {plan.folder} ({error.strerror or error}; "
            f"{free_bytes(plan.folder) / 1e6:.0f} MB are free): finished shards are kept, make room and run again"
        ) from error


@torch.no_grad()
def encode_squares(
    model: PromptRIS, pixels: Tensor, autocast: torch.dtype | None = None
) -> BFloat16[Tensor, "I D_S H_S W_S"]:
    """SAM's embeddings of uint8 squares [I, 3, s, s], rounded to bfloat16."""
    weight = next(model.sam.parameters())
    ready = normalise(pixels.to(weight.device), SAM_MEAN, SAM_STD).to(weight.dtype)
    with torch.autocast(weight.device.type, dtype=autocast, enabled=autocast is not None):
        return model.sam.encode_image(ready).to(torch.bfloat16)


@dataclass
class _Squares:
    """Some images as SAM takes them.

    Attributes:
        pixels: [I, 3, s, s] uint8, the images of `images` in their order.
        images: files of the images that could be read, by id.
        left_out: the others, and why.
        fault: what is wrong, when nothing may be left out.
    """

    pixels: Tensor
    images: dict[int, ImageFile] = field(default_factory=dict)
    left_out: dict[int, tuple[ImageFile, str]] = field(default_factory=dict)
    fault: str | None = None


class _SquareBatches(Dataset[_Squares]):
    def __init__(
        self,
        dataset: ReferDataset,
        chunks: Sequence[tuple[int, ...]],
        kind: EmbeddingKind,
        skip_broken: bool,
    ) -> None:
        self.dataset, self.chunks, self.kind, self.skip_broken = dataset, chunks, kind, skip_broken

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> _Squares:
        side = self.kind.image_size
        rows = torch.empty(len(self.chunks[number]), side, side, 3, dtype=torch.uint8)
        batch = _Squares(rows)
        for image_id in self.chunks[number]:
            record = self.dataset.images[image_id]
            file = ImageFile.of(record.path)
            try:
                pixels = load_record(record, self.kind.decode_size)
            except InputError as error:
                # Told as a value: an error from a worker process would come with its whole traceback.
                if not self.skip_broken:
                    batch.fault = str(error)
                    break
                batch.left_out[image_id] = (file, str(error))
                continue
            rows[len(batch.images)] = stretch(pixels, side, "bilinear")
            batch.images[image_id] = file
        batch.pixels = rows[: len(batch.images)].permute(0, 3, 1, 2)
        return batch


def _take(loader: Iterator[_Squares], images: int) -> Iterator[_Squares]:
    """The next batches that make up so many images; batches do not reach over the end of a shard."""
    while images > 0:
        batch = next(loader)
        yield batch
        images -= len(batch.images) + len(batch.left_out)


def _require_finite(embeddings: Tensor, batch: _Squares, dataset: ReferDataset) -> None:
    for image_id, embedding in zip(batch.images, embeddings, strict=True):
        if not embedding.isfinite().all():
            raise InputError(
                f"SAM's embedding of {dataset.images[image_id].path} is not finite: compute in float32 or bfloat16, "
                "and check SAM's weights"
            )


class BuildEmbeddings(L.Callback):
    """Fills the cache of a run as soon as its processes are connected; `cache` is there when batches are made.

    Args:
        folder: of the cache.
        model: whose SAM encodes.
        dataset: where the images are.
        image_ids: images to encode.
        workers: processes that read images.
        autocast: precision to encode in; None is the model's own.
        skip_broken: leave out images that cannot be read.
        notify: told what is done, in sentences.
    """

    def __init__(
        self,
        folder: str,
        model: PromptRIS,
        dataset: ReferDataset,
        image_ids: Sequence[int],
        workers: int,
        autocast: torch.dtype | None,
        skip_broken: bool,
        notify: Notify = silent,
    ) -> None:
        self.folder, self.model, self.dataset, self.image_ids = folder, model, dataset, image_ids
        self.workers, self.autocast, self.skip_broken = workers, autocast, skip_broken
        self.notify = notify
        self.cache: EmbeddingCache | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.cache = build_embedding_cache(
            self.folder,
            self.model,
            self.dataset,
            self.image_ids,
            workers=self.workers,
            device=trainer.strategy.root_device,
            autocast=self.autocast,
            skip_broken=self.skip_broken,
            notify=self.notify if trainer.is_global_zero else silent,
            team=Team(trainer.global_rank, trainer.world_size),
        )
