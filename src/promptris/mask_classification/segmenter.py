"""Mask classification (Fig. 1(a) of the paper): SAM proposes, CLIP chooses; nothing is trained for the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from promptris.config import PromptName
from promptris.errors import InputError
from promptris.mask_classification.proposals import (
    ProposalConfig,
    Proposals,
    proposal_config_for,
    propose,
)
from promptris.mask_classification.scoring import (
    ScoringConfig,
    choice_probabilities,
    embed_expressions,
    embed_proposals,
)
from promptris.mask_classification.towers import FrozenTowers
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.onednn import inference
from promptris.placement import place
from promptris.prediction import Prediction
from promptris.predictor import AnswersExpressions, Guidance
from promptris.processing import (
    SAM_MEAN,
    SAM_STD,
    ImageLike,
    load_image,
    normalise,
    stretch,
)


class MaskClassifier(AnswersExpressions):
    """Answers expressions with the proposal that CLIP finds most similar; takes the place of a `Predictor`.

    A prediction's `score` is CLIP's probability of the chosen proposal among all of the image's, in [0, 1];
    its `coarse_mask` is its mask, as there is no coarser step; its `point` is the grid point that the mask was
    proposed by. An image without proposals gets an empty mask, score 0 and the image's centre.

    Args:
        model: whose frozen CLIP and SAM to use, on the device to use; what it has learned is not touched.
        threshold: a pixel belongs to the mask when its probability is above this.
        proposals: how masks are proposed; None means what suits the SAM (`proposal_config_for`).
        scoring: how CLIP looks at them.
    """

    def __init__(
        self,
        model: PromptRIS | FrozenTowers,
        threshold: float = 0.5,
        proposals: ProposalConfig | None = None,
        scoring: ScoringConfig | None = None,
    ) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"the threshold must lie between 0 and 1, not at {threshold}")
        self.model = model if isinstance(model, FrozenTowers) else FrozenTowers.of(model)
        self.processor = self.model.processor()
        self.threshold = threshold
        self.proposals = proposals or proposal_config_for(self.model.sam)
        self.scoring = scoring or ScoringConfig()
        self.device = next(self.model.parameters()).device
        self._latest: ImageClassifier | None = None

    def set_image(self, image: ImageLike) -> ImageClassifier:
        """Find and encode an image's proposals once, to answer any number of expressions about it.

        Args:
            image: path, PIL image, bytes or H x W x 3 uint8 RGB array.

        Returns:
            a classifier for this image; `predict` of this object answers about the image set last.

        Raises:
            InputError: when it cannot be read.
        """
        self._latest = self._examine(load_image(image))
        return self._latest

    def _examine(self, pixels: NDArray[np.uint8]) -> ImageClassifier:
        with inference():
            found = propose(self.model.sam, self._sam_features(pixels), self.proposals)
            features = embed_proposals(self.model.clip, pixels, found, self.scoring)
        return ImageClassifier(self, found, features, (pixels.shape[0], pixels.shape[1]))

    def _sam_features(self, pixels: NDArray[np.uint8]) -> Tensor:
        sam = self.model.sam
        square = stretch(pixels, sam.image_size, "bilinear").permute(2, 0, 1)[None].to(self.device)
        return sam.encode_image(normalise(square, SAM_MEAN, SAM_STD).to(self.model.clip.dtype))

    def _ask(self, texts: list[str], guidance: Guidance) -> list[Prediction]:
        _refuse(guidance)
        if self._latest is None:
            raise InputError("no image is set: call set_image before predict")
        return self._latest.answer(texts)

    def answer_images(
        self,
        images: Sequence[NDArray[np.uint8]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        prompts: tuple[PromptName, ...] | None = None,
    ) -> list[Prediction]:
        """Predictions for expressions about images [H, W, 3], in the given order.

        Args:
            images: each is worked on by itself, so that memory does not grow with their number.
            expressions: the texts; an empty one is answered too, as benchmarks hold a few.
            image_index: the image each is about.
            prompts: None; anything else is refused.
        """
        _refuse(Guidance(prompts))
        answers: dict[int, Prediction] = {}
        for number, image in enumerate(images):
            places = [place for place, index in enumerate(image_index) if index == number]
            if places:
                found = self._examine(image).answer([expressions[place] for place in places])
                answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(expressions))]


class ImageClassifier(AnswersExpressions):
    """One image with its proposals; made by `MaskClassifier.set_image`.

    Args:
        classifier: what it was made by.
        proposals: P masks of this image.
        features: [P, D] of theirs, from `embed_proposals`.
        size: (height, width) of the image.
    """

    def __init__(
        self, classifier: MaskClassifier, proposals: Proposals, features: Tensor, size: tuple[int, int]
    ) -> None:
        self.classifier, self.proposals, self.features, self.size = classifier, proposals, features, size

    def _ask(self, texts: list[str], guidance: Guidance) -> list[Prediction]:
        _refuse(guidance)
        return self.answer(texts)

    def answer(self, expressions: Sequence[str]) -> list[Prediction]:
        """Predictions in the given order; whether the texts say anything is not checked."""
        if not expressions or not len(self.proposals):
            return [self._nothing(text) for text in expressions]
        clip = self.classifier.model.clip
        with inference():
            texts = embed_expressions(clip, self.classifier.processor, expressions)
            probabilities = choice_probabilities(clip, self.features, texts)
            best = probabilities.max(dim=1)
        return [
            self._prediction(text, row, score)
            for text, row, score in zip(expressions, best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _prediction(self, expression: str, row: int, score: float) -> Prediction:
        logits = self.proposals.logits[row : row + 1]
        probability = self.classifier.processor.restore(logits, self.size)[0].sigmoid()
        mask = (probability > self.classifier.threshold).cpu().numpy()
        x, y = self.proposals.points[row].tolist()
        return Prediction(expression, mask, score, mask, (int(x * self.size[1]), int(y * self.size[0])))

    def _nothing(self, expression: str) -> Prediction:
        height, width = self.size
        mask = np.zeros(self.size, dtype=bool)
        return Prediction(expression, mask, 0.0, mask, (width // 2, height // 2))


def _refuse(guidance: Guidance) -> None:
    if guidance.prompts is not None:
        raise InputError("mask classification has no mask, point or text prompts to choose: leave them out")
    if guidance.corrects:
        raise InputError("mask classification cannot correct its answer by clicks or a box: leave them out")


def load_classifier(
    clip: str | Path, sam: str | Path, device: str = "auto", dtype: str = "auto", threshold: float = 0.5
) -> MaskClassifier:
    """Mask classification from base weights alone: the way to a first mask without any training.

    Args:
        clip: transformers folder, hub id or original file, as for `promptris.modeling.base_weights.load_clip`.
        sam: the same for SAM.
        device: "auto" (cuda, mps or cpu, whichever is there first), or a torch device.
        dtype: "auto" (bfloat16 where it is faster, else float32), "float32", "bfloat16" or "float16".
        threshold: of the masks' probabilities.

    Raises:
        InputError: when there is no such source, device or dtype.
        WeightsError: when a source holds something else.
    """
    # `place` moves any module.
    return MaskClassifier(place(cast(Any, FrozenTowers.load(clip, sam)), device, dtype), threshold)
