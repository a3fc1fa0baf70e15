"""Boxes, stability and non-maximum suppression, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from promptris.mask_classification.filtering import box_iou, mask_boxes, stability, suppress_overlapping


def test_boxes_are_tight_and_in_fractions():
    masks = torch.zeros(4, 4, 8, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    masks[0, 1, 3] = False  # a hole changes nothing
    masks[1] = True
    masks[2, 3, 7] = True
    expected = [[2 / 8, 1 / 4, 5 / 8, 3 / 4], [0, 0, 1, 1], [7 / 8, 3 / 4, 1, 1], [0, 0, 0, 0]]
    assert torch.equal(mask_boxes(masks), torch.tensor(expected))
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_stability_is_the_share_that_survives_a_stricter_cut():
    logits = torch.full((3, 2, 4), -5.0)
    logits[0, 0] = torch.tensor([3.0, 1.5, 0.5, -0.5])  # above 1: two, above -1: four
    logits[1, 1] = 9.0  # four either way
    assert stability(logits).tolist() == [0.5, 1.0, 0.0]
    # Cut at 1 and 0: two of three. Cut at 3.5 and -0.5: none of three, as -0.5 itself is not above.
    assert stability(logits[:1], threshold=0.5, offset=0.5).tolist() == pytest.approx([2 / 3])
    assert stability(logits[:1], threshold=1.5, offset=2.0).tolist() == [0.0]


def test_overlap_of_boxes():
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]])
    b = torch.tensor(
        [[0.25, 0.0, 0.75, 0.5], [0.0, 0.0, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2]]
    )
    assert torch.allclose(box_iou(a, b), torch.tensor([[1 / 3, 1 / 2, 0.0, 0.0], [0.0] * 4]))


BOXES = torch.tensor(
    [
        [0.0, 0.0, 0.8, 1.0],
        [0.0, 0.0, 1.0, 1.0],  # IoU 0.8 with the first
        [0.2, 0.0, 1.0, 1.0],  # 0.8 with the second, 0.6 with the first
        [0.0, 0.0, 0.1, 0.1],  # small, alone
    ]
)


@pytest.mark.parametrize(
    ("scores", "highest", "kept"),
    [
        ([0.5, 0.9, 0.7, 0.1], 0.7, [1, 3]),
        # The second falls to the first and takes nobody with it.
        ([0.9, 0.8, 0.7, 0.95], 0.7, [3, 0, 2]),
        ([0.9, 0.8, 0.7, 0.1], 0.5, [0, 3]),
        ([0.9, 0.8, 0.7, 0.1], 1.0, [0, 1, 2, 3]),
        # Of equal scores the first is kept.
        ([0.5, 0.5, 0.5, 0.5], 0.7, [0, 2, 3]),
    ],
)
def test_suppression(scores, highest, kept):
    assert suppress_overlapping(BOXES, torch.tensor(scores), highest).tolist() == kept


def test_boxes_exactly_at_the_limit_are_kept():
    halves = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    scores = torch.tensor([0.1, 0.2])
    assert suppress_overlapping(halves, scores, 0.5).tolist() == [1, 0]
    assert suppress_overlapping(halves, scores, 0.49).tolist() == [1]


def test_nothing_to_suppress():
    assert suppress_overlapping(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
