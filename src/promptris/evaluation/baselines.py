"""What answers score that understand nothing, or one word: no model counts as working below them.

And ceilings: the best that a mask on a grid of so many cells can score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from promptris.data.dataset import ReferDataset
from promptris.data.readers.fields import whole_number
from promptris.data.readers.instances import read_instances
from promptris.data.readers.own_layout import (
    is_refer_layout,
    named_rows_file,
    needed_instances_file,
    other_rows_file,
)
from promptris.data.readers.own_rows import read_rows
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
"""A model beats a baseline clearly when its mIoU is this many times as high, or halfway from it to 1."""
ALONE = 0.1
"""Trivial answers mean nothing where more than this share of expressions is about their image's only object."""


@dataclass(frozen=True)
class SceneObject:
    """Something annotated in an image: its category's id and its bool mask [H, W]."""

    category_id: int
    mask: BoolMask


@dataclass(frozen=True)
class Baselines:
    """Scores without a model, as fractions, in the form of `RISMetrics.compute`.

    Attributes:
        trivial: by name (see `BASELINES`). "the category alone" is missing where a referent's category is not
            known, and all are where too many images have only one object that is known (see `ALONE`).
        oracle: by cells per side: the truth pooled to such a grid and enlarged again.
        objects: whose objects were taken: "annotations" of the images, or "referents" alone where the data set
            brings no others.
        unreadable: annotated objects of these images that cannot be read, nor are meant by any expression; they
            are left out.
    """

    trivial: dict[str, dict[str, float]]
    oracle: dict[int, dict[str, float]]
    objects: str
    unreadable: int = 0

    @property
    def best(self) -> tuple[str, float] | None:
        """The trivial baseline with the highest mIoU, and that; None where there is none."""
        if not self.trivial:
            return None
        name = max(self.trivial, key=lambda key: self.trivial[key]["mIoU"])
        return name, self.trivial[name]["mIoU"]

    def beaten_by(self, miou: float) -> bool | None:
        """Whether an mIoU lies clearly above every trivial baseline; None where there is none."""
        if self.best is None:
            return None
        score = self.best[1]
        return miou > min(CLEARLY * score, (1 + score) / 2)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        oracle = {str(grid): scores for grid, scores in self.oracle.items()}
        return {
            "objects": self.objects,
            "unreadable": self.unreadable,
            "trivial": self.trivial,
            "oracle": oracle,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Baselines:
        """Inverse of `to_dict`."""
        oracle = {int(grid): scores for grid, scores in values["oracle"].items()}
        return cls(values["trivial"], oracle, values["objects"], values["unreadable"])


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
        InputError: for an unknown split, one with expressions that mean several objects or none, or a file of
            annotations that cannot be read at all.
    """
    if dataset.is_generalised(split):
        raise InputError(
            f"{dataset.name} has expressions in {split!r} that mean several objects or none, for which there are "
            "no trivial answers: score them without baselines"
        )
    objects_of = _Objects(dataset)
    total, alone, categories_known = 0, 0, True
    trivial = {name: RISMetrics() for name in BASELINES}
    oracle = {grid: RISMetrics() for grid in grids}
    by_image = dataset.by_image(split)
    for done, (image_id, referents) in enumerate(by_image.items(), start=1):
        objects = objects_of(image_id, referents)
        stack = np.stack([one.mask for one in objects])
        categories = np.array([one.category_id for one in objects])
        whole, largest = stack.any(axis=0), stack[stack.sum(axis=(1, 2)).argmax()]
        for referent in referents:
            truth = dataset.mask(referent)
            same = stack[categories == referent.category_id].any(axis=0)
            categories_known &= referent.category_id >= 0
            total += len(referent.expressions)
            alone += len(referent.expressions) if len(objects) == 1 else 0
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
    if not categories_known:
        del trivial["the category alone"]
    if alone > ALONE * total:
        trivial.clear()
    return Baselines(
        {name: metrics.compute() for name, metrics in trivial.items()},
        {grid: metrics.compute() for grid, metrics in oracle.items()},
        "annotations" if objects_of.found_others else "referents",
        objects_of.unreadable,
    )


def through_grid(mask: BoolMask, grid: int) -> BoolMask:
    """A mask [H, W] pooled to grid x grid shares, enlarged bilinearly and cut at one half."""
    shares = pool_masks(torch.from_numpy(mask)[None], (grid, grid))
    return (resize_logits(shares - 0.5, mask.shape)[0] > 0).numpy()


class _Objects:
    """The objects of one image after another: the annotated ones, crowds left out, and whatever is meant.

    Where the data set has no file of annotations, only those that are meant.

    Attributes:
        found_others: whether some image has annotations to take objects from.
        unreadable: annotations that could not be read.
    """

    def __init__(self, dataset: ReferDataset) -> None:
        self.dataset = dataset
        self.found_others, self.unreadable = False, 0
        path = annotations_file(dataset)
        self.annotations = {} if path is None else read_instances(path).annotations
        self.by_image: dict[int, list[int]] = defaultdict(list)
        for ann_id, annotation in self.annotations.items():
            # What names no image belongs to none.
            with suppress(InputError):
                self.by_image[whole_number(annotation.get("image_id"), "image_id")].append(ann_id)

    def __call__(self, image_id: int, referents: Sequence[Referent]) -> list[SceneObject]:
        # Those that are meant have been read with the data set, wherever they come from.
        meant = {
            one.ann_id: SceneObject(one.category_id, self.dataset.mask(one))
            for one in {one.ann_id: one for one in referents}.values()
        }
        there = self.by_image.get(image_id, [])
        self.found_others |= bool(there)
        shape = next(iter(meant.values())).mask.shape
        found = [meant[ann_id] if ann_id in meant else self._read(ann_id, shape) for ann_id in there]
        found += [one for ann_id, one in meant.items() if ann_id not in there]
        return [one for one in found if one is not None and one.mask.any()] or list(meant.values())

    def _read(self, ann_id: int, shape: tuple[int, ...]) -> SceneObject | None:
        annotation = self.annotations[ann_id]
        if annotation.get("iscrowd"):
            return None
        try:
            given = annotation.get("category_id")
            category_id = -1 if given is None else whole_number(given, "category_id")
            return SceneObject(category_id, segmentation_to_mask(annotation.get("segmentation"), *shape))
        except InputError:
            self.unreadable += 1
            return None


def annotations_file(dataset: ReferDataset) -> Path | None:
    """The COCO file that a data set was read from; None where it brings no annotations but those it means."""
    folder = dataset.root / dataset.name
    if is_refer_layout(folder):
        return folder / "instances.json"
    if dataset.root.absolute().name != dataset.name:
        return None
    rows_file = named_rows_file(dataset.root) or other_rows_file(dataset.root)
    return None if rows_file is None else needed_instances_file(dataset.root, read_rows(rows_file))
