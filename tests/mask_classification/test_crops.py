"""What CLIP sees of a proposal, with windows and colours worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptris.mask_classification.crops import (
    MEAN_COLOUR,
    crop_square,
    proposal_views,
    square_windows,
    window_masks,
)
from promptris.mask_classification.filtering import mask_boxes
from promptris.mask_classification.proposals import Proposals
from promptris.ops.resizing import resize_logits
from promptris.processing import CLIP_MEAN, CLIP_STD, stretch


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("box", "margin", "window"),
    [
        # 40 x 10 pixels around (40, 25).
        ([0.25, 0.5, 0.75, 0.75], 0.0, (20, 5, 40)),
        ([0.25, 0.5, 0.75, 0.75], 0.25, (10, -5, 60)),
        # The height counts when it is the longer side: 8 x 20 around (4, 10).
        ([0.0, 0.0, 0.1, 0.5], 0.5, (-16, -10, 40)),
        ([0.0, 0.0, 1.0, 1.0], 0.0, (0, -20, 80)),
        # Never less than a pixel, and that one inside the image.
        ([0.999, 0.999, 1.0, 1.0], 0.0, (79, 39, 1)),
        ([0.0, 0.0, 0.001, 0.001], 0.0, (0, 0, 1)),
    ],
)
def test_windows(box, margin, window):
    assert square_windows(torch.tensor([box]), (40, 80), margin) == [window]


def test_a_crop_inside_the_image_is_its_pixels(noise):
    crop = crop_square(noise, (10, 5, 30), 30)
    assert torch.equal(crop, torch.from_numpy(noise[5:35, 10:40].copy()).permute(2, 0, 1))
    smaller = crop_square(noise, (10, 5, 30), 16).permute(1, 2, 0).int()
    reference = stretch(np.ascontiguousarray(noise[5:35, 10:40]), 16, "bicubic").int()
    assert (smaller - reference).abs().max() <= 1


def test_what_lies_beyond_the_image_is_clips_mean_colour():
    white = np.full((40, 80, 3), 255, dtype=np.uint8)
    crop = crop_square(white, (-20, -10, 40), 20)  # the image fills columns 10.. and rows 5.. of it
    mean = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None]
    assert (crop[:, 5:, 10:] == 255).all()
    assert (crop[:, :5] == mean).all() and (crop[:, :, :10] == mean).all()
    assert torch.tensor(CLIP_MEAN).mul(255).round().tolist() == [float(value) for value in MEAN_COLOUR]


def test_windows_far_larger_than_the_image():
    line = np.full((1, 30_000, 3), 200, dtype=np.uint8)
    crop = crop_square(line, (0, -15_000, 30_000), 24)  # as it were 2.7 GB of pixels
    assert int((crop == 200).all(dim=0).sum()) == 24


def test_masks_in_a_window_are_those_of_the_resized_logits():
    logits = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = resize_logits(logits, (48, 48)) > 0
    assert torch.equal(window_masks(logits, [(0, 0, 48)] * 2, (48, 48), 48), whole)
    part = window_masks(logits, [(10, 20, 24), (0, 0, 24)], (48, 48), 24)
    assert torch.equal(part[0], whole[0, 20:44, 10:34]) and torch.equal(part[1], whole[1, :24, :24])


def test_masks_end_with_the_image():
    full = torch.full((1, 8, 8), 9.0)
    mask = window_masks(full, [(-10, -5, 20)], (30, 60), 20)[0]
    assert mask[5:, 10:].all() and not mask[:5].any() and not mask[:, :10].any()


def test_views_of_a_square(noise):
    """A mask of the picture's middle quarter: the crop shows it at its place, the masked crop nothing else."""
    logits = torch.full((1, 8, 8), -9.0)
    logits[0, 2:6, 2:6] = 9.0
    one = Proposals(logits, mask_boxes(logits > 0), torch.zeros(1, 2), torch.ones(1), torch.ones(1))
    # The box is 40 x 20 pixels at (20, 10); with margin 0.1 a square of 48 at (16, -4).
    crops, masks = proposal_views(noise, one, 48, 0.1)
    shown = crops[0] * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    expected = torch.from_numpy(noise[:, 16:64].copy()).permute(2, 0, 1) / 255
    assert torch.allclose(shown[:, 4:44], expected, atol=1e-5)
    assert crops[0][:, :4].abs().max() < 0.01  # the mean colour, but for its rounding to whole levels
    rows, columns = masks[0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 33, 4, 43)
    assert torch.equal(masks[0][4:44], (resize_logits(logits, (40, 80)) > 0)[0, :, 16:64])
    assert not masks[0][:4].any()
