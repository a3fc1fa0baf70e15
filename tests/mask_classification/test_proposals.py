"""Proposals of a random SAM: what SAM itself answers at every point of the grid, and which of it is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import promptris
from promptris.data.refshapes import make_example
from promptris.errors import InputError
from promptris.mask_classification.filtering import box_iou
from promptris.mask_classification.proposals import (
    SINGLE_MASK,
    ProposalConfig,
    point_grid,
    proposal_config_for,
    propose,
)
from promptris.modeling.sam_adapter import FOREGROUND, SamAdapter

SIDE = 3
EVERYTHING = ProposalConfig(
    points_per_side=SIDE, multimask=False, min_predicted_iou=0.0, min_stability=0.0, nms_iou=1.0
)


@pytest.fixture(scope="module")
def sam(make_sam):
    """A SAM whose predicted IoUs are around one half and whose logits reach beyond 1."""
    sam = SamAdapter(make_sam(seed=5))
    with torch.no_grad():
        for layer in (mlp.proj_out for mlp in sam.sam.mask_decoder.output_hypernetworks_mlps):
            layer.weight *= 20
            layer.bias *= 20
        head = sam.sam.mask_decoder.iou_prediction_head.proj_out
        head.weight *= 0.05
        head.bias += 0.5 - head.bias
    return sam


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def embedding(sam, pixels):
    with torch.no_grad():
        return sam.encode_image(pixels)


@pytest.fixture(scope="module")
def shapes():
    """The built-in SAM, whose masks are of shapes, and its features of a scene."""
    predictor = promptris.load("tiny", device="cpu")
    return predictor.model.sam, predictor.encode([make_example(4242, 0).image]).sam_embeddings


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def by_point(found):
    """Rows in the order of the grid, which the ranking has mixed."""
    x, y = found.points.T
    return found[(y * 1000 + x).argsort(stable=True)]


def test_the_grid_runs_row_by_row_over_cell_centres():
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert point_grid(1).tolist() == [[0.5, 0.5]]


def test_a_single_mask_per_point_is_the_adapters_own(sam, embedding):
    found = by_point(propose(sam, embedding, EVERYTHING))
    assert len(found) == SIDE * SIDE
    fractions = torch.tensor([[(x + 0.5) / SIDE, (y + 0.5) / SIDE] for y in range(SIDE) for x in range(SIDE)])
    rows = len(fractions)
    clicks = sam.click_embeddings(sam.embed_position(fractions)[:, None], torch.full((rows, 1), FOREGROUND))
    sparse = torch.cat([clicks, sam.padding_point().expand(rows, 1, -1)], dim=1)
    image, dense = embedding.expand(rows, -1, -1, -1), sam.no_mask().expand(rows, -1, 8, 8)
    logits, predicted_iou = sam.decode(image, dense, sparse, torch.ones(rows, 2, dtype=torch.bool))
    assert torch.allclose(found.points, fractions)
    assert torch.allclose(found.logits, logits, atol=1e-4)
    assert torch.allclose(found.predicted_iou, predicted_iou, atol=1e-5)


def test_three_masks_per_point_are_sams_own(sam, pixels, embedding):
    everything = replace(EVERYTHING, multimask=True, max_area=1.0)
    found = by_point(propose(sam, embedding, everything))
    # The pixels of SAM's own frame, 64 wide: its clicks mean the pixel's centre.
    frame = [
        [[64 * (x + 0.5) / SIDE - 0.5, 64 * (y + 0.5) / SIDE - 0.5]] for y in range(SIDE) for x in range(SIDE)
    ]
    answer = sam.sam(pixel_values=pixels, input_points=torch.tensor([frame]), multimask_output=True)
    masks = answer.pred_masks[0]
    assert masks.shape[:2] == (9, 3)
    expected = {(row, k): masks[row, k] for row in range(9) for k in range(3) if (masks[row, k] > 0).any()}
    assert len(found) == len(expected) > 9
    for logits, point in zip(found.logits, found.points, strict=True):
        row = int(point[1] * SIDE) * SIDE + int(point[0] * SIDE)
        assert min((logits - expected[key]).abs().max() for key in expected if key[0] == row) < 1e-4


@pytest.mark.parametrize("per_pass", [1, 4, 9])
def test_passes_of_any_size_give_the_same(sam, embedding, per_pass):
    config = replace(EVERYTHING, nms_iou=0.9)
    reference, found = (
        propose(sam, embedding, replace(config, points_per_pass=size)) for size in (100, per_pass)
    )
    assert torch.equal(found.points, reference.points)
    assert torch.allclose(found.logits, reference.logits, atol=1e-4)


def test_what_is_told_of_a_mask_is_true_of_it(shapes):
    found = propose(*shapes, EVERYTHING)
    assert len({tuple(box) for box in found.boxes.tolist()}) > 4
    for logits, box, steady in zip(found.logits, found.boxes, found.stability, strict=True):
        rows, columns = (logits > 0).nonzero().T
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (box * 64).tolist() == [int(value) for value in expected]
        assert steady == pytest.approx(float((logits > 1).sum() / (logits > -1).sum()))


@pytest.mark.parametrize("name", ["predicted_iou", "stability"])
def test_thresholds(sam, embedding, name):
    everything = by_point(propose(sam, embedding, EVERYTHING))
    values = getattr(everything, name)
    limit = float(values.median())
    kept = by_point(propose(sam, embedding, replace(EVERYTHING, **{f"min_{name}": limit})))
    assert torch.equal(kept.points, everything.points[values >= limit])
    assert 0 < len(kept) < len(everything)


def test_limits_of_area(sam, embedding):
    everything = by_point(propose(sam, embedding, EVERYTHING))
    area = (everything.logits > 0).float().mean(dim=(1, 2))
    middle = float(area.median())
    small = propose(sam, embedding, replace(EVERYTHING, max_area=middle))
    large = propose(sam, embedding, replace(EVERYTHING, min_area=middle))
    assert torch.equal(by_point(small).points, everything.points[area <= middle])
    assert torch.equal(by_point(large).points, everything.points[area >= middle])


@pytest.mark.parametrize("rank_by", ["predicted_iou", "stability"])
def test_of_masks_that_overlap_the_best_is_kept(shapes, rank_by):
    config = replace(EVERYTHING, points_per_side=6, rank_by=rank_by)
    everything = propose(*shapes, config)
    kept = propose(*shapes, replace(config, nms_iou=0.8))
    scores = getattr(kept, rank_by)
    assert 1 < len(kept) < len(everything)
    assert (scores.diff() <= 0).all()
    overlaps = box_iou(kept.boxes, kept.boxes).fill_diagonal_(0)
    assert overlaps.max() <= 0.8
    # Everything that is gone lies over something better that has stayed.
    over = box_iou(everything.boxes, kept.boxes) > 0.8
    better = scores[None] >= getattr(everything, rank_by)[:, None]
    assert (over & better).any(dim=1).all()


def test_nothing_may_be_left(sam, embedding):
    found = propose(sam, embedding, replace(EVERYTHING, max_area=0.0))
    assert len(found) == 0
    assert found.logits.shape == (0, 32, 32) and found.boxes.shape == (0, 4) and found.points.shape == (0, 2)


def test_which_sams_give_three_masks(make_sam, small_model):
    released_like = SamAdapter(make_sam())  # every weight of it has a value
    assert proposal_config_for(released_like) == ProposalConfig()
    assert ProposalConfig().multimask and not SINGLE_MASK.multimask
    assert proposal_config_for(small_model.sam) == SINGLE_MASK
    # The built-in SAM was taught its first mask alone.
    assert proposal_config_for(promptris.load("tiny", device="cpu").model.sam) == SINGLE_MASK


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("points_per_side", 0),
        ("points_per_pass", 0),
        ("min_predicted_iou", 1.5),
        ("min_stability", -0.1),
        ("nms_iou", float("nan")),
        ("max_area", 2.0),
        ("stability_offset", -1.0),
        ("rank_by", "beauty"),
    ],
)
def test_settings_that_make_no_sense_are_named(field, value):
    with pytest.raises(InputError, match=field):
        ProposalConfig(**{field: value})
