"""From images and expressions to masks at the images' own size."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from promptris.config import PromptName
from promptris.errors import InputError
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.sam_prompts import Clicks
from promptris.ops.masks import mask_bbox
from promptris.ops.onednn import inference
from promptris.ops.points import highest_position
from promptris.ops.polygons import mask_to_polygons
from promptris.ops.run_lengths import mask_to_rle
from promptris.processing import ImageLike, Processor, check_expression, load_image
from promptris.remembered import Remembered
from promptris.structures import ImageFeatures, PromptRISOutput
from promptris.visualize import overlay

Click = tuple[float, float, int]
"""x, y in the image's own pixels, and 1 (part of the referent) or 0 (not part of it)."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one expression.

    Attributes:
        expression: the text.
        mask: bool [H, W], the image's own size.
        score: SAM's estimate of the mask's IoU, in [0, 1]; for a model without SAM the mean probability
            inside the mask.
        coarse_mask: bool [H, W], CLIP's response alone.
        point: (x, y) of the point prompt in the image's own pixels.
    """

    expression: str
    mask: NDArray[np.bool_]
    score: float
    coarse_mask: NDArray[np.bool_]
    point: tuple[int, int]

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())

    @property
    def bbox(self) -> list[int]:
        """[x, y, width, height] in pixels; all 0 for an empty mask."""
        return mask_bbox(self.mask)

    def to_rle(self) -> dict[str, Any]:
        """COCO run-length encoding, counts as text."""
        return mask_to_rle(self.mask)

    def to_polygons(self) -> list[list[list[float]]]:
        """Regions as [outer ring, hole, ...], each ring [x0, y0, x1, y1, ...] in pixels."""
        return mask_to_polygons(self.mask)

    def overlay(self, image: ImageLike) -> Image.Image:
        """The image with the mask laid over it and the point marked."""
        return overlay(load_image(image), self.mask, point=self.point)


class AnswersExpressions(ABC):
    """`predict`, for whatever knows the image that is asked about."""

    @abstractmethod
    def _ask(
        self, texts: list[str], prompts: tuple[PromptName, ...] | None, points: Sequence[Click]
    ) -> list[Prediction]:
        """Answers about the image, in the order of the texts."""

    @overload
    def predict(
        self,
        expression: str,
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        expression: list[str] | tuple[str, ...],
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
    ) -> list[Prediction]: ...

    def predict(
        self,
        expression: str | list[str] | tuple[str, ...],
        *,
        prompts: tuple[PromptName, ...] | None = None,
        points: Sequence[Click] = (),
    ) -> Prediction | list[Prediction]:
        """The mask of what the expression means; for a list of expressions, a list in the same order.

        Args:
            expression: one text or several.
            prompts: SAM prompts to use ("mask", "point", "text"); None means the model's own.
            points: clicks that correct the answer, (x, y, label) in the image's own pixels.

        Raises:
            InputError: when no image was set, for an empty expression, for a click outside the image, or for
                prompts or clicks where the model answers without SAM.
        """
        texts = [expression] if isinstance(expression, str) else list(expression)
        for text in texts:
            check_expression(text)
        answers = self._ask(texts, prompts, points)
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
    """

    def __init__(
        self,
        model: PromptRIS,
        threshold: float = 0.5,
        expressions_per_pass: int = 16,
        with_sam: bool | None = None,
        remembered_images: int = 8,
    ) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"the threshold must lie between 0 and 1, not at {threshold}")
        self.model = model.eval()
        self.processor: Processor = model.processor()
        self.threshold, self.expressions_per_pass = threshold, expressions_per_pass
        self.with_sam = model.config.sam_prompts.refine if with_sam is None else with_sam
        self.device = next(model.parameters()).device
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

    def _ask(
        self, texts: list[str], prompts: tuple[PromptName, ...] | None, points: Sequence[Click]
    ) -> list[Prediction]:
        if self._latest is None:
            raise InputError("no image is set: call set_image before predict")
        return self._latest._ask(texts, prompts, points)

    def encode(self, images: Sequence[ImageLike]) -> ImageFeatures:
        """Features of several images."""
        with inference():
            return self.model.encode_image(self.processor.images(images, self.with_sam).to(self.device))

    def answer_images(
        self,
        images: Sequence[NDArray[np.uint8]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        prompts: tuple[PromptName, ...] | None = None,
    ) -> list[Prediction]:
        """Predictions for expressions about images [H, W, 3], encoded together; see `answer`."""
        sizes = [image.shape[:2] for image in images]
        return self.answer(self.encode(images), sizes, expressions, image_index, prompts)

    def answer(
        self,
        features: ImageFeatures,
        sizes: Sequence[tuple[int, int]],
        expressions: Sequence[str],
        image_index: Sequence[int],
        prompts: tuple[PromptName, ...] | None = None,
        clicks: Sequence[Click] = (),
    ) -> list[Prediction]:
        """Predictions for expressions about already encoded images, in the given order.

        Args:
            features: from `encode`.
            sizes: (height, width) of each image.
            expressions: the texts.
            image_index: the image each is about.
            prompts: SAM prompts to use; None means the model's own.
            clicks: corrections, in the pixels of the one image they belong to.

        Raises:
            InputError: for a click outside the image, or for prompts or clicks where the model answers without
                SAM.
        """
        if not self.with_sam and (prompts is not None or len(clicks)):
            raise InputError(
                f"this model answers with CLIP's coarse mask, without SAM, and so takes no "
                f"{'clicks' if prompts is None else 'choice of SAM prompts'}: leave them out"
            )
        predictions: list[Prediction] = []
        for start in range(0, len(expressions), self.expressions_per_pass):
            part = slice(start, start + self.expressions_per_pass)
            texts, index = expressions[part], image_index[part]
            with inference():
                output = self.model(
                    features,
                    self.processor.expressions(texts, index).to(self.device),
                    prompts=prompts,
                    clicks=self._clicks(clicks, sizes[index[0]], len(texts)),
                )
                predictions += [
                    self._prediction(text, output, row, sizes[image])
                    for row, (text, image) in enumerate(zip(texts, index, strict=True))
                ]
        return predictions

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

    def _clicks(self, clicks: Sequence[Click], size: tuple[int, int], rows: int) -> Clicks | None:
        if not clicks:
            return None
        height, width = size
        for click in clicks:
            if len(click) != 3:
                raise InputError(f"the click {click!r} is not (x, y, label)")
            x, y, label = click
            if not (0 <= x < width and 0 <= y < height) or label not in (0, 1):
                raise InputError(
                    f"the click {x:g},{y:g},{label} is not X,Y inside the {width} x {height} image with a label "
                    "of 1 (part of the referent) or 0"
                )
        # SAM's clicks mean pixel centres.
        points = torch.tensor([((x + 0.5) / width, (y + 0.5) / height) for x, y, _ in clicks])
        labels = torch.tensor([int(label) for _, _, label in clicks])
        return Clicks(points.expand(rows, -1, -1).to(self.device), labels.expand(rows, -1).to(self.device))


class ImagePredictor(AnswersExpressions):
    """One encoded image; made by `Predictor.set_image`.

    Args:
        predictor: what it was made by.
        features: of this image.
        size: its (height, width).
    """

    def __init__(self, predictor: Predictor, features: ImageFeatures, size: tuple[int, int]) -> None:
        self.predictor, self.features, self.size = predictor, features, size

    def _ask(
        self, texts: list[str], prompts: tuple[PromptName, ...] | None, points: Sequence[Click]
    ) -> list[Prediction]:
        index = [0] * len(texts)
        return self.predictor.answer(self.features, [self.size], texts, index, prompts, points)


def load(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    clip: str | Path | None = None,
    sam: str | Path | None = None,
) -> Predictor:
    """A predictor by built-in name, model folder or hub id.

    Args:
        name: "tiny" (knows RefShapes scenes only), a folder written by `save_pretrained`, or a hub id.
        device: "auto" (cuda, mps or cpu, whichever is there first), or a torch device.
        dtype: "auto" (float32), "float32", "bfloat16" or "float16".
        clip: where the frozen CLIP is now, when it is not where it was at training time.
        sam: the same for SAM.

    Raises:
        InputError: when there is no such model, device or dtype.
    """
    return Predictor(place(PromptRIS.from_pretrained(name, clip, sam), device, dtype))


def place(model: PromptRIS, device: str = "auto", dtype: str = "auto") -> PromptRIS:
    """The model on a device, in a floating-point type; the arguments are those of `load`."""
    types = {"auto": torch.float32, **{n: getattr(torch, n) for n in ("float32", "bfloat16", "float16")}}
    if dtype not in types:
        raise InputError(f"there is no dtype {dtype!r}: choose from {', '.join(types)}")
    with model.sam.exact_positions():
        return model.to(device=pick_device(device), dtype=types[dtype])


def pick_device(name: str) -> torch.device:
    """The torch device of a name; "auto" takes the fastest kind that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {name!r} is not there: {str(error).splitlines()[0]}") from error
    return device
