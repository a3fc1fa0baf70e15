"""Scores of referring segmentation: one definition for training, evaluation and every table.

Each (referent, expression) pair is one sample, its mask compared with the truth at the original image size.
Every number is a fraction in [0, 1].
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Generic, TypeVar

from torch import Tensor

from promptris.errors import InputError
from promptris.ops.masks import BoolMask, as_bool_mask, iou_from_counts, mask_counts

__all__ = ["GRESMetrics", "GRESScore", "RISMetrics", "SampleScore", "iou_from_counts"]

Sample = TypeVar("Sample")


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
        self._samples: _Samples[SampleScore] = _Samples()

    def __len__(self) -> int:
        return len(self._samples)

    def reset(self) -> None:
        """Forget every sample."""
        self._samples = _Samples()

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
        self._samples.add(sample, sample_id)
        return sample.iou

    def merge(self, other: RISMetrics) -> None:
        """Take over the samples of another process; those already known by their id are skipped."""
        if other.thresholds != self.thresholds:
            raise InputError(f"The thresholds differ: {self.thresholds} here, {other.thresholds} there.")
        self._samples.merge(other._samples)

    def compute(self) -> dict[str, float]:
        """Scores as fractions: `oIoU`, `mIoU`, `P@0.5` and so on, `ImgAcc`, `InstAcc`; and the int `count`.

        Raises InputError when no sample was added.
        """
        samples = self._samples.all()
        ious = [sample.iou for sample in samples]
        scores: dict[str, float] = {
            "oIoU": _iou_of_sums(samples),
            "mIoU": _mean(ious),
        }
        for threshold in self.thresholds:
            scores[f"P@{threshold:g}"] = sum(iou > threshold for iou in ious) / len(ious)
        scores["ImgAcc"] = _mean_of_groups((s.image_id for s in samples), ious)
        # Paired with the image, for data whose annotation ids are unique within an image only; same for COCO.
        scores["InstAcc"] = _mean_of_groups(((s.image_id, s.ann_id) for s in samples), ious)
        scores["count"] = len(samples)
        return scores


@dataclass(frozen=True)
class GRESScore:
    """One sample of generalised RIS: the pixels that count for it, and whether a target is, and was found.

    Attributes:
        intersection, union: pixels that count; both 0 where it was found that there is no target.
        has_target: whether the expression means anything in the image.
        declared_empty: whether the prediction says that it means nothing.
    """

    intersection: int
    union: int
    has_target: bool
    declared_empty: bool

    @property
    def iou(self) -> float:
        """In [0, 1]; for an expression without a target 1 when that was found, else 0."""
        return iou_from_counts(self.intersection, self.union)


class GRESMetrics:
    """Scores of generalised RIS, where an expression may mean several objects or none.

    The rules are those of gRefCOCO (Liu, Ding and Jiang, GRES: Generalized Referring Expression Segmentation,
    CVPR 2023). An expression has no target when its true mask is empty; a prediction declares the same when
    fewer than `min_pixels` of its pixels are set, or none.

    - gIoU: mean IoU of all samples. Where there is no target, the IoU is 1 if that was declared, else 0.
    - cIoU: pixels shared over pixels covered, both summed over all samples. Where there is no target, a
      declaration adds nothing and any other prediction adds its pixels to those covered. Where a target is
      declared absent, no pixel is shared, and the union is counted as it is.
    - N-acc: share of the samples without a target that were declared so.
    - T-acc: share of the samples with a target that were not declared to have none. (Evaluation programs in
      circulation differ here: some print another quotient under this name.)

    Pixel counts are exact integers and the mean is a correctly rounded sum, so the order of the samples makes
    no difference. Samples with an id are recognised when they come again, as in `RISMetrics`.

    Args:
        min_pixels: masks of fewer pixels declare "no target". With 0, the default, only empty masks do; a few
            dozen forgive the specks of a model that has no output of its own for "nothing".
    """

    def __init__(self, min_pixels: int = 0) -> None:
        if min_pixels < 0:
            raise InputError(f"min_pixels is {min_pixels}: a mask cannot have fewer than 0 pixels.")
        self.min_pixels = min_pixels
        self._samples: _Samples[GRESScore] = _Samples()

    def __len__(self) -> int:
        return len(self._samples)

    def reset(self) -> None:
        """Forget every sample."""
        self._samples = _Samples()

    def update(
        self, pred_mask: BoolMask | Tensor, true_mask: BoolMask | Tensor, sample_id: Hashable | None = None
    ) -> float:
        """Add one sample and return its IoU.

        Args:
            pred_mask, true_mask: bool [H, W] arrays or tensors, at the original size of the image; the truth is
                the union of all targets, empty when there is none.
            sample_id: optional id of the (referent, expression) pair, by which repetitions are recognised.

        Raises InputError when the masks differ in size or are not boolean.
        """
        intersection, union = mask_counts(pred_mask, true_mask)
        predicted, true = (int(as_bool_mask(mask).sum()) for mask in (pred_mask, true_mask))
        declared_empty = predicted < max(self.min_pixels, 1)
        if declared_empty:
            intersection, union = 0, union if true else 0
        sample = GRESScore(intersection, union, true > 0, declared_empty)
        self._samples.add(sample, sample_id)
        return sample.iou

    def merge(self, other: GRESMetrics) -> None:
        """Take over the samples of another process; those already known by their id are skipped."""
        if other.min_pixels != self.min_pixels:
            raise InputError(f"min_pixels differs: {self.min_pixels} here, {other.min_pixels} there.")
        self._samples.merge(other._samples)

    def compute(self) -> dict[str, float | None]:
        """`gIoU`, `cIoU`, `N-acc` and `T-acc` as fractions, and the ints `count` and `count_no_target`.

        N-acc is None when every sample has a target, T-acc when none has. Raises InputError when no sample was
        added.
        """
        samples = self._samples.all()
        targets = [sample for sample in samples if sample.has_target]
        others = [sample for sample in samples if not sample.has_target]
        return {
            "gIoU": _mean([sample.iou for sample in samples]),
            "cIoU": _iou_of_sums(samples),
            "N-acc": sum(s.declared_empty for s in others) / len(others) if others else None,
            "T-acc": sum(not s.declared_empty for s in targets) / len(targets) if targets else None,
            "count": len(samples),
            "count_no_target": len(others),
        }


class _Samples(Generic[Sample]):
    """Samples of which those with an id count once."""

    def __init__(self) -> None:
        self._anonymous: list[Sample] = []
        self._identified: dict[Hashable, Sample] = {}

    def __len__(self) -> int:
        return len(self._anonymous) + len(self._identified)

    def add(self, sample: Sample, sample_id: Hashable | None) -> None:
        if sample_id is None:
            self._anonymous.append(sample)
        else:
            self._identified.setdefault(_plain(sample_id), sample)

    def merge(self, other: _Samples[Sample]) -> None:
        if other is self:
            raise InputError("Metrics cannot be merged with themselves: every sample would count twice.")
        self._anonymous.extend(other._anonymous)
        for sample_id, sample in other._identified.items():
            self.add(sample, sample_id)

    def all(self) -> list[Sample]:
        """Every sample; InputError when there is none."""
        if not len(self):
            raise InputError(
                "There is nothing to score: add at least one sample before computing the metrics."
            )
        return [*self._anonymous, *self._identified.values()]


def _iou_of_sums(samples: Sequence[SampleScore] | Sequence[GRESScore]) -> float:
    return iou_from_counts(sum(s.intersection for s in samples), sum(s.union for s in samples))


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
