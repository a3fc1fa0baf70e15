"""CLIP's view of proposals and expressions, against CLIP itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import promptris
from promptris.errors import InputError
from promptris.mask_classification.crops import proposal_views
from promptris.mask_classification.filtering import mask_boxes
from promptris.mask_classification.proposals import Proposals
from promptris.mask_classification.scoring import (
    ScoringConfig,
    choice_probabilities,
    embed_expressions,
    embed_proposals,
)
from promptris.mask_classification.towers import FrozenTowers

TEXTS = ["a b", "c", "dd e fff"]


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def towers(make_model):
    return FrozenTowers.of(make_model(seed=3))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)


def proposals_of(masks):
    """Proposals that are given masks [P, h, w]."""
    count = len(masks)
    logits = torch.where(masks, 9.0, -9.0)
    return Proposals(logits, mask_boxes(masks), torch.zeros(count, 2), torch.ones(count), torch.ones(count))


@pytest.fixture(scope="module")
def three():
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :4, :3] = masks[1, 5:, 2:9] = masks[2, 2:4, 2:4] = True
    return proposals_of(masks)


def test_text_features_are_clips_own(towers):
    features = embed_expressions(towers.clip, towers.processor(), TEXTS)
    for text, row in zip(TEXTS, features, strict=True):
        ids = torch.tensor([towers.tokenizer(text)["input_ids"]])
        own = towers.clip(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds[0]
        assert torch.allclose(row, own, atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-2)


def test_many_expressions_run_in_passes(towers):
    texts = [f"{number} things" for number in range(70)]
    features = embed_expressions(towers.clip, towers.processor(), texts)
    assert features.shape == (70, 16)
    alone = embed_expressions(towers.clip, towers.processor(), texts[-1:])
    assert torch.allclose(features[-1:], alone, atol=1e-5)


@pytest.mark.parametrize(("crop_weight", "masked_weight"), [(1.0, 0.0), (0.0, 2.0), (1.0, 3.0)])
def test_similarity_is_the_weighted_mean_of_two_cosines(towers, pixels, three, crop_weight, masked_weight):
    config = ScoringConfig(0.2, crop_weight, masked_weight)
    text = embed_expressions(towers.clip, towers.processor(), TEXTS)
    similarity = text @ embed_proposals(towers.clip, pixels, three, config).T
    crops, masks = proposal_views(pixels, three, 32, 0.2)
    ids = torch.tensor([towers.tokenizer("c")["input_ids"]])
    seen, hidden = (
        F.cosine_similarity(
            towers.clip(input_ids=ids, pixel_values=view).image_embeds[None], text[:, None], dim=2
        )
        for view in (crops, crops * masks[:, None])
    )
    expected = (crop_weight * seen + masked_weight * hidden) / (crop_weight + masked_weight)
    assert torch.allclose(similarity, expected, atol=1e-5)
    assert (seen - hidden).abs().max() > 1e-3


def test_passes_of_any_size_give_the_same(towers, pixels, three):
    reference, found = (
        embed_proposals(towers.clip, pixels, three, ScoringConfig(crops_per_pass=size)) for size in (64, 2)
    )
    assert torch.allclose(found, reference, atol=1e-5)


def test_no_proposal_has_no_features(towers, pixels, three):
    assert embed_proposals(towers.clip, pixels, three[:0], ScoringConfig()).shape == (0, 16)


def test_probabilities_are_a_softmax_at_clips_temperature(make_clip):
    clip = make_clip()
    clip.logit_scale.data.fill_(np.log(10.0))
    proposals = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    probabilities = choice_probabilities(clip, proposals, torch.tensor([[1.0, 0.0]]))
    # Cosines 1 and 0.6, ten times as far apart: 1 / (1 + e^-4).
    assert probabilities[0].tolist() == pytest.approx([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))])


def test_a_clip_that_knows_shapes_tells_them_apart():
    """Two objects as proposals, and the ground that holds both: each description finds its own."""
    towers = FrozenTowers.of(promptris.load("tiny", device="cpu").model)
    image = np.full((128, 128, 3), 120, np.uint8)
    rows, columns = np.ogrid[:128, :128]
    circle = (rows - 64) ** 2 + (columns - 32) ** 2 < 20**2
    square = (abs(rows - 64) < 18) & (abs(columns - 94) < 18)
    image[circle], image[square] = (214, 38, 38), (40, 84, 214)
    found = proposals_of(torch.from_numpy(np.stack([square, circle, ~(circle | square)])))
    text = embed_expressions(towers.clip, towers.processor(), ["the red circle", "the blue square"])
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        features = embed_proposals(towers.clip, image, found, ScoringConfig(0.5, *weights))
        assert (text @ features.T).argmax(dim=1).tolist() == [1, 0], weights


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"margin": -0.1}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"crop_weight": -1.0}, "crop_weight"),
        ({"crop_weight": 0.0, "masked_weight": 0.0}, "both 0"),
        ({"crops_per_pass": 0}, "crops_per_pass"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        ScoringConfig(**settings)
