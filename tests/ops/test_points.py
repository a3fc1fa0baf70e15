"""Eq. 3: one position is drawn exactly, and its gradient is the soft sample's."""

from __future__ import annotations

import pytest
import torch

from promptris.ops.points import gumbel_one_hot, highest_position


def gumbel_noise(shape, seed):
    """-log(-log u), written through the exponential draws of the same generator."""
    draws = torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed))
    return -draws.log()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_forward_is_exactly_one_hot(temperature):
    logits = 8 * torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    sample = gumbel_one_hot(logits, temperature, torch.Generator().manual_seed(2))
    assert ((sample == 0) | (sample == 1)).all()
    assert torch.equal(sample.sum(dim=1), torch.ones(64))


def test_the_winner_is_the_highest_noisy_logit_at_any_temperature():
    logits = torch.randn(32, 50, generator=torch.Generator().manual_seed(3))
    expected = (logits + gumbel_noise((32, 50), 4)).argmax(dim=1)
    for temperature in (0.2, 1.0, 3.0):
        sample = gumbel_one_hot(logits, temperature, torch.Generator().manual_seed(4))
        assert torch.equal(sample.argmax(dim=1), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gradient_is_the_jacobian_of_the_tempered_softmax(temperature):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 7, generator=generator, requires_grad=True)
    upstream = torch.randn(3, 7, generator=generator)
    gumbel_one_hot(logits, temperature, torch.Generator().manual_seed(6)).backward(upstream)

    p = ((logits.detach() + gumbel_noise((3, 7), 6)) / temperature).softmax(dim=1)
    # d softmax_i / d logit_j = p_i (delta_ij - p_j) / temperature
    jacobian = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / temperature
    expected = torch.einsum("bi,bij->bj", upstream, jacobian)
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)
    assert expected.abs().max() > 0.01


def test_frequencies_are_those_of_the_softmax():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0])
    draws = 40_000
    sample = gumbel_one_hot(logits.expand(draws, -1), 0.3, torch.Generator().manual_seed(7))
    observed, expected = sample.sum(dim=0), draws * logits.softmax(dim=0)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    # 99.9 % point of chi-square with 4 degrees of freedom.
    assert chi_square < 18.5


def test_rows_draw_their_own_noise():
    sample = gumbel_one_hot(torch.zeros(200, 100), generator=torch.Generator().manual_seed(8))
    assert len(sample.argmax(dim=1).unique()) > 50


def test_default_noise_comes_from_the_global_generator():
    torch.manual_seed(11)
    first = gumbel_one_hot(torch.zeros(4, 1000))
    torch.manual_seed(11)
    assert torch.equal(first, gumbel_one_hot(torch.zeros(4, 1000)))
    assert not torch.equal(first, gumbel_one_hot(torch.zeros(4, 1000)))


def test_half_precision_logits_give_one_hot_of_their_type():
    logits = torch.randn(4, 4096, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16)
    sample = gumbel_one_hot(logits)
    assert sample.dtype == torch.bfloat16
    assert torch.equal(sample.float().sum(dim=1), torch.ones(4))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    sample = gumbel_one_hot(logits, 0.1)
    sample.square().sum().backward()
    assert sample.tolist() == [[1.0, 0.0, 0.0]]
    assert logits.grad.isfinite().all()


def test_highest_position():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 4.9]])
    assert highest_position(logits).tolist() == [1, 0]


def test_on_a_plateau_rounding_does_not_choose():
    """The first cell of a plateau wins, whichever cell rounding has put ahead."""
    logits = torch.tensor([-7.0, 2.0, 9.0, 9.0, 9.0, 8.9])
    for lifted in (2, 3, 4):
        noisy = logits.clone()
        noisy[lifted] += 4e-6
        assert highest_position(noisy[None]).tolist() == [2]


def test_small_but_real_differences_do_choose():
    assert highest_position(torch.tensor([[0.0, 1.0, 1.001, 0.5]])).tolist() == [2]
    assert highest_position(torch.tensor([[0.0, 1e-6, 1.1e-6]])).tolist() == [2]
    assert highest_position(torch.zeros(2, 5)).tolist() == [0, 0]
