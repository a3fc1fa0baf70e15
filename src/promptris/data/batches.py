"""Training batches of a referring segmentation data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import Dataset

from promptris.data.refer import ReferDataset, Referent
from promptris.data.sampling import ImageSchedule, sample_expressions
from promptris.ops.masks import pool_masks
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
    ) -> None:
        self.dataset, self.processor, self.mask_size = dataset, processor, mask_size
        self.expressions_per_image, self.word_deletion = expressions_per_image, word_deletion
        self.seed, self.rank, self.needs_sam = seed, rank, needs_sam
        self.choices: dict[int, list[tuple[Referent, str]]] = {}
        for referent, expression in dataset.samples(split):
            self.choices.setdefault(referent.image_id, []).append((referent, expression.text))
        self.schedule = ImageSchedule(list(self.choices), images_per_step, seed, rank, world_size)

    def __getitem__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng((self.seed, step, self.rank, 1))
        image_ids = self.schedule.images(step)
        referents: list[Referent] = []
        texts: list[str] = []
        for image_id in image_ids:
            pairs = sample_expressions(
                self.choices[image_id], self.expressions_per_image, rng, self.word_deletion
            )
            referents += [referent for referent, _ in pairs]
            texts += [text for _, text in pairs]
        index = np.repeat(np.arange(len(image_ids)), self.expressions_per_image).tolist()
        size = (self.mask_size, self.mask_size)
        masks = [pool_masks(torch.from_numpy(self.dataset.mask(r))[None], size) for r in referents]
        return TrainingBatch(
            images=self.processor.images(
                [self.dataset.images[i].path for i in image_ids], with_sam=self.needs_sam(step)
            ),
            expressions=self.processor.expressions(texts, index),
            truth=SegmentationTargets(torch.cat(masks), torch.tensor([r.ann_id for r in referents])),
            image_ids=tuple(image_ids),
        )
