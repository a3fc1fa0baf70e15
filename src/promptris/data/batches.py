"""Training batches of a referring segmentation data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from promptris.data.dataset import ReferDataset
from promptris.data.pictures import load_record
from promptris.data.records import Referent
from promptris.data.sampling import ImageSchedule, sample_expressions
from promptris.errors import InputError
from promptris.ops.resizing import pool_masks
from promptris.processing import Processor
from promptris.structures import SegmentationTargets, TrainingBatch


class ReferBatches(Dataset[TrainingBatch]):
    """Item k is the batch of step k: I images with b expressions each.

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
    ) -> None:
        self.dataset, self.processor, self.mask_size = dataset, processor, mask_size
        self.expressions_per_image, self.word_deletion = expressions_per_image, word_deletion
        self.seed, self.rank, self.needs_sam = seed, rank, needs_sam
        self.skip_broken = skip_broken
        self.referents = dataset.by_image(split)
        self.schedule = ImageSchedule(list(self.referents), images_per_step, seed, rank, world_size)

    def __getitem__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng((self.seed, step, self.rank, 1))
        with_sam = self.needs_sam(step)
        pictures, skipped = self._pictures(step, with_sam)
        masks: list[Tensor] = []
        instances: list[int] = []
        texts: list[str] = []
        for image_id in pictures:
            choices = [(r, e.text) for r in self.referents[image_id] for e in r.expressions]
            pairs = sample_expressions(choices, self.expressions_per_image, rng, self.word_deletion)
            masks.append(self._masks([referent for referent, _ in pairs]))
            instances += [referent.ann_id for referent, _ in pairs]
            texts += [text for _, text in pairs]
        index = np.repeat(np.arange(len(pictures)), self.expressions_per_image).tolist()
        return TrainingBatch(
            images=self.processor.images(list(pictures.values()), with_sam),
            expressions=self.processor.expressions(texts, index),
            truth=SegmentationTargets(torch.cat(masks), torch.tensor(instances)),
            image_ids=tuple(pictures),
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
                pictures[image_id] = load_record(self.dataset.images[image_id], at_least)
            except InputError as error:
                if not self.skip_broken:
                    raise
                skipped.append(str(error))
            if len(pictures) == self.schedule.images_per_step:
                return pictures, skipped
        raise InputError(f"too few images can be read for a step of training; the last error: {skipped[-1]}")

    def _candidates(self, step: int) -> Iterator[int]:
        """The images of a step, then all others as stand-ins, in an order that depends on the step alone."""
        chosen = self.schedule.images(step)
        yield from chosen
        rng = np.random.default_rng((self.seed, step, self.rank, 2))
        yield from (i for i in rng.permutation(self.schedule.image_ids).tolist() if i not in chosen)
