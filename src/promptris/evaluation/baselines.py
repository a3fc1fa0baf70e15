"""What answers score that understand nothing, or one word: no model counts as working below them.

And ceilings: the best that a mask on a grid of so many cells can score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from promptris.data.dataset import ReferDataset
from promptris.data.readers.instances import Instances, read_instances
from promptris.data.records import Referent
from promptris.errors import InputError
from promptris.metrics import RISMetrics
from promptris.ops.resizing import pool_masks, resize_logits
from promptris.ops.run_lengths import segmentation_to_mask

BoolMask = NDArray[np.bool_]
ORACLE_GRIDS = (8, 12, 16, 32)
"""Cells per side of the oracles: the coarse masks of small and of full-size CLIPs lie among them."""
BASELINES = ("all objects", "largest object", "random object", "the category alone")
CLEARLY = 1.25
"""A model beats a baseline clearly when its mIoU is this many times as high."""


@dataclass(frozen=True)
class SceneObject:
    """Something annotated in an image: its category's id and its bool mask [H, W]."""

    category_id: int
    mask: BoolMask


@dataclass(frozen=True)
class Baselines:
    """Scores without a model, as fractions, in the form of `RISMetrics.compute`.

    Attributes:
        trivial: by name (see `BASELINES`).
        oracle: by cells per side: the truth pooled to such a grid and enlarged again.
        objects: whose objects were taken: "annotations" of the images, or "referents" alone where the data set
            brings no others.
    """

    trivial: dict[str, dict[str, float]]
    oracle: dict[int, dict[str, float]]
    objects: str

    @property
    def best(self) -> tuple[str, float]:
        """The trivial baseline with the highest mIoU, and that."""
        name = max(self.trivial, key=lambda key: self.trivial[key]["mIoU"])
        return name, self.trivial[name]["mIoU"]

    def beaten_by(self, miou: float) -> bool:
        """Whether an mIoU lies clearly above every trivial baseline."""
        return miou > CLEARLY * self.best[1]

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        oracle = {str(grid): scores for grid, scores in self.oracle.items()}
        return {"objects": self.objects, "trivial": self.trivial, "oracle": oracle}


def score_baselines(
    dataset: ReferDataset,
    split: str,
    seed: int = 0,
    grids: Sequence[int] = ORACLE_GRIDS,
    progress: Callable[[int, int], None] | None = None,
) -> Baselines:
    """Score every trivial answer on a split, by the one protocol.

    All objects: their union. Random object: one of the image's, drawn for each expression. The category alone:
    the union of all objects of the referent's category, as an answer that understands the noun and nothing else.

    Args:
        dataset: the data.
        split: which split.
        seed: of the random object.
        grids: cells per side of the oracles.
        progress: called with (images done, images in all).

    Raises:
        InputError: for an unknown split or an annotation that cannot be read.
    """
    find, origin = object_finder(dataset)
    trivial = {name: RISMetrics() for name in BASELINES}
    oracle = {grid: RISMetrics() for grid in grids}
    by_image = dataset.by_image(split)
    for done, (image_id, referents) in enumerate(by_image.items(), start=1):
        objects = find(image_id, referents)
        stack = np.stack([one.mask for one in objects])
        categories = np.array([one.category_id for one in objects])
        whole, largest = stack.any(axis=0), stack[stack.sum(axis=(1, 2)).argmax()]
        for referent in referents:
            truth = dataset.mask(referent)
            same = stack[categories == referent.category_id].any(axis=0)
            pooled = {grid: through_grid(truth, grid) for grid in grids}
            for expression in referent.expressions:
                chance = np.random.default_rng((seed, expression.sent_id))
                answers = (whole, largest, stack[chance.integers(len(stack))], same)
                ids = (image_id, referent.ann_id)
                for name, answer in zip(BASELINES, answers, strict=True):
                    trivial[name].update(answer, truth, *ids)
                for grid, answer in pooled.items():
                    oracle[grid].update(answer, truth, *ids)
        if progress is not None:
            progress(done, len(by_image))
    return Baselines(
        {name: metrics.compute() for name, metrics in trivial.items()},
        {grid: metrics.compute() for grid, metrics in oracle.items()},
        origin,
    )


def through_grid(mask: BoolMask, grid: int) -> BoolMask:
    """A mask [H, W] pooled to grid x grid shares, enlarged bilinearly and cut at one half."""
    shares = pool_masks(torch.from_numpy(mask)[None], (grid, grid))
    return (resize_logits(shares - 0.5, mask.shape)[0] > 0).numpy()


Finder = Callable[[int, Sequence[Referent]], list[SceneObject]]


def object_finder(dataset: ReferDataset) -> tuple[Finder, str]:
    """A function (image id, its referents) -> its objects, and where these come from.

    Objects are all annotations of the image where the data set has an instances file, crowds left out; otherwise
    those that the given referents mean.
    """
    path = dataset.root / dataset.name / "instances.json"
    if not path.is_file():
        return lambda image_id, referents: _meant(dataset, referents), "referents"
    instances = read_instances(path)
    by_image: Mapping[int, list[int]] = defaultdict(list)
    for ann_id, annotation in instances.annotations.items():
        if not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(ann_id)

    def annotated(image_id: int, referents: Sequence[Referent]) -> list[SceneObject]:
        objects = [_read_object(instances, ann_id) for ann_id in by_image.get(image_id, ())]
        return [one for one in objects if one.mask.any()] or _meant(dataset, referents)

    return annotated, "annotations"


def _meant(dataset: ReferDataset, referents: Sequence[Referent]) -> list[SceneObject]:
    unique = {referent.ann_id: referent for referent in referents}
    return [SceneObject(one.category_id, dataset.mask(one)) for one in unique.values()]


def _read_object(instances: Instances, ann_id: int) -> SceneObject:
    annotation = instances.annotations[ann_id]
    height, width = instances.size(annotation["image_id"])
    try:
        mask = segmentation_to_mask(annotation["segmentation"], height, width)
        return SceneObject(int(annotation["category_id"]), mask)
    except (KeyError, InputError) as error:
        raise InputError(f"{instances.where}, annotation {ann_id}: {error}") from error
