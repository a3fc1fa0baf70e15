"""Which answers a gallery shows: the best, the worst and random ones per kind of expression.

The split is scored once. Of its masks only those are kept, as run lengths, that may end up on the page, so
memory does not grow with the split.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from promptris.config import PromptName
from promptris.data.dataset import ReferDataset
from promptris.data.records import Expression, Referent
from promptris.errors import InputError
from promptris.evaluation.protocol import Evaluation, Scored, Segmenter, score
from promptris.metrics import GRESMetrics, RISMetrics
from promptris.ops.run_lengths import mask_to_rle
from promptris.predictor import Predictor

Progress = Callable[[int, int], None]
BINS = 10
"""Bars of the distribution of IoU, each a tenth wide."""


@dataclass(frozen=True)
class Case:
    """One scored sentence in little memory.

    Attributes:
        number: its place in the order of scoring, from 0.
        referent, expression: what was asked.
        score: the model's own estimate of the IoU, in [0, 1].
        point: (x, y) in the image's pixels.
        coarse_iou, final_iou: in [0, 1].
        coarse, final, truth: masks as COCO's run lengths.
    """

    number: int
    referent: Referent
    expression: Expression
    score: float
    point: tuple[int, int]
    coarse_iou: float
    final_iou: float
    coarse: dict[str, Any]
    final: dict[str, Any]
    truth: dict[str, Any]

    @classmethod
    def of(cls, number: int, scored: Scored, coarse_iou: float, final_iou: float) -> Case:
        """The case of a prediction."""
        answer = scored.prediction
        return cls(
            number,
            scored.referent,
            scored.expression,
            answer.score,
            answer.point,
            coarse_iou,
            final_iou,
            mask_to_rle(answer.coarse_mask),
            mask_to_rle(answer.mask),
            mask_to_rle(scored.truth),
        )


Key = tuple[float, int]


class _Highest:
    """The `size` cases with the highest keys; keys must differ."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[Key, Case]] = []

    def takes(self, key: Key) -> bool:
        """Whether a case with this key would be kept."""
        return len(self._heap) < self.size or key > self._heap[0][0]

    def add(self, key: Key, case: Case) -> None:
        """Keep a case, and drop the one with the lowest key where there is no room."""
        push = heapq.heappush if len(self._heap) < self.size else heapq.heappushpop
        push(self._heap, (key, case))

    def cases(self) -> list[Case]:
        """Highest key first."""
        return [case for _, case in sorted(self._heap, key=lambda entry: entry[0], reverse=True)]


class Group:
    """What becomes of one kind of expression: metrics of all its sentences, and at most 3 x `per_group` cases.

    Args:
        per_group: how many of the best, of the worst and of the random cases to keep.
        draw: source of chance for the random ones.

    Attributes:
        final, coarse: metrics of the final and of the coarse masks.
        histogram: sentences per tenth of IoU, of the "final" and of the "coarse" masks.
    """

    def __init__(self, per_group: int, draw: random.Random) -> None:
        self.per_group, self._draw = per_group, draw
        self.final, self.coarse = RISMetrics(), RISMetrics()
        self.histogram = {"final": [0] * BINS, "coarse": [0] * BINS}
        self._best, self._worst, self._random = (_Highest(per_group) for _ in range(3))

    def __len__(self) -> int:
        return len(self.final)

    def add(self, number: int, scored: Scored) -> None:
        """Take a prediction into account, and keep it if it may be shown; `number` is its place in the split."""
        answer, truth = scored.prediction, scored.truth
        ids = scored.referent.image_id, scored.referent.ann_id
        final = self.final.update(answer.mask, truth, *ids)
        coarse = self.coarse.update(answer.coarse_mask, truth, *ids)
        for name, iou in (("final", final), ("coarse", coarse)):
            self.histogram[name][min(int(iou * BINS), BINS - 1)] += 1
        # Of equal cases the earlier one counts as better: one order, so that none is both best and worst.
        offers = (
            (self._best, (final, -number)),
            (self._worst, (-final, number)),
            (self._random, (self._draw.random(), -number)),
        )
        if takers := [(kept, key) for kept, key in offers if kept.takes(key)]:
            case = Case.of(number, scored, coarse, final)
            for kept, key in takers:
                kept.add(key, case)

    def best(self) -> list[Case]:
        """Highest IoU first."""
        return self._best.cases()

    def worst(self) -> list[Case]:
        """Lowest IoU first; none of them is among the best."""
        room = max(0, len(self) - self.per_group)
        return self._worst.cases()[:room]

    def random(self) -> list[Case]:
        """Drawn from all cases, each with the same chance; highest IoU first."""
        return sorted(self._random.cases(), key=lambda case: (-case.final_iou, case.number))

    def sections(self) -> list[tuple[str, str, list[Case]]]:
        """Name, explanation and cases of what is shown: nothing that the sections before show in full."""
        if len(self) <= self.per_group:
            return [("all", "highest IoU of the final mask first", self.best())]
        sections = [
            ("best", "highest IoU of the final mask", self.best()),
            ("worst", "lowest IoU of the final mask", self.worst()),
        ]
        if len(self) > 2 * self.per_group:
            sections.append(("random", "drawn from all, highest IoU first", self.random()))
        return sections


@dataclass
class Survey:
    """A scored split: what the page is made from.

    Attributes:
        dataset, split: what was scored.
        model: the model's name for people.
        prompts: SAM prompts that were used.
        seed: of the random cases.
        groups: by kind of expression, sorted; a data set that tells no kinds has one group, None.
        generalised: gIoU, cIoU, N-acc and T-acc where some expressions mean several objects or none, else empty.
    """

    dataset: ReferDataset
    split: str
    model: str
    prompts: tuple[PromptName, ...]
    seed: int
    groups: dict[str | None, Group] = field(default_factory=dict)
    generalised: dict[str, float | None] = field(default_factory=dict)

    def total(self) -> tuple[RISMetrics, RISMetrics]:
        """Metrics of the final and of the coarse masks of the whole split."""
        final, coarse = RISMetrics(), RISMetrics()
        for group in self.groups.values():
            final.merge(group.final)
            coarse.merge(group.coarse)
        return final, coarse

    def evaluation(self) -> Evaluation:
        """The metrics in the protocol's own form."""
        final, coarse = self.total()
        kinds = {kind: group.final.compute() for kind, group in self.groups.items() if kind is not None}
        return Evaluation(final.compute(), coarse.compute(), kinds, self.generalised)

    def title(self, kind: str | None) -> str:
        """What a group is called."""
        if kind is not None:
            return kind
        return "all expressions" if len(self.groups) == 1 else "of no kind"


def survey_split(
    segmenter: Segmenter,
    dataset: ReferDataset,
    split: str,
    model: str,
    prompts: tuple[PromptName, ...] | None = None,
    per_group: int = 8,
    seed: int = 0,
    images_per_pass: int = 4,
    progress: Progress | None = None,
) -> Survey:
    """Score a split and choose what to show of it.

    Args:
        segmenter: the model with its threshold, or another method.
        dataset: the data.
        split: which split.
        model: the model's name for people.
        prompts: SAM prompts to use; None means the model's own.
        per_group: best, worst and random cases of every kind of expression, this many each.
        seed: of the random cases.
        images_per_pass: images that are encoded together.
        progress: called with (expressions done, expressions in all).

    Raises:
        InputError: for an unknown or empty split, `per_group` below 1, or an image or annotation that cannot be
            read.
    """
    if per_group < 1:
        raise InputError(f"{per_group} cases per group cannot be shown: ask for at least 1")
    total = len(dataset.samples(split))
    if total == 0:
        raise InputError(f"{dataset.name} has no expression to show in {split!r}")
    survey = Survey(dataset, split, model, prompts_used(segmenter, prompts), seed)
    generalised = GRESMetrics() if dataset.is_generalised(split) else None
    groups: dict[str | None, Group] = {}
    for number, scored in enumerate(score(segmenter, dataset, split, prompts, images_per_pass)):
        kind = scored.expression.kind
        if kind not in groups:
            # A source of chance of its own makes a group's draw independent of the other groups.
            groups[kind] = Group(per_group, random.Random(f"{seed} {kind}"))
        groups[kind].add(number, scored)
        if generalised is not None:
            generalised.update(scored.prediction.mask, scored.truth)
        if progress is not None:
            progress(number + 1, total)
    survey.groups = dict(sorted(groups.items(), key=lambda item: (item[0] is None, item[0] or "")))
    survey.generalised = {} if generalised is None else generalised.compute()
    return survey


def prompts_used(segmenter: Segmenter, prompts: tuple[PromptName, ...] | None) -> tuple[PromptName, ...]:
    """The SAM prompts behind an answer: the wanted ones, else the model's own; none without SAM."""
    if not isinstance(segmenter, Predictor) or not segmenter.with_sam:
        return ()
    return segmenter.model.config.sam_prompts.enabled if prompts is None else prompts
