"""Predictions as detections of supervision."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest

import promptris
from promptris.errors import InputError, MissingExtraError
from promptris.prediction import Prediction, to_detections

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")


def prediction(mask: np.ndarray, expression: str = "ring", score: float = 0.25) -> Prediction:
    return Prediction(expression, mask, score=score, coarse_mask=mask, point=(2, 1))


@pytest.fixture
def predictions() -> list[Prediction]:
    first, second = np.zeros((2, 7, 9), dtype=bool)
    first[2:5, 3:8] = True
    second[0, 8] = True
    return [
        prediction(first, "ring", 0.5),
        prediction(second, "der rote Stern", 0.75),
        prediction(np.zeros((7, 9), bool), "ring", 0.0),
    ]


def test_detections_hold_masks_boxes_scores_and_expressions(predictions: list[Prediction]) -> None:
    found = promptris.to_detections(predictions)
    assert found.xyxy.tolist() == [[3, 2, 8, 5], [8, 0, 9, 1], [0, 0, 0, 0]]
    assert found.mask is not None and found.mask.dtype == np.bool_
    for mask, given in zip(found.mask, predictions, strict=True):
        assert (mask == given.mask).all()
    assert found.confidence is not None and found.confidence.tolist() == [0.5, 0.75, 0.0]
    assert found.class_id is not None and found.class_id.tolist() == [0, 1, 0]
    assert found.data["expression"] == ["ring", "der rote Stern", "ring"]
    chosen = found[found.confidence > 0.6]
    assert chosen.data["expression"] == ["der rote Stern"] and len(chosen) == 1
    assert found.area.tolist() == [15, 1, 0]


def test_annotators_take_them(predictions: list[Prediction]) -> None:
    import supervision

    scene = np.zeros((7, 9, 3), np.uint8)
    drawn = supervision.MaskAnnotator(opacity=1).annotate(scene.copy(), predictions[0].to_detections())
    assert (drawn.any(axis=2) == predictions[0].mask).all()


def test_no_predictions_and_predictions_about_two_images() -> None:
    assert len(to_detections([])) == 0
    with pytest.raises(InputError, match="2 different sizes"):
        to_detections([prediction(np.ones((2, 3), bool)), prediction(np.ones((3, 2), bool))])


def test_without_supervision_it_is_said_what_to_install(
    predictions: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "supervision":
            raise ImportError(name)
        return original(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == "supervision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'promptris\[supervision\]'"):
        to_detections(predictions)
    with pytest.raises(MissingExtraError):
        predictions[0].to_detections()
