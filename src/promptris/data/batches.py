"""Training batches of a referring segmentation data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from promptris.data.dataset import ReferDataset
from promptris.data.embedding_cache import EmbeddingCache
from promptris.data.pictures import load_record
from promptris.data.records import Referent
from promptris.data.sampling import ImageSchedule, sample_expressions, share_of_rank
from promptris.errors import InputError
from promptris.ops.resizing import pool_masks
from promptris.processing import Processor
from promptris.structures import SegmentationTargets, TrainingBatch


class ReferBatches(Dataset[TrainingBatch]):
    """Item k is the batch of step k on this rank: I images with b expressions each.

    Everything random about an image depends on its place in the whole run alone, not on how places are divided
    among ranks and batches: two ranks of I images see what one process of 2I sees, and so does one process that
    takes them one after the other.

    Args:
        dataset: the data.
        split: which split to train on.
        processor: prepares images and expressions.
        mask_size: side of the truth masks, SAM's 4·H_S.
        images_per_step: I, per rank.
        expressions_per_image: b.
        word_deletion: see `sample_expressions`.
        seed: of everything random here.
        needs_sam: whether a step needs SAM's image.
        rank: this process.
        world_size: number of processes.
        skip_broken: put another image in the place of one that cannot be read, and say so in the batch's
            `skipped`; otherwise that is an InputError.
        embeddings: SAM's image features that were computed before, which then take the place of SAM's pixels.
    """

    def __init__(
        self,
        dataset: ReferDataset,
        split: str,
        processor: Processor,
        mask_size: int,
        images_per_step: int,
        expressions_per_image: int,
        word_deletion: float,
        seed: int,
        needs_sam: Callable[[int], bool],
        rank: int = 0,
        world_size: int = 1,
        skip_broken: bool = False,
        embeddings: EmbeddingCache | None = None,
    ) -> None:
        self.dataset, self.processor, self.mask_size = dataset, processor, mask_size
        self.expressions_per_image, self.word_deletion = expressions_per_image, word_deletion
        self.seed, self.rank, self.needs_sam = seed, rank, needs_sam
        self.skip_broken, self.embeddings = skip_broken, embeddings
        self.referents = dataset.by_image(split)
        self.schedule = ImageSchedule(list(self.referents), images_per_step, seed, rank, world_size)

    def __getitem__(self, step: int) -> TrainingBatch:
        with_sam = self.needs_sam(step)
        pictures, skipped = self._pictures(step, with_sam)
        masks: list[Tensor] = []
        instances: list[int] = []
        texts: list[str] = []
        first = self.schedule.first_place(step)
        for place, image_id in enumerate(pictures, start=first):
            rng = np.random.default_rng((self.seed, place, 1))
            choices = [(r, e.text) for r in self.referents[image_id] for e in r.expressions]
            pairs = sample_expressions(choices, self.expressions_per_image, rng, self.word_deletion)
            masks.append(self._masks([referent for referent, _ in pairs]))
            instances += [referent.ann_id for referent, _ in pairs]
            texts += [text for _, text in pairs]
        index = np.repeat(np.arange(len(pictures)), self.expressions_per_image).tolist()
        images = self.processor.images(list(pictures.values()), with_sam and self.embeddings is None)
        if with_sam and self.embeddings is not None:
            images = replace(images, sam_embeddings=self.embeddings.read(list(pictures)))
        return TrainingBatch(
            images=images,
            expressions=self.processor.expressions(texts, index),
            truth=SegmentationTargets(torch.cat(masks), torch.tensor(instances)),
            image_ids=tuple(pictures),
            seeds=tuple(_seed(self.seed, place) for place in range(first, first + len(pictures))),
            skipped=tuple(skipped),
        )

    def _masks(self, referents: Sequence[Referent]) -> Tensor:
        """Truth of referents of one image, each decoded once: [b, mask_size, mask_size]."""
        distinct = {referent.ann_id: referent for referent in referents}
        stack = torch.from_numpy(np.stack([self.dataset.mask(r) for r in distinct.values()]))
        pooled = pool_masks(stack, (self.mask_size, self.mask_size))
        places = {ann_id: place for place, ann_id in enumerate(distinct)}
        return pooled[[places[referent.ann_id] for referent in referents]]

    def _pictures(self, step: int, with_sam: bool) -> tuple[dict[int, NDArray[np.uint8]], list[str]]:
        """The pixels of a step's images by id, and what was wrong with those that others stand in for."""
        at_least = self.processor.enough(with_sam)
        pictures: dict[int, NDArray[np.uint8]] = {}
        skipped: list[str] = []
        for image_id in self._candidates(step):
            try:
                if with_sam and self.embeddings is not None:
                    self.embeddings.require(image_id)
                pictures[image_id] = load_record(self.dataset.images[image_id], at_least)
            except InputError as error:
                if not self.skip_broken:
                    raise
                skipped.append(str(error))
            if len(pictures) == self.schedule.images_per_step:
                return pictures, skipped
        raise InputError(f"too few images can be read for a step of training; the last error: {skipped[-1]}")

    def _candidates(self, step: int) -> Iterator[int]:
        """The images of a step, then stand-ins: images that no rank has in this step, dealt among the ranks."""
        yield from self.schedule.images(step)
        taken = self.schedule.images_of_all_ranks(step)
        rng = np.random.default_rng((self.seed, step, 2))
        spare = [i for i in rng.permutation(self.schedule.image_ids).tolist() if i not in taken]
        yield from share_of_rank(spare, self.schedule.rank, self.schedule.world_size)


def _seed(seed: int, place: int) -> int:
    """63 bits that belong to a place in a run."""
    return int(np.random.SeedSequence((seed, place, 3)).generate_state(1, np.uint64)[0] >> 1)
