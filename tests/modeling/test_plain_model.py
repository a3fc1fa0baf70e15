"""Every faster path gives what the plain way gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptris.data.refshapes import WorldOptions, make_example
from promptris.modeling.plain import PlainPromptRIS
from promptris.ops.onednn import has_half_precision, has_onednn, inference
from promptris.placement import place
from promptris.predictor import Predictor, load
from promptris.structures import ExpressionBatch, ImageBatch

SCENES = 6
EXPRESSIONS = ExpressionBatch(
    torch.tensor([[598, 5, 6, 599, 599], [598, 7, 8, 9, 599], [598, 11, 599, 599, 599]]),
    torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool),
    torch.tensor([1, 0, 1]),
)


def relative(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.fixture(scope="module")
def scenes():
    return [make_example(777, index, WorldOptions()) for index in range(SCENES)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prompting", [{}, {"direction": "l2v"}, {"direction": "none"}, {"first_layer": 1}])
@torch.no_grad()
def test_small_models_with_relative_positions(make_clip, make_sam, make_model, prompting, attention):
    model = make_model(make_clip(), make_sam(use_rel_pos=True), prompting=prompting)
    images = ImageBatch(torch.randn(2, 3, 48, 48), torch.randn(2, 3, 64, 64))
    plain = PlainPromptRIS(model, attention)
    expected = plain(plain.encode_image(images), EXPRESSIONS)
    with inference():
        found = model(model.encode_image(images), EXPRESSIONS)
    for name in ("coarse_logits", "mask_logits", "predicted_iou"):
        assert relative(getattr(found, name), getattr(expected, name)) < 1e-4, name
    assert torch.equal(found.point_index, expected.point_index)


@torch.no_grad()
def test_the_built_in_model_answers_the_same_masks(scenes):
    """float32: logits to a thousandth, masks pixel by pixel."""
    predictor = load("tiny", device="cpu", dtype="float32")
    plain = PlainPromptRIS(predictor.model, "eager")
    for scene in scenes:
        texts = [description.text for description in scene.descriptions]
        images = predictor.processor.images([scene.image])
        expressions = predictor.processor.expressions(texts)
        expected = plain(plain.encode_image(images), expressions)
        with inference():
            found = predictor.model(predictor.model.encode_image(images), expressions)
        assert relative(found.mask_logits, expected.mask_logits) < 1e-3
        assert torch.equal(found.mask_logits > 0, expected.mask_logits > 0)
        assert torch.equal(found.point_index, expected.point_index)


@pytest.mark.skipif(not (has_onednn() and has_half_precision()), reason="no bfloat16 on this processor")
def test_half_precision_answers_nearly_the_same_masks(scenes):
    exact = load("tiny", device="cpu", dtype="float32")
    half = Predictor(place(load("tiny", device="cpu").model, "cpu", "bfloat16"))
    final, coarse = [], []
    for scene in scenes:
        texts = [description.text for description in scene.descriptions]
        pairs = zip(
            exact.set_image(scene.image).predict(texts),
            half.set_image(scene.image).predict(texts),
            strict=True,
        )
        for a, b in pairs:
            final.append((a.mask & b.mask).sum() / max((a.mask | b.mask).sum(), 1))
            coarse.append(
                (a.coarse_mask & b.coarse_mask).sum() / max((a.coarse_mask | b.coarse_mask).sum(), 1)
            )
    assert np.mean(final) >= 0.98 and np.mean(coarse) >= 0.97, (np.mean(final), np.mean(coarse))
    assert np.median(final) >= 0.98
