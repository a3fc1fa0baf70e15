"""The image of a record, checked against the size that its annotations are for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from promptris.data.records import ImageRecord
from promptris.errors import InputError
from promptris.images import load_image


def load_record(record: ImageRecord, at_least: int | None = None) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3].

    Args:
        record: which image.
        at_least: see `load_image`; the result may then be smaller than the record says.

    Raises:
        InputError: naming the file, when it cannot be read or is not the image that was annotated.
    """
    pixels = load_image(record.path, at_least)
    height, width = pixels.shape[:2]
    expected = {
        (-(-record.height // k), -(-record.width // k)) for k in ((1,) if at_least is None else (1, 2, 4, 8))
    }
    if (height, width) not in expected:
        height, width = load_image(record.path).shape[:2]
        raise InputError(
            f"{record.path} has {width} x {height} pixels, its annotations are for "
            f"{record.width} x {record.height}: get the original image"
        )
    return pixels
