"""oneDNN's linear layer equals torch's own, forwards and backwards, and stands back where it does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from promptris.modeling.recomputation import maybe_recomputed
from promptris.ops import onednn
from promptris.ops.attention import attend
from promptris.ops.onednn import (
    OneDnnLinears,
    by_whole_blocks,
    has_onednn,
    onednn_product,
    takes_layers_by_onednn,
)

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")


def results(shape, bias, inside):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 24, generator=generator, requires_grad=True)
    weight = torch.randn(40, 24, generator=generator, requires_grad=True)
    offset = torch.randn(40, generator=generator, requires_grad=True) if bias else None
    with inside:
        y = F.linear(x, weight, offset)
        (y.sin() * torch.arange(40)).sum().backward()
    return y, x.grad, weight.grad, None if offset is None else offset.grad


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 5), (1, 1)])
def test_values_and_gradients(shape, bias):
    plain, ours = results(shape, bias, torch.enable_grad()), results(shape, bias, OneDnnLinears())
    for expected, found in zip(plain, ours, strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """How often oneDNN's own layer was called."""
    calls = []
    original = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda *arguments: calls.append(1) or original(*arguments))
    return calls


@needs_onednn
def test_layers_that_are_frozen_get_no_gradient(counted):
    layer = nn.Linear(8, 4).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    with OneDnnLinears():
        layer(x).sum().backward()
    assert layer.weight.grad is None and len(counted) == 2
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))


@needs_onednn
def test_transposed_and_strided_inputs(counted):
    x, weight = torch.randn(6, 9)[:, ::3].t(), torch.randn(6, 5).t()
    with OneDnnLinears():
        ours = F.linear(x, weight)
    torch.testing.assert_close(ours, x @ weight.t())
    assert counted


def test_other_types_mixed_precision_and_nothing_at_all_are_left_alone(counted):
    layer = nn.Linear(8, 4)
    with OneDnnLinears():
        assert layer.double()(torch.randn(2, 8).double()).dtype == torch.float64
        layer.float()
        assert layer(torch.randn(0, 8)).shape == (0, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    layer(torch.randn(2, 8))
    assert not counted


@needs_onednn
@pytest.mark.parametrize("inside", [True, False])
def test_computed_again_by_the_same(counted, inside):
    """Activation checkpointing, whether the backward pass lies within or not."""
    layer = nn.Linear(8, 4)
    x = torch.randn(3, 8, requires_grad=True)

    def gradients(recompute):
        x.grad = layer.weight.grad = None
        with OneDnnLinears():
            loss = maybe_recomputed(recompute, lambda state: layer(state).sin(), x).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return x.grad.clone(), layer.weight.grad.clone()

    kept = gradients(recompute=False)
    assert len(counted) == 3  # forwards, and a gradient each for input and weight
    again = gradients(recompute=True)
    assert len(counted) == 3 + 4
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@needs_onednn
def test_outside_nothing_is_computed_by_it(counted):
    x = torch.randn(3, 8, requires_grad=True)
    maybe_recomputed(True, nn.Linear(8, 4), x).sum().backward()
    assert not counted


def test_without_onednn_nothing_changes(monkeypatch, counted):
    monkeypatch.setattr(onednn, "has_onednn", lambda: False)
    with OneDnnLinears():
        nn.Linear(3, 2)(torch.randn(1, 3))
    assert not counted


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("activation", "plain"), [("none", lambda x: x), ("swish", F.silu), ("gelu", F.gelu), ("relu", F.relu)]
)
def test_activations_in_the_same_pass(activation, plain, dtype):
    x, weight, bias = (3 * torch.randn(*shape) for shape in ((4, 5, 8), (6, 8), (6,)))
    expected = plain(F.linear(x, weight, bias))
    found = onednn_product(x.to(dtype), weight.to(dtype), bias.to(dtype), activation)
    assert found.dtype == dtype
    exact = dtype == torch.float32
    torch.testing.assert_close(
        found.float(), expected, atol=1e-4 if exact else 0.5, rtol=1e-5 if exact else 0.05
    )


def test_a_processor_without_half_precision_gets_torchs_own(monkeypatch):
    monkeypatch.setattr(onednn, "has_half_precision", lambda: False)
    assert not onednn.fits_onednn(torch.zeros(1, dtype=torch.bfloat16))
    assert onednn.fits_onednn(torch.zeros(1)) == has_onednn()


def test_layers_are_left_to_torch_where_something_is_learnt_or_types_differ():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    assert not takes_layers_by_onednn(x, weight)
    with torch.no_grad():
        assert takes_layers_by_onednn(x, weight) == has_onednn()
        assert not takes_layers_by_onednn(x.bfloat16(), weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes_layers_by_onednn(x, weight)


class Seen(TorchDispatchMode):
    """Rows and weights of oneDNN's products."""

    def __init__(self):
        super().__init__()
        self.rows, self.weights = [], []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.mkldnn._linear_pointwise.default:
            self.rows.append(arguments[0].shape[:-1].numel())
            self.weights.append(arguments[1])
        return function(*arguments, **(keywords or {}))


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@torch.no_grad()
def test_weights_lie_together_however_they_are_given():
    """For rows that lie apart oneDNN has a reference loop only, a hundred times slower."""
    heads = torch.randn(600, 4 * 64).unflatten(1, (4, 64)).transpose(0, 1)
    with Seen() as seen:
        product = onednn_product(heads[0], heads[1])
        attend(heads[None], heads[None], heads[None])
    torch.testing.assert_close(product, heads[0] @ heads[1].T, atol=1e-4, rtol=1e-4)
    assert len(seen.weights) > 8 and all(weight.is_contiguous() for weight in seen.weights)


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("shape", [(901, 24), (3, 211, 24), (904, 24), (5, 24)])
@torch.no_grad()
def test_rows_are_filled_up_to_whole_blocks(shape):
    x, layers = torch.randn(shape), [nn.Linear(24, 16), nn.Linear(24, 7)]
    expected = [layer(x) for layer in layers]
    with OneDnnLinears(), Seen() as seen:
        answers = by_whole_blocks(x, *layers)
    for answer, plain in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, plain, atol=1e-5, rtol=1e-5)
    rows = x.shape[:-1].numel()
    assert seen.rows == [rows + (-rows % 8 if rows >= 128 else 0)] * 2
