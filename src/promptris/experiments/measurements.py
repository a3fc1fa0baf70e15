"""What one evaluation leaves behind: pixel counts of every expression, from which any metric can be made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from promptris.config import PromptName
from promptris.data.dataset import ReferDataset
from promptris.errors import InputError
from promptris.evaluation.protocol import Scored, Segmenter, score
from promptris.ops.masks import mask_counts

Ints = NDArray[np.int64]
MASKS = ("final", "coarse")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
METRICS = ("oIoU", "mIoU", *(f"P@{x:g}" for x in THRESHOLDS), "ImgAcc", "InstAcc")


@dataclass(frozen=True)
class Measurements:
    """Counts of N expressions, in the order of the protocol.

    Attributes:
        image_id, ann_id, sent_id: [N] what each expression belongs to.
        intersection, union: pixels by kind of mask ("final", "coarse"), each [N].
    """

    image_id: Ints
    ann_id: Ints
    sent_id: Ints
    intersection: dict[str, Ints]
    union: dict[str, Ints]

    def __len__(self) -> int:
        return len(self.sent_id)

    def iou(self, masks: str = "final") -> NDArray[np.float64]:
        """[N] IoU in [0, 1]; 1 where both masks are empty."""
        union = self.union[masks]
        return np.where(union > 0, self.intersection[masks] / np.maximum(union, 1), 1.0)

    def parts(self, metric: str, masks: str = "final") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A metric as a ratio of sums over images: numerators and denominators [images].

        Every metric of the protocol is of this form, so that images can be drawn again without computing anything
        twice.

        Raises:
            InputError: for an unknown metric.
        """
        _, image = np.unique(self.image_id, return_inverse=True)
        iou = self.iou(masks)
        if metric == "oIoU":
            return _sums(image, self.intersection[masks]), _sums(image, self.union[masks])
        if metric == "mIoU":
            return _sums(image, iou), _sums(image, np.ones(len(iou)))
        if metric.startswith("P@") and metric[2:] in {f"{x:g}" for x in THRESHOLDS}:
            return _sums(image, iou > float(metric[2:])), _sums(image, np.ones(len(iou)))
        if metric == "ImgAcc":
            count = _sums(image, np.ones(len(iou)))
            return _sums(image, iou) / count, np.ones(len(count))
        if metric == "InstAcc":
            # Paired with the image, for data whose annotation ids are unique within an image only.
            pairs = np.stack([self.image_id, self.ann_id])
            _, first, instance = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
            instance = instance.reshape(-1)  # NumPy 2.0 gives it the shape of `pairs` cut down
            means = _sums(instance, iou) / _sums(instance, np.ones(len(iou)))
            owner, images = image[first], int(image.max()) + 1
            above = np.bincount(owner, means, minlength=images)
            return above.astype(np.float64), np.bincount(owner, minlength=images).astype(np.float64)
        raise InputError(f"there is no metric {metric!r}: choose from {', '.join(METRICS)}")

    def where(self, rows: NDArray[np.bool_]) -> Measurements:
        """Some of the expressions, by a mask [N]."""
        return Measurements(
            self.image_id[rows],
            self.ann_id[rows],
            self.sent_id[rows],
            {masks: values[rows] for masks, values in self.intersection.items()},
            {masks: values[rows] for masks, values in self.union.items()},
        )

    def value(self, metric: str, masks: str = "final") -> float:
        """A metric over all images, as a fraction."""
        above, below = self.parts(metric, masks)
        return float(above.sum() / below.sum())

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write them with facts about where they come from; the file appears whole or not at all."""
        arrays = {"image_id": self.image_id, "ann_id": self.ann_id, "sent_id": self.sent_id}
        for masks in MASKS:
            arrays[f"{masks}.intersection"] = self.intersection[masks]
            arrays[f"{masks}.union"] = self.union[masks]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # safetensors writes the memory of an array as it lies, strides or not.
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        save_file(arrays, partial, metadata={"facts": json.dumps(facts)})
        partial.replace(path)

    @staticmethod
    def facts(path: Path) -> dict[str, Any]:
        """What was saved with some measurements; nothing where the file is damaged."""
        try:
            with safe_open(path, "np") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {}).get("facts", "{}"))
        except (OSError, SafetensorError):
            return {}
        return facts

    @classmethod
    def load(cls, path: Path) -> Measurements:
        """Inverse of `save`; an InputError names a file that is damaged."""
        try:
            arrays = load_file(path)
            return cls(
                arrays["image_id"],
                arrays["ann_id"],
                arrays["sent_id"],
                {masks: arrays[f"{masks}.intersection"] for masks in MASKS},
                {masks: arrays[f"{masks}.union"] for masks in MASKS},
            )
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"{path} holds no measurements ({error}): delete it to measure again") from error


class Measuring:
    """Collects scored expressions."""

    def __init__(self) -> None:
        self._ids: list[tuple[int, int, int]] = []
        self._counts: list[tuple[int, int, int, int]] = []

    def add(self, scored: Scored) -> None:
        """Count the pixels of one expression."""
        prediction, truth = scored.prediction, scored.truth
        final, coarse = mask_counts(prediction.mask, truth), mask_counts(prediction.coarse_mask, truth)
        referent = scored.referent
        self._ids.append((referent.image_id, referent.ann_id, scored.expression.sent_id))
        self._counts.append((*final, *coarse))

    def measurements(self) -> Measurements:
        """Everything added so far.

        Raises:
            InputError: when that is nothing.
        """
        if not self._ids:
            raise InputError("there is no expression to measure")
        ids, counts = np.array(self._ids, dtype=np.int64).T, np.array(self._counts, dtype=np.int64).T
        return Measurements(
            ids[0],
            ids[1],
            ids[2],
            {"final": counts[0], "coarse": counts[2]},
            {"final": counts[1], "coarse": counts[3]},
        )


def measure(
    segmenter: Segmenter,
    dataset: ReferDataset,
    split: str,
    prompts: tuple[PromptName, ...] | None = None,
) -> Measurements:
    """Measure a model, or another method, on a split by the one protocol; see `score`."""
    measuring = Measuring()
    for scored in score(segmenter, dataset, split, prompts):
        measuring.add(scored)
    return measuring.measurements()


def _sums(groups: Ints, values: Sequence[float] | NDArray[np.generic]) -> NDArray[np.float64]:
    return np.bincount(groups, np.asarray(values, dtype=np.float64)).astype(np.float64)
