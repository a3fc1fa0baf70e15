"""The lean image encoder equals transformers', and its attention one with the bias of all pairs."""

from __future__ import annotations

import pytest
import torch
from transformers import SamConfig, SamModel

from promptris.modeling.relative_attention import attend_with_relative_positions, by_rows, folded
from promptris.modeling.sam_adapter import SamAdapter
from promptris.modeling.sam_encoder import encode_image
from promptris.ops import attention
from promptris.ops.onednn import OneDnnLinears, has_onednn


def make_encoder(side=64, window=4, relative=True, dtype=torch.float32):
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": 8,
        "window_size": window,
        "global_attn_indexes": [1],
        "use_rel_pos": relative,
        "output_channels": 32,
        "num_pos_feats": 16,
        "initializer_range": 0.02,
    }
    prompts = {"hidden_size": 32, "image_size": side, "patch_size": 8}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
    sam = SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    for parameter in sam.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return sam.eval().to(dtype).vision_encoder


def far(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    ("side", "window"), [(64, 4), (64, 8), (96, 5), (64, 3), (128, 14), (128, 16), (64, 9)]
)
@torch.no_grad()
def test_equals_transformers(side, window, relative):
    """Windows that fit, that stick out to one or both sides, and that are larger than the image."""
    encoder = make_encoder(side, window, relative)
    pixels = torch.randn(1, 3, side, side)
    before = pixels.clone()
    expected = encoder(pixels).last_hidden_state
    assert far(encode_image(encoder, pixels), expected) < 1e-6
    assert torch.equal(pixels, before)
    with OneDnnLinears():
        assert far(encode_image(encoder, pixels), expected) < 2e-6


@torch.no_grad()
def test_half_precision_is_as_near_as_transformers_own():
    pixels = torch.randn(1, 3, 96, 96)
    expected = make_encoder(96, 5)(pixels).last_hidden_state
    half = make_encoder(96, 5, dtype=torch.bfloat16)
    theirs = half(pixels.bfloat16()).last_hidden_state
    assert far(encode_image(half, pixels.bfloat16()), expected) < 1.2 * far(theirs, expected)


def attention_inputs(groups, grid, extent, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    queries, keys = extent[0] * extent[1], grid[0] * grid[1]

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return (
        *(random(groups, count, 16) for count in (queries, keys, keys)),
        random(groups, queries, grid[0]),
        random(groups, queries, grid[1]),
    )


def by_hand(q, k, v, rel_h, rel_w):
    bias = (rel_h[:, :, :, None] + rel_w[:, :, None, :]).flatten(2)
    return (q @ k.transpose(1, 2) / 16**0.5 + bias).softmax(-1) @ v


@pytest.mark.parametrize("entries", [1, 40, 1000, 10_000_000])
@pytest.mark.parametrize(("grid", "extent"), [((5, 7), (5, 7)), ((5, 7), (2, 3)), ((1, 9), (1, 1))])
def test_attention_by_hand_whatever_is_held_at_once(monkeypatch, entries, grid, extent):
    monkeypatch.setattr(attention, "SCORES", entries)
    inputs = attention_inputs(6, grid, extent)
    expected = by_hand(*inputs)
    torch.testing.assert_close(attend_with_relative_positions(*inputs), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded(*inputs), expected, atol=1e-5, rtol=1e-5)
    if has_onednn():
        torch.testing.assert_close(by_rows(*inputs), expected, atol=1e-5, rtol=1e-5)


def test_no_bias_of_all_pairs_is_ever_held(monkeypatch):
    """Measured by the meter of training costs: 12 heads on 32 x 32 tokens would take 50 MB."""
    from promptris.modeling.cost import _Meter

    monkeypatch.setattr(attention, "SCORES", 65_536)
    inputs = attention_inputs(12, (32, 32), (32, 32))
    meter = _Meter()
    meter.ignore(inputs)
    with torch.no_grad(), meter:
        attend_with_relative_positions(*inputs)
    assert meter.peak < 3_000_000


@torch.no_grad()
def test_an_encoder_that_was_compiled_is_called(make_sam):
    sam = SamAdapter(make_sam(use_rel_pos=True))
    pixels = torch.randn(2, 3, 64, 64)
    expected = sam.encode_image(pixels)
    seen = []

    def backend(graph, inputs):
        seen.append(1)
        return graph

    sam.compile_encoder(backend=backend)
    assert far(sam.encode_image(pixels), expected) < 1e-6
    assert seen


def test_an_encoder_that_is_trained_has_gradients_in_every_layer(make_sam):
    """transformers' own layers then, one by one computed again where memory is short."""
    sam = SamAdapter(make_sam(use_rel_pos=True))
    sam.requires_grad_(True)
    pixels = torch.randn(2, 3, 64, 64)
    found = {}
    for recompute in (False, True):
        sam.recompute = recompute
        sam.zero_grad()
        features = sam.encode_image(pixels)
        features.square().sum().backward()
        encoder = sam.sam.vision_encoder
        found[recompute] = [p.grad.clone() for p in encoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True))
    assert all(gradient.abs().max() > 0 for gradient in found[True])
    with torch.no_grad():
        torch.testing.assert_close(sam.encode_image(pixels), features, atol=1e-4, rtol=1e-4)
