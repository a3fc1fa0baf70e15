"""Pixel counts kept by expression give the protocol's metrics again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from promptris.data.records import Expression, Referent
from promptris.errors import InputError
from promptris.evaluation.protocol import Scored
from promptris.experiments.measurements import METRICS, Measurements, Measuring
from promptris.metrics import RISMetrics
from promptris.prediction import Prediction


def scored(
    image_id: int, ann_id: int, sent_id: int, final: np.ndarray, coarse: np.ndarray, truth: np.ndarray
) -> Scored:
    expression = Expression(sent_id, "the thing", None)
    referent = Referent(ann_id, ann_id, image_id, 1, "val", (expression,), (ann_id,))
    return Scored(referent, expression, Prediction("the thing", final, 1.0, coarse, (0, 0)), truth)


@pytest.fixture(scope="module")
def samples() -> list[Scored]:
    """Forty expressions about some objects of seven images; some masks are empty."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(40):
        image = int(rng.integers(7))
        ann = 10 * image + int(rng.integers(3))
        final, coarse, truth = rng.random((3, 6, 5)) < rng.random((3, 1, 1))
        found.append(scored(image, ann, number, final & (number % 9 > 0), coarse, truth))
    return found


@pytest.fixture(scope="module")
def measured(samples: list[Scored]) -> Measurements:
    measuring = Measuring()
    for one in samples:
        measuring.add(one)
    return measuring.measurements()


@pytest.mark.parametrize("masks", ["final", "coarse"])
def test_every_metric_is_the_protocols(samples: list[Scored], measured: Measurements, masks: str):
    reference = RISMetrics()
    for one in samples:
        mask = one.prediction.mask if masks == "final" else one.prediction.coarse_mask
        reference.update(mask, one.truth, one.referent.image_id, one.referent.ann_id)
    expected = reference.compute()
    for metric in METRICS:
        assert measured.value(metric, masks) == pytest.approx(expected[metric], abs=1e-12), metric


def test_a_metric_is_a_ratio_of_sums_over_images(measured: Measurements):
    for metric in METRICS:
        above, below = measured.parts(metric)
        assert len(above) == len(below) == len(np.unique(measured.image_id))
        assert below.min() > 0


def test_drawing_an_image_twice_is_having_its_expressions_twice(measured: Measurements):
    last = measured.image_id == measured.image_id.max()
    order = np.concatenate([np.arange(len(measured)), np.flatnonzero(last)])
    # The copy is another image with other objects, as in a draw with repetition.
    shift = np.concatenate([np.zeros(len(measured), int), np.full(last.sum(), 1000)])
    doubled = Measurements(
        measured.image_id[order] + shift,
        measured.ann_id[order] + shift,
        np.arange(len(order)),
        {kind: values[order] for kind, values in measured.intersection.items()},
        {kind: values[order] for kind, values in measured.union.items()},
    )
    weights = np.ones(len(np.unique(measured.image_id)))
    weights[-1] = 2
    for metric in METRICS:
        above, below = measured.parts(metric)
        assert (weights @ above) / (weights @ below) == pytest.approx(doubled.value(metric)), metric


def test_objects_of_different_images_are_different_whatever_their_numbers():
    """Both images have an object 1: means 0.2 and 1.0 of three objects, 0.5 of the third."""
    hundred, inter = np.full(5, 100), np.array([10, 30, 100, 100, 50])
    found = Measurements(
        np.array([7, 7, 8, 8, 8]),
        np.array([1, 1, 1, 1, 2]),
        np.arange(5),
        {"final": inter, "coarse": inter},
        {"final": hundred, "coarse": hundred},
    )
    assert found.value("InstAcc") == pytest.approx((0.2 + 1.0 + 0.5) / 3)
    above, below = found.parts("InstAcc")
    assert above.tolist() == pytest.approx([0.2, 1.5]) and below.tolist() == [1, 2]


def test_what_is_saved_is_read_again(measured: Measurements, tmp_path: Path):
    path = tmp_path / "deep" / "m.safetensors"
    measured.save(path, {"split": "val"})
    again = Measurements.load(path)
    for name in ("image_id", "ann_id", "sent_id"):
        assert np.array_equal(getattr(again, name), getattr(measured, name))
    for masks in ("final", "coarse"):
        assert np.array_equal(again.intersection[masks], measured.intersection[masks])
        assert np.array_equal(again.union[masks], measured.union[masks])
    assert [entry.name for entry in path.parent.iterdir()] == ["m.safetensors"]


def test_damage_and_nonsense_are_named(measured: Measurements, tmp_path: Path):
    path = tmp_path / "m.safetensors"
    measured.save(path, {})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"m\.safetensors holds no measurements"):
        Measurements.load(path)
    with pytest.raises(InputError, match="no metric 'mIOU'"):
        measured.parts("mIOU")
    with pytest.raises(InputError, match=r"no metric 'P@0\.55'"):
        measured.parts("P@0.55")
    with pytest.raises(InputError, match="no expression"):
        Measuring().measurements()
