"""From images and expressions to masks at the images' own size."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from promptris.config import PromptName, check_prompt_names
from promptris.engines.choice import ImageEncoder, choose_engine, make_image_encoder
from promptris.errors import InputError
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.sam_prompts import Corrections
from promptris.ops.onednn import inference
from promptris.ops.points import highest_position
from promptris.placement import choose_dtype, pick_device, place
from promptris.prediction import Box, Click, Explanation, Prediction
from promptris.processing import MASK_THRESHOLD, ImageLike, Processor, check_expression, load_image
from promptris.remembered import Remembered
from promptris.structures import ImageBatch, ImageFeatures, PromptRISOutput


@dataclass(frozen=True)
class Guidance:
    """What an answer is guided by beside the expression; see `AnswersExpressions.predict`."""

    prompts: tuple[PromptName, ...] | None = None
    points: Sequence[Click] = ()
    box: Box | None = None

    @property
    def corrects(self) -> bool:
        """Whether a person corrects the answer."""
        return len(self.points) > 0 or self.box is not None


class AnswersExpressions(ABC):
    """`predict`, for whatever knows the image that is asked about."""

    @abstractmethod
    def _ask(self, texts: list[str], guidance: Guidance) -> list[Prediction]:
        """Answers about the image, in the order of the texts."""

    @overload
    def predict(
        self,
        expression: str,
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        expression: list[str] | tuple[str, ...],
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        expression: str | list[str] | tuple[str, ...],
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> Prediction | list[Prediction]:
        """The mask of what the expression means; for a list of expressions, a list in the same order.

        Args:
            expression: one text or several.
            prompts: SAM prompts to use ("mask", "point", "text"); None means the model's own.
            points: clicks that correct the answer, (x, y, label) in the image's own pixels.
            box: (x, y, width, height) in the image's own pixels, where the referent is to be looked for.

        Raises:
            InputError: when no image was set, for an empty expression, for a click or box outside the image, or for
                prompts, clicks or a box where the model answers without SAM.
        """
        texts = [expression] if isinstance(expression, str) else list(expression)
        for text in texts:
            check_expression(text)
        answers = self._ask(texts, Guidance(prompts, points, box))
        return answers[0] if isinstance(expression, str) else answers


class Predictor(AnswersExpressions):
    """Answers expressions about images.

    Args:
        model: the model, on the device to use.
        threshold: a pixel belongs to the mask when its probability is above this.
        expressions_per_pass: how many expressions run through the model at once.
        with_sam: refine with SAM; without it, as for models trained so, the coarse mask is the answer. None
            does what the model was trained for (`SamPromptConfig.refine`).
        remembered_images: encoded images that `set_image` keeps by their content, the latest ones: 7 MB each at the
            paper's size in float32.
        image_encoder: computes SAM's image features in the model's place.
    """

    def __init__(
        self,
        model: PromptRIS,
        threshold: float = MASK_THRESHOLD,
        expressions_per_pass: int = 16,
        with_sam: bool | None = None,
        remembered_images: int = 8,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"the threshold must lie between 0 and 1, not at {threshold}")
        self.model = model.eval()
        self.processor: Processor = model.processor()
        self.threshold, self.expressions_per_pass = threshold, expressions_per_pass
        self.with_sam = model.config.sam_prompts.refine if with_sam is None else with_sam
        self.device = next(model.parameters()).device
        self.image_encoder = image_encoder
        self._latest: ImagePredictor | None = None
        self._remembered: Remembered[ImageFeatures] = Remembered(remembered_images)

    def set_image(self, image: ImageLike) -> ImagePredictor:
        """Encode an image once, to answer any number of expressions about it; a recent one is not encoded again.

        Args:
            image: path, PIL image, bytes or H x W x 3 uint8 RGB array.

        Returns:
            a predictor for this image; `predict` of this object answers about the image set last.

        Raises:
            InputError: when it cannot be read.
        """
        pixels = load_image(image)
        key = (pixels.shape, hashlib.blake2b(pixels.tobytes()).digest())
        features = self._remembered.get(key, lambda: self.encode([pixels]))
        self._latest = ImagePredictor(self, features, pixels.shape[:2])
        return self._latest

    def _ask(self, texts: list[str], guidance: Guidance) -> list[Prediction]:
        return self._current()._ask(texts, guidance)

    def explain(
        self,
        expression: str,
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> Explanation:
        """`predict` about the image set last, and how the answer came about."""
        return self._current().explain(expression, prompts=prompts, points=points, box=box)

    def _current(self) -> ImagePredictor:
        if self._latest is None:
            raise InputError("no image is set: call set_image before predict")
        return self._latest

    def encode(self, images: Sequence[ImageLike]) -> ImageFeatures:
        """Features of several images."""
        return self.encode_prepared(self.prepare(images))

    def prepare(self, images: Sequence[ImageLike]) -> ImageBatch:
        """Several images as the model takes them, a few megabytes each however large they are."""
        return self.processor.images(images, self.with_sam)

    def encode_prepared(self, images: ImageBatch) -> ImageFeatures:
        """Features of images from `prepare`."""
        if self.image_encoder is not None and images.sam_pixels is not None:
            images = replace(images, sam_pixels=None, sam_embeddings=self.image_encoder(images.sam_pixels))
        with inference():
            return self.model.encode_image(images.to(self.device))

    def answer_images(
        self,
        images: Sequence[NDArray[np.uint8]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        prompts: tuple[PromptName, ...] | None = None,
    ) -> list[Prediction]:
        """Predictions for expressions about images [H, W, 3], encoded together; see `answer`."""
        sizes = [image.shape[:2] for image in images]
        return self.answer(self.encode(images), sizes, expressions, image_index, Guidance(prompts))

    def answer(
        self,
        features: ImageFeatures,
        sizes: Sequence[tuple[int, int]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        guidance: Guidance | None = None,
    ) -> list[Prediction]:
        """Predictions for expressions about already encoded images, in the given order.

        Args:
            features: from `encode`.
            sizes: (height, width) of each image.
            expressions: the texts.
            image_index: the image each is about.
            guidance: clicks and box are in the pixels of the one image that the expressions are about.

        Raises:
            InputError: for a click or box outside the image, or for guidance where the model answers without SAM.
        """
        passes = self._passes(features, sizes, expressions, image_index, guidance or Guidance())
        return [prediction for prediction, _ in passes]

    def explained(
        self, features: ImageFeatures, size: tuple[int, int], expression: str, guidance: Guidance
    ) -> Explanation:
        """The answer to one expression about an encoded image of (height, width), and how it came about."""
        ((prediction, coarse),) = self._passes(features, [size], [expression], [0], guidance)
        enabled = self.model.config.sam_prompts.enabled if guidance.prompts is None else guidance.prompts
        used = check_prompt_names(enabled) if self.with_sam else ()
        response = coarse.float().sigmoid().cpu().numpy()
        return Explanation(prediction, response, used, tuple(guidance.points), guidance.box)

    def _passes(
        self,
        features: ImageFeatures,
        sizes: Sequence[tuple[int, int]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        guidance: Guidance,
    ) -> Iterator[tuple[Prediction, torch.Tensor]]:
        """Predictions with their response maps S'_C [H_C, W_C]."""
        if not self.with_sam and (guidance.prompts is not None or guidance.corrects):
            raise InputError(
                f"this model answers with CLIP's coarse mask, without SAM, and so takes no "
                f"{'clicks or box' if guidance.prompts is None else 'choice of SAM prompts'}: leave them out"
            )
        for start in range(0, len(expressions), self.expressions_per_pass):
            part = slice(start, start + self.expressions_per_pass)
            texts, index = expressions[part], image_index[part]
            with inference():
                output = self.model(
                    features,
                    self.processor.expressions(texts, index).to(self.device),
                    prompts=guidance.prompts,
                    corrections=self._corrections(guidance, sizes[index[0]], len(texts)),
                )
                predictions = [
                    self._prediction(text, output, row, sizes[image])
                    for row, (text, image) in enumerate(zip(texts, index, strict=True))
                ]
            yield from zip(predictions, output.coarse_logits, strict=True)

    def _prediction(
        self, expression: str, output: PromptRISOutput, row: int, size: tuple[int, int]
    ) -> Prediction:
        coarse = self.processor.restore(output.coarse_logits_hr[row : row + 1], size)[0].sigmoid()
        if output.mask_logits is None or output.predicted_iou is None or output.point_index is None:
            probability = coarse
            index = int(highest_position(output.coarse_logits_hr[row].reshape(1, -1)))
        else:
            probability = self.processor.restore(output.mask_logits[row : row + 1], size)[0].sigmoid()
            index = int(output.point_index[row])
        mask = probability > self.threshold
        if output.predicted_iou is not None:
            score = float(output.predicted_iou[row].float().clamp(0, 1))
        else:
            score = float(probability[mask].mean()) if mask.any() else 0.0
        x, y = self.model.sam.cell_centres(torch.tensor(index)).tolist()
        return Prediction(
            expression=expression,
            mask=mask.cpu().numpy(),
            score=score,
            coarse_mask=(coarse > self.threshold).cpu().numpy(),
            point=(int(x * size[1]), int(y * size[0])),
        )

    def _corrections(self, guidance: Guidance, size: tuple[int, int], rows: int) -> Corrections | None:
        if not guidance.corrects:
            return None
        height, width = size
        for click in guidance.points:
            _check_click(click, width, height)
        # SAM's clicks mean pixel centres.
        centres = [((x + 0.5) / width, (y + 0.5) / height) for x, y, _ in guidance.points]
        points = torch.tensor(centres).reshape(1, -1, 2).expand(rows, -1, -1)
        labels = torch.tensor([[int(label) for _, _, label in guidance.points]]).long().expand(rows, -1)
        boxes = None
        if guidance.box is not None:
            x, y, wide, high = _check_box(guidance.box, width, height)
            # So do its boxes: their corners are the first and the last pixel.
            corners = torch.tensor([[x + 0.5, y + 0.5], [x + wide - 0.5, y + high - 0.5]])
            boxes = (corners / torch.tensor([width, height])).expand(rows, -1, -1).to(self.device)
        return Corrections(points.to(self.device), labels.to(self.device), boxes)


def _check_click(click: Click, width: int, height: int) -> None:
    if len(click) != 3:
        raise InputError(f"the click {click!r} is not (x, y, label)")
    x, y, label = click
    if not (0 <= x < width and 0 <= y < height) or label not in (0, 1):
        raise InputError(
            f"the click {x:g},{y:g},{label} is not X,Y inside the {width} x {height} image with a label "
            "of 1 (part of the referent) or 0"
        )


def _check_box(box: Box, width: int, height: int) -> Box:
    if len(box) != 4:
        raise InputError(f"the box {box!r} is not (x, y, width, height)")
    x, y, wide, high = box
    if not (x >= 0 and y >= 0 and wide >= 1 and high >= 1 and x + wide <= width and y + high <= height):
        raise InputError(
            f"the box {x:g},{y:g},{wide:g},{high:g} is not X,Y,WIDTH,HEIGHT of at least a pixel inside the "
            f"{width} x {height} image"
        )
    return box


class ImagePredictor(AnswersExpressions):
    """One encoded image; made by `Predictor.set_image`.

    Args:
        predictor: what it was made by.
        features: of this image.
        size: its (height, width).
    """

    def __init__(self, predictor: Predictor, features: ImageFeatures, size: tuple[int, int]) -> None:
        self.predictor, self.features, self.size = predictor, features, size

    def _ask(self, texts: list[str], guidance: Guidance) -> list[Prediction]:
        return self.predictor.answer(self.features, [self.size], texts, [0] * len(texts), guidance)

    def explain(
        self,
        expression: str,
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> Explanation:
        """`predict`, and how the answer came about: response map, prompts used, corrections.

        Raises:
            InputError: as `predict`.
        """
        guidance = Guidance(prompts, points, box)
        return self.predictor.explained(self.features, self.size, check_expression(expression), guidance)


def load(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    clip: str | Path | None = None,
    sam: str | Path | None = None,
    engine: str = "auto",
    revision: str | None = None,
    threshold: float = MASK_THRESHOLD,
    notify: Callable[[str], None] | None = None,
) -> Predictor:
    """A predictor by built-in name, model folder or hub id.

    Args:
        name: "tiny" (knows RefShapes scenes only), a folder written by `save_pretrained`, or a hub id.
        device: "auto" (cuda, mps or cpu, whichever is there first), or a torch device.
        dtype: "auto" (bfloat16 where it is faster, else float32), "float32", "bfloat16" or "float16".
        clip: where the frozen CLIP is now, when it is not where it was at training time.
        sam: the same for SAM.
        engine: "torch", "openvino" or "onnxruntime" for SAM's image encoder; "auto" is torch where it is fast.
        revision: branch, tag or commit of a model on the hub; None means its main branch.
        threshold: a pixel belongs to the mask when its probability is above this.
        notify: told, in a sentence, when an engine converts the model.

    Raises:
        InputError: when there is no such model, revision, device, dtype or engine.
        MissingExtraError: when the engine is not installed.
    """
    chosen = choose_engine(engine, pick_device(device))
    model = PromptRIS.from_pretrained(name, clip, sam, revision)
    return prepare(model, device, dtype, chosen, threshold, notify)


def prepare(
    model: PromptRIS,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "torch",
    threshold: float = MASK_THRESHOLD,
    notify: Callable[[str], None] | None = None,
) -> Predictor:
    """A predictor around a model in float32 on the CPU; arguments as in `load`, the engine one that was chosen."""
    where = pick_device(device)
    half = choose_dtype(dtype, where, model.sam.image_size) is torch.bfloat16
    encoder = make_image_encoder(engine, model, half, notify or (lambda text: None))
    return Predictor(place(model, device, dtype), threshold, image_encoder=encoder)
