"""The model that comes with the package, on scenes that nothing was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import promptris
from promptris.data.readers.refer import read_refer
from promptris.data.refshapes import WorldOptions, make_example
from promptris.data.refshapes.writer import write_refshapes
from promptris.evaluation.protocol import evaluate

HELD_OUT_SEED = 777


@pytest.fixture(scope="module")
def predictor():
    return promptris.load("tiny", device="cpu")


def test_it_is_small():
    folder = Path(promptris.__file__).parent / "assets" / "tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000


def test_it_answers_a_plain_question(predictor):
    image = np.full((96, 160, 3), 120, np.uint8)
    rows, columns = np.ogrid[:96, :160]
    circle = (rows - 48) ** 2 + (columns - 40) ** 2 < 20**2
    square = (abs(rows - 48) < 18) & (abs(columns - 118) < 18)
    image[circle], image[square] = (214, 38, 38), (40, 84, 214)
    with_image = predictor.set_image(image)
    for expression, truth in (("the red circle", circle), ("the blue square", square)):
        prediction = with_image.predict(expression)
        assert prediction.mask.shape == (96, 160)
        assert overlap(prediction.mask, truth) > 0.8, expression


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_different_expressions_mean_different_objects(predictor):
    example = make_example(HELD_OUT_SEED, 0, WorldOptions())
    with_image = predictor.set_image(example.image)
    ious = [overlap(with_image.predict(d.text).mask, example.masks[d.target]) for d in example.descriptions]
    assert np.mean(ious) > 0.8


def test_held_out_scenes(predictor, tmp_path: Path):
    """Ten scenes; the hundred of the README are in the slow tier."""
    write_refshapes(tmp_path / "data", {"test": 10}, HELD_OUT_SEED, WorldOptions())
    result = evaluate(predictor, read_refer(tmp_path / "data", "refshapes"), "test")
    assert result.final["mIoU"] > 0.85
    assert result.final["mIoU"] > result.coarse["mIoU"]


@pytest.mark.slow
def test_a_hundred_held_out_scenes(predictor, tmp_path: Path):
    write_refshapes(tmp_path / "data", {"test": 100}, HELD_OUT_SEED, WorldOptions())
    result = evaluate(predictor, read_refer(tmp_path / "data", "refshapes"), "test")
    assert result.final["mIoU"] >= 0.90
    assert result.coarse["mIoU"] >= 0.72
    assert result.final["P@0.5"] >= 0.96 and result.final["P@0.9"] >= 0.70
