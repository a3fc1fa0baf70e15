"""The answer to an expression, and how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptris.config import PromptName
from promptris.errors import InputError, MissingExtraError
from promptris.images import ImageLike, load_image
from promptris.ops.masks import mask_bbox
from promptris.ops.polygons import mask_to_polygons
from promptris.ops.run_lengths import mask_to_rle
from promptris.visualize import heat_map, overlay, panel

if TYPE_CHECKING:
    from supervision import Detections

Click = tuple[float, float, int]
"""x, y in the image's own pixels, and 1 (part of the referent) or 0 (not part of it)."""
Box = tuple[float, float, float, float]
"""x, y, width, height in the image's own pixels, as `Prediction.bbox`."""


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

    def to_detections(self) -> Detections:
        """One detection of `supervision`; see the function of this name."""
        return to_detections([self])


def to_detections(predictions: Sequence[Prediction]) -> Detections:
    """Predictions about one image for `supervision`, whose annotators, filters and sinks take them.

    Returns:
        `supervision.Detections` in the order of the predictions: xyxy [N, 4] in pixels, mask bool [N, H, W],
        confidence [N], class_id [N] (equal expressions have equal numbers, the first one 0) and
        `data["expression"]`. An expression that nothing was found for stays, with an empty mask and a box of 0.

    Raises:
        MissingExtraError: when supervision is not installed.
        InputError: when the masks have different sizes and so belong to different images.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise MissingExtraError("supervision", "supervision") from error
    if not predictions:
        return Detections.empty()
    sizes = {prediction.mask.shape for prediction in predictions}
    if len(sizes) > 1:
        raise InputError(f"detections belong to one image, but the masks have {len(sizes)} different sizes")
    texts = [prediction.expression for prediction in predictions]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    corners = [(x, y, x + wide, y + high) for x, y, wide, high in (p.bbox for p in predictions)]
    return Detections(
        xyxy=np.array(corners, dtype=np.float32),
        mask=np.stack([prediction.mask for prediction in predictions]),
        confidence=np.array([prediction.score for prediction in predictions], dtype=np.float32),
        class_id=np.array([numbers[text] for text in texts]),
        data={"expression": texts},
    )


@dataclass(frozen=True)
class Explanation:
    """How an answer came about.

    Attributes:
        prediction: the answer.
        response: float32 [H_C, W_C], CLIP's response on its own grid as a probability (Eq. 2).
        prompts: the prompts that SAM was given; none where the model answers without SAM.
        points: a person's clicks.
        box: a person's box.
    """

    prediction: Prediction
    response: NDArray[np.float32]
    prompts: tuple[PromptName, ...]
    points: tuple[Click, ...] = ()
    box: Box | None = None

    @property
    def coarse_mask(self) -> NDArray[np.bool_]:
        """bool [H, W], CLIP's response alone."""
        return self.prediction.coarse_mask

    @property
    def point(self) -> tuple[int, int]:
        """(x, y) of the highest response, in the image's own pixels."""
        return self.prediction.point

    def picture(self, image: ImageLike) -> Image.Image:
        """Response, coarse mask with the point, and final mask side by side."""
        pixels, answer = load_image(image), self.prediction
        used = " + ".join(self.prompts) or "no SAM"
        return panel(
            [
                [
                    ("response", heat_map(pixels, self.response)),
                    ("coarse mask and point", overlay(pixels, answer.coarse_mask, point=answer.point)),
                    (f"final mask ({used}), score {answer.score:.2f}", overlay(pixels, answer.mask)),
                ]
            ]
        )
