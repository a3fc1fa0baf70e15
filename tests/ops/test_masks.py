"""Mask operations against numbers worked out by hand, and round trips over arbitrary masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from promptris.errors import InputError
from promptris.ops.masks import BoolMask, iou_from_counts, mask_bbox, mask_iou
from promptris.ops.polygons import mask_to_coco_polygons, mask_to_polygons, polygons_to_mask
from promptris.ops.resizing import pool_masks, resize_logits
from promptris.ops.run_lengths import covers_nothing, mask_to_rle, rle_to_mask, segmentation_to_mask

any_mask = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24))


def from_rows(*rows: str) -> BoolMask:
    """A mask drawn with '#' for foreground."""
    return np.array([[c == "#" for c in row] for row in rows])


def disc(height: int, width: int, cx: float, cy: float, radius: float) -> BoolMask:
    y, x = np.mgrid[:height, :width] + 0.5
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


# Runs go down the columns and start with background; a character is its value plus 48; from the fourth run on
# the difference from the run two before is written.
RLE_CASES = [
    (from_rows(".#", "##"), "13", [1, 3]),
    (from_rows("##", "##"), "04", [0, 4]),
    (from_rows("..", ".."), "4", [4]),
    (from_rows(".###", "#.##"), "1212", [1, 2, 1, 4]),  # 4 - 2 = +2
    (from_rows(".#.", "###"), "131N", [1, 3, 1, 1]),  # 1 - 3 = -2, five bits 11110 = 30, 30 + 48 = 'N'
    (np.zeros((10, 10), dtype=bool), "T3", [100]),  # 100 = 4 + 3 * 32; 4 + 32 (more follows) + 48 = 'T'
]


@pytest.mark.parametrize(("mask", "text", "runs"), RLE_CASES)
def test_rle_by_hand(mask: BoolMask, text: str, runs: list[int]) -> None:
    size = list(mask.shape)
    assert mask_to_rle(mask) == {"size": size, "counts": text}
    for counts in (text, text.encode(), runs):
        decoded = rle_to_mask({"size": size, "counts": counts})
        assert decoded.dtype == bool
        np.testing.assert_array_equal(decoded, mask)


@given(any_mask)
@settings(max_examples=80, deadline=None)
def test_rle_round_trip_and_agreement_with_pycocotools(mask: BoolMask) -> None:
    rle = json.loads(json.dumps(mask_to_rle(mask)))
    np.testing.assert_array_equal(rle_to_mask(rle), mask)
    np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)


def test_rle_of_a_large_mask_with_long_runs() -> None:
    mask = disc(1500, 2200, 900, 700, 600)
    np.testing.assert_array_equal(rle_to_mask(mask_to_rle(torch.from_numpy(mask))), mask)


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ("13", "dict"),
        ({"counts": "13"}, "size"),
        ({"size": [2], "counts": "13"}, "size"),
        ({"size": [2, 0], "counts": "13"}, "size"),
        ({"size": [2, 3], "counts": "13"}, "add up"),
        ({"size": [2, 2], "counts": [1, -1, 4]}, "add up"),
        ({"size": [2, 2], "counts": [2**63 - 1, 2**63 - 1, 6]}, "add up"),  # 4 after overflow
        ({"size": [2, 2], "counts": []}, "list of integers"),
        ({"size": [2, 2], "counts": [0.5, 3.5]}, "list of integers"),
        ({"size": [2, 2], "counts": ""}, "damaged"),
        ({"size": [2, 2], "counts": "1 3"}, "damaged"),
        ({"size": [2, 2], "counts": "T"}, "damaged"),  # says that more follows, and ends
        ({"size": [2, 2], "counts": "o" * 30 + "0"}, "too large"),
        ({"size": [2, 2], "counts": "1é"}, "damaged"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "size"),
    ],
)
def test_damaged_rle_is_refused(rle: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rle_to_mask(rle)


def test_float_or_misshapen_masks_are_refused() -> None:
    with pytest.raises(InputError, match="threshold"):
        mask_to_rle(torch.rand(4, 4, dtype=torch.bfloat16))
    with pytest.raises(InputError, match="threshold"):
        mask_bbox(np.full((4, 4), 0.2))
    with pytest.raises(InputError, match="shape"):
        mask_to_rle(np.zeros((1, 4, 4), dtype=bool))


def test_segmentation_is_the_union_of_its_polygons() -> None:
    # Columns 1-3 of rows 1-2, and columns 3-4 of rows 2-3: 6 + 4 - 1 shared = 9 pixels.
    polygons = [[1, 1, 4, 1, 4, 3, 1, 3], [3, 2, 5, 2, 5, 4, 3, 4]]
    expected = from_rows("......", ".###..", ".####.", "...##.", "......")
    np.testing.assert_array_equal(segmentation_to_mask(polygons, 5, 6), expected)


def test_segmentation_takes_both_kinds_of_rle() -> None:
    mask = from_rows(".#.", "###")
    for counts in ("131N", [1, 3, 1, 1]):
        np.testing.assert_array_equal(segmentation_to_mask({"size": [2, 3], "counts": counts}, 2, 3), mask)


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([], "empty"),
        (None, "empty"),
        ([[]], "0 points"),
        ([[1, 1, 4, 4]], "2 points"),  # pycocotools would fill this as a box
        ([[1, 1, 4, 1, 4, 3], [1, 1, 4, 1, 4, 3, 2]], "Polygon 1 .* odd"),
        ([[1, 1, 4, 1, "x", 3]], "numbers"),
        ([1, 1, 4, 1, 4, 3], "flat list"),
        ([[1, 1, 4, 1, float("nan"), 3]], "finite"),
        ([[1, 1, 4, 1, 1e300, 3]], "outside"),
        ({"size": [3, 2], "counts": "15"}, "3x2 .* 2x3"),
    ],
)
def test_bad_segmentations_are_refused(segmentation: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        segmentation_to_mask(segmentation, 2, 3)


def test_polygon_fill_takes_pixels_by_their_centre() -> None:
    # Triangle below x + y < 4: centres (i + 0.5) + (j + 0.5) < 4, so i + j < 3.
    expected = from_rows("###..", "##...", "#....", ".....")
    np.testing.assert_array_equal(polygons_to_mask([[[0, 0, 4, 0, 0, 4]]], 4, 5), expected)
    # From 0.6 to 3.7 lie the centres 1.5, 2.5, 3.5; from 0.4 to 1.3 the centre 0.5.
    box = [[0.6, 0.4, 3.7, 0.4, 3.7, 1.3, 0.6, 1.3]]
    np.testing.assert_array_equal(polygons_to_mask([box], 2, 5), from_rows(".###.", "....."))


def test_polygon_fill_keeps_holes_and_unites_regions() -> None:
    ring_with_hole = [[0, 0, 4, 0, 4, 4, 0, 4], [1, 1, 3, 1, 3, 3, 1, 3]]
    corner_over_the_hole = [[0, 0, 4.2, 0, 0, 4.2]]  # x + y < 4.2 fills three pixels of the hole
    beyond_the_image = [[3, 3, 9, 3, 9, 9, 3, 9]]
    expected = from_rows("####.", "####.", "##.#.", "#####", "...##")
    found = polygons_to_mask([ring_with_hole, corner_over_the_hole, beyond_the_image], 5, 5)
    np.testing.assert_array_equal(found, expected)


def test_polygons_of_one_pixel_and_of_a_ring() -> None:
    ((pixel,),) = mask_to_polygons(from_rows("...", ".#."))
    points = {tuple(p) for p in np.reshape(pixel, (-1, 2)).tolist()}
    assert points == {(1.5, 1.0), (2.0, 1.5), (1.5, 2.0), (1.0, 1.5)}  # half a pixel around (1.5, 1.5)

    (region,) = mask_to_polygons(from_rows("#####", "#...#", "#####"))
    assert len(region) == 2
    outer, hole = (np.reshape(ring, (-1, 2)) for ring in region)
    assert (outer.min(0).tolist(), outer.max(0).tolist()) == ([0, 0], [5, 3])
    # Between the centres of background (1.5 to 3.5) and of the ring around them, half way.
    assert (hole.min(0).tolist(), hole.max(0).tolist()) == ([1, 1], [4, 2])


def test_polygons_separate_regions_and_empty_mask() -> None:
    assert mask_to_polygons(np.zeros((3, 4), dtype=bool)) == []
    assert len(mask_to_polygons(from_rows("#.#", "#.#"))) == 2
    assert not polygons_to_mask([], 3, 4).any()


@given(any_mask)
@settings(max_examples=80, deadline=None)
def test_polygon_round_trip_is_exact(mask: BoolMask) -> None:
    polygons = json.loads(json.dumps(mask_to_polygons(mask)))
    np.testing.assert_array_equal(polygons_to_mask(polygons, *mask.shape), mask)


@given(any_mask)
@settings(max_examples=150, deadline=None)
def test_coco_polygons_fill_the_same_pixels_by_cocos_own_rules(mask: BoolMask) -> None:
    rings = mask_to_coco_polygons(mask)
    if not mask.any():
        assert rings == []
        return
    filled = coco_mask.decode(coco_mask.frPyObjects(rings, *mask.shape)).sum(axis=2)
    assert np.array_equal(filled, mask)  # also: no pixel is in two rings
    assert np.array_equal(segmentation_to_mask(rings, *mask.shape), mask)


def test_a_hole_is_a_detour_of_the_outline() -> None:
    (ring,) = mask_to_coco_polygons(from_rows("###", "#.#", "###"))
    points = list(zip(ring[::2], ring[1::2], strict=True))
    assert points.count(points[0]) == 3  # left, gone back to, and closed
    assert segmentation_to_mask([ring], 3, 3).sum() == 8


def test_polygons_serve_other_rasterisers_too() -> None:
    blob = disc(120, 160, 80, 60, 40) | disc(120, 160, 110, 60, 20)
    segmentation = [rings[0] for rings in mask_to_polygons(blob)]
    assert mask_iou(segmentation_to_mask(segmentation, 120, 160), blob) > 0.95


def test_bbox() -> None:
    assert mask_bbox(from_rows(".....", "..##.", "...#.")) == [2, 1, 2, 2]
    assert mask_bbox(torch.ones(3, 5, dtype=torch.bool)) == [0, 0, 5, 3]
    assert mask_bbox(np.zeros((3, 5), dtype=bool)) == [0, 0, 0, 0]


def test_iou() -> None:
    a, b = from_rows("##..", "##.."), from_rows(".##.", "....")
    empty = np.zeros_like(a)
    assert mask_iou(a, b) == 1 / 5  # shared 1; 4 + 2 - 1
    assert mask_iou(torch.from_numpy(a), b) == 1 / 5
    assert mask_iou(a, empty) == 0.0
    assert mask_iou(empty, empty) == 1.0
    with pytest.raises(InputError, match="different sizes"):
        mask_iou(a, a[:, :3])
    with pytest.raises(InputError, match="cannot belong"):
        iou_from_counts(5, 4)


def test_resize_logits_by_hand() -> None:
    # Doubling [0, 4]: new centres lie at -0.25, 0.25, 0.75, 1.25 of the old ones, clamped to the ends.
    wide = resize_logits(torch.tensor([[[0.0, 4.0]]]), (1, 4))
    assert wide.tolist() == [[[0.0, 1.0, 3.0, 4.0]]]
    # Any number of leading axes, the empty batch included.
    assert resize_logits(torch.zeros(2, 3, 5, 4, 4), (8, 6)).shape == (2, 3, 5, 8, 6)
    assert resize_logits(torch.zeros(4, 4), (2, 2)).shape == (2, 2)
    assert resize_logits(torch.zeros(0, 4, 4), (8, 6)).shape == (0, 8, 6)
    with pytest.raises(InputError, match="shape"):
        resize_logits(torch.zeros(4), (2, 2))


def test_pool_masks_gives_shares() -> None:
    mask = torch.from_numpy(from_rows("##..", "#...", "....", "..##"))
    expected = [[[0.75, 0.0], [0.0, 0.5]]]
    assert pool_masks(mask[None], (2, 2)).tolist() == expected
    assert pool_masks(mask[None].to(torch.uint8) * 255, (2, 2)).tolist() == expected
    assert pool_masks(mask[None].float(), (2, 2)).tolist() == expected
    assert pool_masks(mask[None], (4, 4)).tolist() == mask[None].float().tolist()


def test_pooling_and_resizing_share_one_frame() -> None:
    """A mask pooled down and resized up again lies where it was: neither has a half-pixel shift."""
    mask = torch.from_numpy(disc(480, 640, 200, 300, 90))
    back = resize_logits(pool_masks(mask[None], (64, 64)), (480, 640))[0] > 0.5
    assert mask_iou(back, mask) > 0.97
    ys, xs = np.nonzero(back.numpy())
    assert abs(xs.mean() + 0.5 - 200) < 0.5
    assert abs(ys.mean() + 0.5 - 300) < 0.5


def test_pooling_divides_pixels_that_lie_across_cells() -> None:
    # Three columns to two: the middle one is half in each, and a cell is 1.5 pixels wide.
    mask = torch.from_numpy(from_rows("##.", ".#."))
    expected = torch.tensor([[[1.0, 1 / 3], [1 / 3, 1 / 3]]])
    for same in (mask, mask.to(torch.uint8) * 255, mask.to(torch.int64) * -1, mask.float()):
        torch.testing.assert_close(pool_masks(same[None], (2, 2)), expected, atol=1e-7, rtol=0)
    # Two to three, coarse to fine: the middle cell sees half of each.
    assert pool_masks(torch.tensor([[[True, False]]]), (1, 3)).tolist() == [[[1.0, 0.5, 0.0]]]
    assert pool_masks(torch.tensor([[[1.0, 0.5]]]), (2, 4)).tolist() == [[[1.0, 1.0, 0.5, 0.5]] * 2]


def test_pooling_takes_any_leading_axes_and_memory_order() -> None:
    masks = torch.rand(2, 3, 9, 14) > 0.5
    pooled = pool_masks(masks, (4, 5))
    assert pooled.shape == (2, 3, 4, 5) and pooled.is_contiguous() and pooled.dtype == torch.float32
    assert torch.equal(pooled[1, 2], pool_masks(masks[1, 2], (4, 5)))
    turned = masks.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(pool_masks(turned, (4, 5)), pooled)
    assert pool_masks(masks[:0], (4, 5)).shape == (0, 3, 4, 5)
    with pytest.raises(InputError, match="shape"):
        pool_masks(torch.zeros(4), (2, 2))


def test_pooling_of_large_full_masks_is_exactly_one() -> None:
    """Primes, so that weights are as large as they get: the sums beyond 2**24 must not round above 1."""
    assert pool_masks(torch.ones(1, 4001, 4999, dtype=torch.bool), (64, 63)).unique().tolist() == [1.0]
    assert pool_masks(torch.ones(1, 32771, 2, dtype=torch.bool), (3, 3)).unique().tolist() == [1.0]


@given(any_mask, st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_pooling_is_the_area_share_of_every_cell(mask: BoolMask, height: int, width: int) -> None:
    # Every pixel as height x width subpixels: each cell is then a whole number of them.
    fine = np.kron(mask, np.ones((height, width)))
    expected = fine.reshape(height, mask.shape[0], width, mask.shape[1]).mean((1, 3))
    pooled = pool_masks(torch.from_numpy(mask)[None], (height, width))[0]
    np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-7)
    assert pooled.min() >= 0 and pooled.max() <= 1
    assert abs(pooled.double().mean().item() - mask.mean()) < 1e-6
    turned = pool_masks(torch.from_numpy(mask.T.copy())[None], (width, height))[0]
    assert torch.equal(turned, pooled.T)
    shares = pool_masks(torch.from_numpy(mask)[None].float(), (height, width))[0]
    np.testing.assert_allclose(shares.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "nothing"), [([], True), ([(0, 0)], True), ([(0, 1)], False), ([(0, 0), (1, 0)], False)]
)
def test_masks_that_cover_nothing(pixels, nothing):
    mask = np.zeros((3, 2), dtype=bool)
    for pixel in pixels:
        mask[pixel] = True
    assert covers_nothing(mask_to_rle(mask)["counts"].encode(), 3, 2) is nothing


def test_the_only_pixel_of_an_image_is_something():
    counts = mask_to_rle(np.ones((1, 1), dtype=bool))["counts"].encode()
    assert not covers_nothing(counts, 1, 1)


def test_coordinates_that_no_float_can_hold_are_named():
    with pytest.raises(InputError, match=r"Polygon 0 .* not finite or lie absurdly far"):
        segmentation_to_mask([[10**400, 1, 2, 3, 4, 5]], 8, 8)
