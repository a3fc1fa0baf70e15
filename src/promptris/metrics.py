"""Scores of referring segmentation: one definition for training, evaluation and every table.

Each (referent, expression) pair is one sample, its mask compared with the truth at the original image size.
Every number is a fraction in [0, 1].
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from torch import Tensor

from promptris.errors import InputError
from promptris.ops.masks import BoolMask, iou_from_counts, mask_counts

__all__ = ["RISMetrics", "SampleScore", "iou_from_counts"]


@dataclass(frozen=True)
class SampleScore:
    """One sample: the pixels that prediction and truth share, that either has, and what they belong to."""

    intersection: int
    union: int
    image_id: Hashable
    ann_id: Hashable

    @property
    def iou(self) -> float:
        """Intersection over union, in [0, 1]; 1 when both masks are empty, 0 when only one is."""
        return iou_from_counts(self.intersection, self.union)


class RISMetrics:
    """Collects samples and computes oIoU, mIoU, P@X, ImgAcc and InstAcc over them.

    - oIoU: pixels shared over pixels covered, both summed over all samples, so large objects count for more.
    - mIoU: mean IoU of the samples.
    - P@X: share of the samples with IoU above X, X itself not included.
    - ImgAcc, InstAcc: mean over images, over instances, of the mean IoU of their expressions.

    Pixel counts are exact integers and means are correctly rounded sums, so the result does not depend on the
    order of the samples nor on how they were spread over processes.

    A sample may carry an id of its own (say, the sentence id). The first sample under an id counts and later
    ones are ignored: a distributed sampler that pads its last batch by repeating samples leaves no trace.
    """

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9)) -> None:
        for threshold in thresholds:
            if not 0 <= threshold < 1:
                raise InputError(f"The IoU threshold {threshold} is outside [0, 1).")
        self.thresholds = tuple(thresholds)
        self._anonymous: list[SampleScore] = []
        self._identified: dict[Hashable, SampleScore] = {}

    def __len__(self) -> int:
        return len(self._anonymous) + len(self._identified)

    def reset(self) -> None:
        """Forget every sample."""
        self._anonymous = []
        self._identified = {}

    def update(
        self,
        pred_mask: BoolMask | Tensor,
        true_mask: BoolMask | Tensor,
        image_id: Hashable,
        ann_id: Hashable,
        sample_id: Hashable | None = None,
    ) -> float:
        """Add one sample and return its IoU.

        Args:
            pred_mask, true_mask: bool [H, W] arrays or tensors, at the original size of the image.
            image_id: the image, for ImgAcc.
            ann_id: the instance, for InstAcc; its annotation id, the same for all of its expressions.
            sample_id: optional id of the (referent, expression) pair, by which repetitions are recognised.

        Raises InputError when the masks differ in size or are not boolean.
        """
        intersection, union = mask_counts(pred_mask, true_mask)
        sample = SampleScore(intersection, union, _plain(image_id), _plain(ann_id))
        self._add(sample, _plain(sample_id))
        return sample.iou

    def merge(self, other: RISMetrics) -> None:
        """Take over the samples of another process; those already known by their id are skipped."""
        if other is self:
            raise InputError("Metrics cannot be merged with themselves: every sample would count twice.")
        if other.thresholds != self.thresholds:
            raise InputError(f"The thresholds differ: {self.thresholds} here, {other.thresholds} there.")
        self._anonymous.extend(other._anonymous)
        for sample_id, sample in other._identified.items():
            self._add(sample, sample_id)

    def compute(self) -> dict[str, float]:
        """Scores as fractions: `oIoU`, `mIoU`, `P@0.5` and so on, `ImgAcc`, `InstAcc`; and the int `count`.

        Raises InputError when no sample was added.
        """
        samples = [*self._anonymous, *self._identified.values()]
        if not samples:
            raise InputError(
                "There is nothing to score: add at least one sample before computing the metrics."
            )
        ious = [sample.iou for sample in samples]
        scores: dict[str, float] = {
            "oIoU": iou_from_counts(sum(s.intersection for s in samples), sum(s.union for s in samples)),
            "mIoU": _mean(ious),
        }
        for threshold in self.thresholds:
            scores[f"P@{threshold:g}"] = sum(iou > threshold for iou in ious) / len(ious)
        scores["ImgAcc"] = _mean_of_groups((s.image_id for s in samples), ious)
        # Paired with the image, for data whose annotation ids are unique within an image only; same for COCO.
        scores["InstAcc"] = _mean_of_groups(((s.image_id, s.ann_id) for s in samples), ious)
        scores["count"] = len(samples)
        return scores

    def _add(self, sample: SampleScore, sample_id: Hashable | None) -> None:
        if sample_id is None:
            self._anonymous.append(sample)
        else:
            self._identified.setdefault(sample_id, sample)


def _plain(key: Hashable) -> Hashable:
    """An id out of a batch is a tensor, which hashes by identity: equal ids would part."""
    return key.item() if isinstance(key, Tensor) else key


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _mean_of_groups(keys: Iterable[Hashable], values: Iterable[float]) -> float:
    """Mean over the groups of the mean within each group."""
    groups: dict[Hashable, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return _mean([_mean(group) for group in groups.values()])
