"""The kernel for attention within windows equals arithmetic by hand, and so does SAM's encoder around it.

With a GPU the kernel itself runs; without one Triton's interpreter runs it, where Triton (a gigabyte) is installed:

    TRITON_INTERPRET=1 pytest tests/ops/test_window_attention.py
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch.nn import functional as F
from transformers import SamConfig, SamModel

from promptris.modeling import sam_encoder
from promptris.ops import window_attention

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
RUNS = importlib.util.find_spec("triton") and (ON_GPU or os.environ.get("TRITON_INTERPRET") == "1")


def by_hand(qkv, places, empty, size):
    """[I, H, W, D] in double precision, window by window."""
    images, height, width, channels = qkv.shape
    heads, head = len(places), channels // 3 // len(places)
    down, across = -(-height // size), -(-width // size)
    full = empty.double().expand(images, down * size, across * size, channels).clone()
    full[:, :height, :width] = qkv.double()
    bias = F.pad(
        places.double(), (0, 0, 0, across * size - width, 0, down * size - height)
    )  # [heads, I, H, W, P]
    out = full.new_zeros(images, down * size, across * size, channels // 3)
    row, column = torch.arange(size**2) // size, torch.arange(size**2) % size
    vertical = size - 1 + row[:, None] - row[None, :]
    horizontal = 3 * size - 2 + column[:, None] - column[None, :]
    for top in range(0, down * size, size):
        for left in range(0, across * size, size):
            here = (slice(None), slice(top, top + size), slice(left, left + size))
            q, k, v = full[here].flatten(1, 2).unflatten(-1, (3, heads, head)).permute(2, 0, 3, 1, 4)
            offsets = bias[(slice(None), *here)].flatten(2, 3).transpose(0, 1)  # [I, heads, tokens, P]
            picked = (index.to(qkv.device).expand(images, heads, -1, -1) for index in (vertical, horizontal))
            scores = q @ k.transpose(2, 3) / head**0.5 + sum(offsets.gather(3, x) for x in picked)
            answers = scores.softmax(-1) @ v
            out[here] = answers.transpose(1, 2).flatten(2).unflatten(1, (size, size))
    return out[:, :height, :width]


def inputs(height, width, size, heads=2, head=16, images=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    channels = 3 * heads * head
    shapes = (
        (images, height, width, channels),
        (heads, images, height, width, -(-(4 * size - 2) // 8) * 8),
        (channels,),
    )
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def far(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.skipif(not RUNS, reason="Triton has neither a GPU nor TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("height", "width", "size", "head"),
    [(10, 10, 4, 16), (16, 16, 16, 32), (20, 17, 14, 64), (9, 9, 9, 16), (30, 24, 24, 16), (64, 64, 64, 64)],
)
@pytest.mark.parametrize("launch", [(64, 4, 3), (32, 2, 2)])
def test_kernel_equals_arithmetic_by_hand(height, width, size, head, launch):
    """Windows that fit and that stick out; keys in steps of one row of the window and of several."""
    dtype = torch.float16 if ON_GPU else torch.float32
    given = inputs(height, width, size, head=head, images=1 if size == 64 else 2, dtype=dtype)
    answer = window_attention.run_kernel(*given, size, launch)
    assert far(answer, by_hand(*given, size)) < (1e-3 if ON_GPU else 1e-6)


def make_encoder(side, window):
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 8,
        "window_size": window,
        "global_attn_indexes": [1],
        "output_channels": 32,
        "num_pos_feats": 16,
    }
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": side, "patch_size": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4},
    )
    sam = SamModel(config)
    for parameter in sam.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return sam.eval().vision_encoder


@pytest.mark.parametrize(("side", "window"), [(64, 4), (64, 8), (96, 5), (128, 14)])
@torch.no_grad()
def test_encoder_around_the_kernel_equals_transformers(monkeypatch, side, window):
    """The kernel's place is taken by arithmetic by hand, which says what it must compute."""
    monkeypatch.setattr(window_attention, "run_kernel", lambda *given: by_hand(*given).float())
    encoder = make_encoder(side, window).to(DEVICE)
    pixels = torch.randn(2, 3, side, side, device=DEVICE)
    expected = encoder(pixels).last_hidden_state
    assert far(sam_encoder.encode_on_gpu(encoder, pixels), expected) < 2e-6


@pytest.mark.skipif(not ON_GPU, reason="there is no GPU")
@torch.no_grad()
def test_half_precision_on_a_gpu_is_as_near_as_transformers_own():
    encoder, pixels = make_encoder(128, 14).cuda(), torch.randn(3, 3, 128, 128, device="cuda")
    expected = encoder(pixels).last_hidden_state
    encoder.bfloat16()
    assert sam_encoder.fits_gpu(encoder, pixels.bfloat16())
    ours = sam_encoder.encode_on_gpu(encoder, pixels.bfloat16())
    theirs = encoder(pixels.bfloat16()).last_hidden_state
    assert far(ours, expected) < 1.2 * far(theirs, expected)
    assert torch.isfinite(ours).all()


def test_what_does_not_fit_the_kernel_is_computed_otherwise():
    encoder, pixels = make_encoder(64, 4), torch.zeros(1, 3, 64, 64)
    assert not sam_encoder.fits_gpu(encoder, pixels)
    cuda, half = torch.device("cuda"), torch.bfloat16
    fits = [
        window_attention.fits_kernel(cuda, half, 14, 64),
        window_attention.fits_kernel(cuda, torch.float32, 14, 64),
        window_attention.fits_kernel(cuda, half, 200, 64),
        window_attention.fits_kernel(cuda, half, 14, 40),
        window_attention.fits_kernel(torch.device("cpu"), half, 14, 64),
    ]
    assert fits == [window_attention.has_triton(), False, False, False, False]
