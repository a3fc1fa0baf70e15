"""Attention by rows equals torch's, and is only taken where nothing is learnt."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from promptris.ops import attention
from promptris.ops.attention import attend
from promptris.ops.onednn import has_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    made = []
    original = attention.attend_by_rows
    monkeypatch.setattr(attention, "attend_by_rows", lambda *a, **k: made.append(1) or original(*a, **k))
    monkeypatch.setattr(attention, "WORTH_IT", 20)
    return made


def inputs(dtype=torch.float32, queries=9):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, queries, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


@needs_onednn
@pytest.mark.parametrize("scores", [1, 21, 10_000])
@torch.no_grad()
def test_equals_torch(calls, monkeypatch, scores):
    monkeypatch.setattr(attention, "SCORES", scores)
    q, k, v = inputs()
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6, rtol=1e-5)
    assert calls


@needs_onednn
@torch.no_grad()
def test_half_precision_is_near(calls):
    q, k, v = inputs(torch.bfloat16)
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(attend(q, k, v).float(), exact, atol=0.02, rtol=0.02)
    assert calls


def test_torchs_own_with_gradients_with_few_scores_and_in_other_types(calls):
    q, k, v = inputs()
    attend(q.requires_grad_(), k, v).sum().backward()
    assert q.grad is not None
    with torch.no_grad():
        attend(*inputs(queries=2))
        attend(*inputs(torch.float64))
    assert not calls
