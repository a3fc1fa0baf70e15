"""SAM with our own prompts equals transformers' SamModel with the same ones."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from promptris.modeling.sam_adapter import SamAdapter

IMAGE, MASK = 64, 32


@pytest.fixture(params=[False, True], ids=["plain", "rel_pos"], scope="module")
def sam(request, make_sam):
    return SamAdapter(make_sam(use_rel_pos=request.param))


@pytest.fixture(scope="module")
def adapter(make_sam):
    return SamAdapter(make_sam())


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def inputs(seed=0, batch=3):
    """Pixels, mask logits, whole-pixel clicks [B, 3, 2] with labels [B, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 3, IMAGE, IMAGE, generator=generator),
        4 * torch.randn(batch, MASK, MASK, generator=generator),
        torch.randint(0, IMAGE, (batch, 3, 2), generator=generator).float(),
        torch.tensor([[1, 0, 1]]).expand(batch, -1),
    )


def theirs(sam, pixels, masks=None, points=None, labels=None, boxes=None):
    """transformers' answer: mask logits [B, 32, 32] and IoU [B] of `multimask_output=False`."""
    output = sam.sam(
        pixel_values=pixels,
        input_masks=None if masks is None else masks[:, None],
        input_points=None if points is None else points[:, None],
        input_labels=None if labels is None else labels[:, None],
        input_boxes=None if boxes is None else boxes[:, None],
        multimask_output=False,
    )
    return output.pred_masks[:, 0, 0], output.iou_scores[:, 0, 0]


def ours(sam, pixels, masks=None, points=None, labels=None, text=None):
    """The same through the adapter: clicks are fractions of the image, at pixel centres."""
    batch = len(pixels)
    sparse = pixels.new_zeros(batch, 0, sam.dim)
    if points is not None:
        clicks = sam.click_embeddings(sam.embed_position((points + 0.5) / IMAGE), labels)
        sparse = torch.cat([clicks, sam.padding_point().expand(batch, 1, -1)], dim=1)
    if text is not None:
        sparse = torch.cat([sparse, text], dim=1)
    dense = sam.no_mask().expand(batch, -1, 8, 8) if masks is None else sam.embed_mask(masks)
    everything = torch.ones(batch, sparse.shape[1], dtype=torch.bool)
    return sam.decode(sam.encode_image(pixels), dense, sparse, everything)


def same_answer(a, b):
    assert a[0].std() > 1e-2  # a constant mask would show nothing
    close(a[0], b[0])
    close(a[1], b[1])


@torch.no_grad()
def test_image_features_are_sams(sam):
    pixels = inputs()[0]
    close(sam.encode_image(pixels), sam.sam.get_image_embeddings(pixels))
    close(sam.image_code(), sam.sam.get_image_wide_positional_embeddings())
    assert (sam.image_size, sam.grid_size, sam.mask_size, sam.dim) == (IMAGE, 8, MASK, 32)


@torch.no_grad()
def test_mask_and_clicks_with_empty_text_equal_sam(sam):
    pixels, masks, points, labels = inputs()
    same_answer(
        ours(sam, pixels, masks, points, labels, text=torch.zeros(3, 0, 32)),
        theirs(sam, pixels, masks, points, labels),
    )


@torch.no_grad()
def test_one_click_without_mask_equals_sam(sam):
    pixels, _, points, labels = inputs(1)
    points, labels = points[:, :1], labels[:, :1]
    same_answer(ours(sam, pixels, None, points, labels), theirs(sam, pixels, None, points, labels))


@torch.no_grad()
def test_mask_alone_equals_sam(sam):
    pixels, masks, _, _ = inputs(2)
    same_answer(ours(sam, pixels, masks), theirs(sam, pixels, masks))


@torch.no_grad()
def test_no_prompt_at_all_equals_sam(sam):
    pixels = inputs(3)[0]
    same_answer(ours(sam, pixels), theirs(sam, pixels))


@torch.no_grad()
def test_box_equals_sam(adapter):
    pixels = inputs(4)[0]
    boxes = torch.tensor([[3.0, 5.0, 40.0, 41.0], [0.0, 0.0, 63.0, 63.0], [10.0, 20.0, 11.0, 60.0]])
    corners = (boxes.unflatten(1, (2, 2)) + 0.5) / IMAGE
    result = adapter.decode(
        adapter.encode_image(pixels),
        adapter.no_mask().expand(3, -1, 8, 8),
        adapter.box_embeddings(corners),
        torch.ones(3, 2, dtype=torch.bool),
    )
    same_answer(result, theirs(adapter, pixels, boxes=boxes))


@torch.no_grad()
def test_batch_equals_singles(adapter):
    pixels, masks, points, labels = inputs(5)
    together = ours(adapter, pixels, masks, points, labels)
    for i in range(3):
        row = slice(i, i + 1)
        alone = ours(adapter, pixels[row], masks[row], points[row], labels[row])
        close(alone[0][0], together[0][i])
        close(alone[1][0], together[1][i])


@torch.no_grad()
def test_masked_tokens_leave_no_trace(adapter):
    """Extra tokens that a sample does not have equal tokens that do not exist."""
    pixels, masks, points, labels = inputs(6)
    plain = ours(adapter, pixels, masks, points, labels)
    clicks = adapter.click_embeddings(adapter.embed_position((points + 0.5) / IMAGE), labels)
    real = torch.cat([clicks, adapter.padding_point().expand(3, 1, -1)], dim=1)
    junk = 50 * torch.randn(3, 5, 32)
    sparse = torch.cat([junk[:, :2], real, junk[:, 2:]], dim=1)
    present = torch.tensor([False] * 2 + [True] * 4 + [False] * 3).expand(3, -1)
    features, dense = adapter.encode_image(pixels), adapter.embed_mask(masks)
    same_answer(adapter.decode(features, dense, sparse, present), plain)
    with_junk = adapter.decode(features, dense, sparse, torch.ones_like(present))
    assert (with_junk[0] - plain[0]).abs().max() > 1e-2


@torch.no_grad()
def test_text_tokens_follow_the_points_in_any_order(adapter):
    """SAM's prompt tokens carry no order, so text behaves as any other token."""
    pixels, masks, points, labels = inputs(7)
    text = torch.randn(3, 4, 32)
    first = ours(adapter, pixels, masks, points, labels, text)
    second = ours(adapter, pixels, masks, points, labels, text[:, [2, 0, 3, 1]])
    same_answer(first, second)
    assert (first[0] - ours(adapter, pixels, masks, points, labels)[0]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    ("x", "y"), [(0, 0), (31, 0), (0, 31), (31, 31), (16, 0), (0, 9), (31, 5), (20, 31), (7, 22)]
)
def test_cell_equals_sams_click_at_its_centre(adapter, x, y):
    """A 2 x 2 pixel cell has its centre on the corner of four pixels: SAM's 2x + 0.5, and it adds 0.5."""
    click = torch.tensor([[[[2 * x + 0.5, 2 * y + 0.5]]]])
    expected, _ = adapter.sam.prompt_encoder(click, torch.ones(1, 1, 1), None, None)
    index = torch.tensor([y * MASK + x])
    one_hot = torch.zeros(1, MASK * MASK)
    one_hot[0, index] = 1
    label = torch.ones(1, 1, dtype=torch.long)
    for position in (adapter.embed_position(adapter.cell_centres(index)), one_hot @ adapter.position_grid()):
        token = adapter.click_embeddings(position[:, None], label)
        close(torch.cat([token[:, 0], adapter.padding_point()]), expected[0, 0], 1e-6)


@torch.no_grad()
def test_background_clicks_have_their_own_label(adapter):
    click = torch.tensor([[[[12.0, 50.0]]]])
    expected, _ = adapter.sam.prompt_encoder(click, torch.zeros(1, 1, 1), None, None)
    position = adapter.embed_position((click[0] + 0.5) / IMAGE)
    close(adapter.click_embeddings(position, torch.zeros(1, 1, dtype=torch.long))[0], expected[0, 0, :1])


@torch.no_grad()
def test_position_grid_is_sines_and_cosines_of_the_matrix(adapter):
    matrix = adapter.sam.prompt_encoder.shared_embedding.positional_embedding
    grid = adapter.position_grid()
    assert grid.shape == (MASK * MASK, 32)
    for x, y in ((0, 0), (31, 0), (5, 17), (31, 31)):
        centre = torch.tensor([(x + 0.5) / MASK, (y + 0.5) / MASK])
        angle = 2 * math.pi * ((2 * centre - 1) @ matrix)
        close(grid[y * MASK + x], torch.cat([angle.sin(), angle.cos()]))


@torch.no_grad()
def test_position_grid_is_kept_until_the_matrix_changes(adapter):
    sam = copy.deepcopy(adapter)
    first = sam.position_grid()
    assert sam.position_grid() is first
    matrix = sam.sam.prompt_encoder.shared_embedding.positional_embedding
    matrix.mul_(2)
    second = sam.position_grid()
    assert second is not first and (second - first).abs().max() > 0.1
    close(second, sam.embed_position(sam.cell_centres(torch.arange(MASK * MASK))))
    sam.load_state_dict(adapter.state_dict())
    close(sam.position_grid(), first)
    sam.double()
    assert sam.position_grid().dtype == torch.float64


def test_position_grid_made_while_predicting_serves_training(make_sam):
    """Tensors of inference mode cannot be used in backward, so the kept grid must not be one."""
    sam = SamAdapter(make_sam())
    with torch.inference_mode():
        sam.position_grid()
    weights = torch.rand(2, MASK * MASK, requires_grad=True)
    (weights @ sam.position_grid()).sum().backward()
    assert weights.grad.abs().max() > 0


@torch.no_grad()
def test_positions_stay_exact_under_mixed_precision(make_sam):
    sam, points = SamAdapter(make_sam()), torch.rand(20, 2)
    expected, grid = sam.embed_position(points), SamAdapter(sam.sam).position_grid()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sam.embed_position(points), expected)
        assert torch.equal(sam.position_grid(), grid)


def test_gradients_flow_through_every_prompt(make_sam):
    sam = SamAdapter(make_sam()).requires_grad_(False)
    pixels, masks, _, _ = inputs(8)
    masks.requires_grad_()
    sparse = torch.randn(3, 4, 32, requires_grad=True)
    present = torch.tensor([[True, True, True, False]]).expand(3, -1)
    logits, iou = sam.decode(sam.encode_image(pixels), sam.embed_mask(masks), sparse, present)
    (logits.square().mean() + iou.sum()).backward()
    assert (masks.grad.abs().amax(dim=(1, 2)) > 0).all()
    assert (sparse.grad[:, :3].abs().amax(dim=2) > 0).all()
    assert (sparse.grad[:, 3] == 0).all()
    assert all(p.grad is None for p in sam.parameters())
