"""Predictions as responses."""

from __future__ import annotations

import base64
import io

from promptris.prediction import Prediction
from promptris.processing import Processor
from promptris.serving.schemas import Format, SegmentedExpression
from promptris.visualize import mask_image


def describe(prediction: Prediction, format: Format) -> SegmentedExpression:
    """A prediction in numbers, with its mask in the format asked for."""
    regions = prediction.to_polygons() if format == "polygon" else None
    if regions is not None:
        # COCO's lists of rings know no holes; "regions" keeps them.
        segmentation: object = [region[0] for region in regions]
    else:
        segmentation = prediction.to_rle() if format == "rle" else _png(prediction)
    return SegmentedExpression.model_validate(
        {
            "expression": prediction.expression,
            "score": round(prediction.score, 6),
            "area": prediction.area,
            "bbox": tuple(prediction.bbox),
            "point": prediction.point,
            "segmentation": segmentation,
            "regions": regions,
        }
    )


def reading_note(processor: Processor, expressions: list[str]) -> str | None:
    """What is to be said where the model does not read an expression to its end."""
    lengths = [len(ids) for ids in processor.tokenizer(expressions, verbose=False)["input_ids"]]
    for number, length in enumerate(lengths, start=1):
        if length > processor.context_length:
            return (
                f"expression {number} has {length - 2} tokens: the model reads the first "
                f"{processor.context_length - 2}"
            )
    return None


def join_notes(*notes: str | None) -> str | None:
    """What there is to say, in one text."""
    return "; ".join(note for note in notes if note) or None


def _png(prediction: Prediction) -> str:
    buffer = io.BytesIO()
    mask_image(prediction.mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
