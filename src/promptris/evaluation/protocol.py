"""The one evaluation protocol: every (referent, sentence) pair once, at the image's own size."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promptris.config import PromptName
from promptris.data.dataset import ReferDataset
from promptris.data.pictures import load_record
from promptris.data.records import Expression, Referent
from promptris.data.sampling import share_of_rank
from promptris.errors import InputError
from promptris.evaluation.baselines import Baselines
from promptris.metrics import GRESMetrics, RISMetrics
from promptris.ops.masks import mask_iou
from promptris.prediction import Prediction
from promptris.team import ALONE, Team


class Segmenter(Protocol):
    """Whatever answers expressions about images: `Predictor`, or a method to compare it with."""

    def answer_images(
        self,
        images: Sequence[NDArray[np.uint8]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        prompts: tuple[PromptName, ...] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the expressions, each about the image [H, W, 3] of its index."""
        ...


@dataclass(frozen=True)
class Scored:
    """A prediction beside its truth, a bool mask [H, W] of the same size; `place` of its image in the split."""

    referent: Referent
    expression: Expression
    prediction: Prediction
    truth: NDArray[np.bool_]
    place: int = 0

    @property
    def iou(self) -> float:
        """IoU of the final mask, in [0, 1]."""
        return mask_iou(self.prediction.mask, self.truth)

    def record(self) -> dict[str, Any]:
        """One line of `predictions.jsonl`; `ann_id` is a list where not exactly one annotation is meant."""
        ann_ids = self.referent.ann_ids
        return {
            "ref_id": self.referent.ref_id,
            "ann_id": self.referent.ann_id if len(ann_ids) == 1 else list(ann_ids),
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
        generalised: gIoU, cIoU, N-acc and T-acc of the final masks, where some expressions mean several objects
            or none; empty otherwise.
        baselines: what trivial answers score on the same split; None when they were not given.
    """

    final: dict[str, float]
    coarse: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    generalised: dict[str, float | None] = field(default_factory=dict)
    baselines: Baselines | None = None

    def to_dict(self) -> dict[str, Any]:
        """The metrics of the final masks at the top level, the others below names of their own."""
        baselines = {} if self.baselines is None else {"baselines": self.baselines.to_dict()}
        return {
            **self.final,
            **self.generalised,
            "coarse": self.coarse,
            "by_kind": self.by_kind,
            **baselines,
        }


def evaluate(
    segmenter: Segmenter,
    dataset: ReferDataset,
    split: str,
    prompts: tuple[PromptName, ...] | None = None,
    folder: Path | None = None,
    images_per_pass: int = 4,
    progress: Callable[[int, int], None] | None = None,
    team: Team = ALONE,
    baselines: Baselines | None = None,
) -> Evaluation:
    """Evaluate a split.

    Args:
        segmenter: the model with its threshold, or another method.
        dataset: the data.
        split: which split.
        prompts: SAM prompts to use (Table 5); None means the model's own.
        folder: where `metrics.json` and `predictions.jsonl` are written; None writes nothing.
        images_per_pass: images that are encoded together.
        progress: called with (expressions done, expressions in all).
        team: processes that evaluate together: each takes its own images, all get the same result, and the first
            one writes it.
        baselines: of this split, from `score_baselines`, to be told beside the model's metrics.

    Raises:
        InputError: for an unknown split, or an image or annotation that cannot be read.
    """
    total = len(dataset.samples(split))
    if total == 0:
        raise InputError(f"{dataset.name} has no expression to evaluate in {split!r}")
    own = _Scores()
    for scored in score(segmenter, dataset, split, prompts, images_per_pass, team.rank, team.size):
        own.add(scored, keep_record=folder is not None)
        if progress is not None:
            progress(len(own.final), total)
    shares = team.gather(own)
    for other in shares[1:]:
        shares[0].merge(other)
    result = replace(shares[0].evaluation(dataset.is_generalised(split)), baselines=baselines)
    if folder is not None and team.rank == 0:
        records = [record for share in shares for record in share.records]
        _write(result, sorted(records, key=lambda record: record[0]), folder)
    return result


@dataclass
class _Scores:
    """What one process has scored."""

    final: RISMetrics = field(default_factory=RISMetrics)
    coarse: RISMetrics = field(default_factory=RISMetrics)
    generalised: GRESMetrics = field(default_factory=GRESMetrics)
    by_kind: dict[str, RISMetrics] = field(default_factory=lambda: defaultdict(RISMetrics))
    records: list[tuple[int, str]] = field(default_factory=list)

    def add(self, scored: Scored, keep_record: bool) -> None:
        sample = (scored.truth, scored.referent.image_id, scored.referent.ann_id)
        self.final.update(scored.prediction.mask, *sample)
        self.coarse.update(scored.prediction.coarse_mask, *sample)
        self.generalised.update(scored.prediction.mask, scored.truth)
        if scored.expression.kind is not None:
            self.by_kind[scored.expression.kind].update(scored.prediction.mask, *sample)
        if keep_record:
            self.records.append((scored.place, json.dumps(scored.record())))

    def merge(self, other: _Scores) -> None:
        self.final.merge(other.final)
        self.coarse.merge(other.coarse)
        self.generalised.merge(other.generalised)
        for kind, metrics in other.by_kind.items():
            self.by_kind[kind].merge(metrics)

    def evaluation(self, generalised: bool) -> Evaluation:
        return Evaluation(
            self.final.compute(),
            self.coarse.compute(),
            {kind: metrics.compute() for kind, metrics in sorted(self.by_kind.items())},
            self.generalised.compute() if generalised else {},
        )


def _write(result: Evaluation, records: list[tuple[int, str]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "predictions.jsonl.partial"
    partial.write_text("".join(f"{line}\n" for _, line in records))
    partial.replace(folder / "predictions.jsonl")
    (folder / "metrics.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")


def score(
    segmenter: Segmenter,
    dataset: ReferDataset,
    split: str,
    prompts: tuple[PromptName, ...] | None = None,
    images_per_pass: int = 4,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Scored]:
    """Predictions of a split beside their truth, image by image.

    Of several processes each takes its own images; together they take every image once. `RISMetrics.merge`
    joins their scores.
    """
    by_image = dataset.by_image(split)
    image_ids = share_of_rank(list(by_image), rank, world_size)
    places = {image_id: place for place, image_id in enumerate(by_image)}
    for start in range(0, len(image_ids), images_per_pass):
        ids = image_ids[start : start + images_per_pass]
        images = [load_record(dataset.images[i]) for i in ids]
        pairs = [
            (row, referent, expression)
            for row, i in enumerate(ids)
            for referent in by_image[i]
            for expression in referent.expressions
        ]
        predictions = segmenter.answer_images(
            images,
            [expression.text for _, _, expression in pairs],
            [row for row, _, _ in pairs],
            prompts,
        )
        for (_, referent, expression), prediction in zip(pairs, predictions, strict=True):
            yield Scored(referent, expression, prediction, dataset.mask(referent), places[referent.image_id])
