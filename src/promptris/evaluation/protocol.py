"""The one evaluation protocol: every (referent, sentence) pair once, at the image's own size."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptris.config import PromptName
from promptris.data.refer import Expression, ReferDataset, Referent
from promptris.errors import InputError
from promptris.metrics import RISMetrics
from promptris.ops.masks import mask_iou
from promptris.predictor import Prediction, Predictor
from promptris.processing import load_image


@dataclass(frozen=True)
class Scored:
    """A prediction beside its truth, a bool mask [H, W] of the same size."""

    referent: Referent
    expression: Expression
    prediction: Prediction
    truth: NDArray[np.bool_]

    @property
    def iou(self) -> float:
        """IoU of the final mask, in [0, 1]."""
        return mask_iou(self.prediction.mask, self.truth)

    def record(self) -> dict[str, Any]:
        """One line of `predictions.jsonl`."""
        return {
            "ref_id": self.referent.ref_id,
            "ann_id": self.referent.ann_id,
            "image_id": self.referent.image_id,
            "sent_id": self.expression.sent_id,
            "expression": self.expression.text,
            "segmentation": self.prediction.to_rle(),
            "score": round(self.prediction.score, 6),
            "iou": round(self.iou, 6),
        }


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, as fractions.

    Attributes:
        final: of the final masks.
        coarse: of the coarse masks.
        by_kind: of the final masks, per kind of expression, where the data set tells kinds.
    """

    final: dict[str, float]
    coarse: dict[str, float]
    by_kind: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The final metrics at the top level, the others below "coarse" and "by_kind"."""
        return {**self.final, "coarse": self.coarse, "by_kind": self.by_kind}


def evaluate(
    predictor: Predictor,
    dataset: ReferDataset,
    split: str,
    prompts: tuple[PromptName, ...] | None = None,
    folder: Path | None = None,
    images_per_pass: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a split.

    Args:
        predictor: the model with its threshold.
        dataset: the data.
        split: which split.
        prompts: SAM prompts to use (Table 5); None means the model's own.
        folder: where `metrics.json` and `predictions.jsonl` are written; None writes nothing.
        images_per_pass: images that are encoded together.
        progress: called with (expressions done, expressions in all).

    Raises:
        InputError: for an unknown split, or an image or annotation that cannot be read.
    """
    final, coarse = RISMetrics(), RISMetrics()
    by_kind: dict[str, RISMetrics] = defaultdict(RISMetrics)
    total = len(dataset.samples(split))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    partial = None if folder is None else folder / "predictions.jsonl.partial"
    with nullcontext() if partial is None else partial.open("w") as file:
        for scored in score(predictor, dataset, split, prompts, images_per_pass):
            sample = (scored.truth, scored.referent.image_id, scored.referent.ann_id)
            final.update(scored.prediction.mask, *sample)
            coarse.update(scored.prediction.coarse_mask, *sample)
            if scored.expression.kind is not None:
                by_kind[scored.expression.kind].update(scored.prediction.mask, *sample)
            if file is not None:
                file.write(json.dumps(scored.record()) + "\n")
            if progress is not None:
                progress(len(final), total)
    result = Evaluation(
        final.compute(), coarse.compute(), {kind: m.compute() for kind, m in sorted(by_kind.items())}
    )
    if folder is not None and partial is not None:
        partial.replace(folder / "predictions.jsonl")
        (folder / "metrics.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def score(
    predictor: Predictor,
    dataset: ReferDataset,
    split: str,
    prompts: tuple[PromptName, ...] | None = None,
    images_per_pass: int = 4,
) -> Iterator[Scored]:
    """Predictions of a split beside their truth, image by image."""
    by_image: dict[int, list[tuple[Referent, Expression]]] = defaultdict(list)
    for referent, expression in dataset.samples(split):
        by_image[referent.image_id].append((referent, expression))
    image_ids = list(by_image)
    for start in range(0, len(image_ids), images_per_pass):
        ids = image_ids[start : start + images_per_pass]
        images = [load_image(dataset.images[i].path) for i in ids]
        sizes = [image.shape[:2] for image in images]
        for i, size in zip(ids, sizes, strict=True):
            record = dataset.images[i]
            if size != (record.height, record.width):
                raise InputError(
                    f"{record.path} has {size[1]} x {size[0]} pixels, its annotations are for "
                    f"{record.width} x {record.height}: get the original image"
                )
        pairs = [(row, pair) for row, i in enumerate(ids) for pair in by_image[i]]
        predictions = predictor.answer(
            predictor.encode(images),
            sizes,
            [expression.text for _, (_, expression) in pairs],
            [row for row, _ in pairs],
            prompts,
        )
        for (_, (referent, expression)), prediction in zip(pairs, predictions, strict=True):
            yield Scored(referent, expression, prediction, dataset.mask(referent))
