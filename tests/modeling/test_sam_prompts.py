"""What SAM is told: the point of Eq. 3, text prompts, and which prompts a sample has."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from promptris.modeling.sam_adapter import SamAdapter
from promptris.modeling.sam_prompts import Corrections, TextPrompter, point_position, sparse_prompts
from promptris.ops.points import gumbel_one_hot

MASK = 32
WORDS = torch.tensor([[True, True, True, False], [True, True, True, True]])


@pytest.fixture(scope="module")
def sam(make_sam):
    return SamAdapter(make_sam()).requires_grad_(False)


@pytest.fixture(scope="module")
def prompter():
    torch.manual_seed(0)
    prompter = TextPrompter(text_dim=12, dim=32, layers=2, heads=4)
    with torch.no_grad():
        for parameter in prompter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return prompter


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def sams_click(sam, x, y, label=1):
    """SAM's own tokens [click; padding point] for a click at the centre of a cell of the 32 x 32 grid."""
    click = torch.tensor([[[[2 * x + 0.5, 2 * y + 0.5]]]])
    return sam.sam.prompt_encoder(click, torch.full((1, 1, 1), label), None, None)[0][0, 0]


def peak(*cells, height=60.0):
    """Response maps with one overwhelming cell (x, y) each."""
    logits = torch.zeros(len(cells), MASK, MASK)
    for row, (x, y) in enumerate(cells):
        logits[row, y, x] = height
    return logits


# ----------------------------------------------------------------------------------------------- point, Eq. 3


@pytest.mark.parametrize("sample", [True, False])
@torch.no_grad()
def test_the_point_is_sams_click_at_the_centre_of_the_winning_cell(sam, sample):
    cells = [(0, 0), (31, 0), (0, 31), (31, 31), (12, 0), (30, 17), (5, 20)]
    position, index = point_position(sam, peak(*cells), sample, 1.0)
    assert index.tolist() == [y * MASK + x for x, y in cells]
    tokens, _ = sparse_prompts(
        sam,
        position,
        torch.zeros(7, 0, 32),
        torch.ones(7, 0, dtype=torch.bool),
        torch.ones(7, 3, dtype=torch.bool),
        None,
    )
    for row, (x, y) in enumerate(cells):
        close(tokens[row], sams_click(sam, x, y), 1e-6)


@torch.no_grad()
def test_inference_takes_the_highest_response_and_draws_nothing(sam):
    logits = torch.randn(4, MASK, MASK)
    state = torch.get_rng_state()
    position, index = point_position(sam, logits, False, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(index, logits.flatten(1).argmax(dim=1))
    close(position, sam.position_grid()[index])


@torch.no_grad()
def test_sampling_draws_positions_in_proportion_to_the_response(sam):
    logits = torch.full((1, MASK, MASK), -40.0)
    logits[0, 3, 4], logits[0, 20, 9] = 0.0, math.log(3)
    torch.manual_seed(0)
    _, index = point_position(sam, logits.expand(2000, -1, -1), True, 1.0)
    assert set(index.tolist()) == {3 * MASK + 4, 20 * MASK + 9}
    assert 0.71 < (index == 20 * MASK + 9).float().mean() < 0.79


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_points_gradient_is_the_straight_through_one(sam, temperature):
    logits = torch.randn(2, MASK, MASK, requires_grad=True)
    upstream = torch.randn(2, 32)
    torch.manual_seed(5)
    position, index = point_position(sam, logits, True, temperature)
    assert torch.equal(position, sam.position_grid()[index])
    position.backward(upstream)

    torch.manual_seed(5)
    noise = -torch.empty(2, MASK * MASK).exponential_().log()
    soft_logits = logits.detach().flatten(1).requires_grad_()
    soft = ((soft_logits + noise) / temperature).softmax(dim=1)
    (soft @ sam.position_grid()).backward(upstream)
    close(logits.grad.flatten(1), soft_logits.grad)
    assert logits.grad.abs().max() > 1e-4


def test_inference_point_passes_no_gradient(sam):
    logits = torch.randn(1, MASK, MASK, requires_grad=True)
    assert not point_position(sam, logits, False, 1.0)[0].requires_grad


def test_temperature_reaches_the_sample(sam):
    logits = torch.randn(1, MASK, MASK)
    torch.manual_seed(3)
    expected = gumbel_one_hot(logits.flatten(1), 0.3)
    torch.manual_seed(3)
    position, index = point_position(sam, logits, True, 0.3)
    assert index.item() == expected.argmax()
    close(position, expected @ sam.position_grid())


# ------------------------------------------------------------------------------------- which prompts are there


def prompts_of(sam, keep, clicks=None):
    """Tokens and presence for two samples with positions of cells (3, 4) and (20, 9) and four words."""
    torch.manual_seed(1)
    position = sam.embed_position(sam.cell_centres(torch.tensor([4 * MASK + 3, 9 * MASK + 20])))
    text = torch.randn(2, 4, 32)
    return *sparse_prompts(sam, position, text, WORDS, torch.tensor(keep), clicks), text


@torch.no_grad()
def test_order_and_presence_of_all_prompts(sam):
    tokens, present, text = prompts_of(sam, [[True, True, True]] * 2)
    assert tokens.shape == (2, 1 + 1 + 4, 32)
    close(tokens[0, :2], sams_click(sam, 3, 4))
    close(tokens[1, :2], sams_click(sam, 20, 9))
    close(tokens[:, 2:], text)
    assert present.tolist() == [[True] * 5 + [False], [True] * 6]


@torch.no_grad()
def test_a_dropped_point_takes_its_padding_point_along(sam):
    _, present, _ = prompts_of(sam, [[True, False, True], [False, True, False]])
    assert present.tolist() == [
        [False, False, True, True, True, False],
        [True, True, False, False, False, False],
    ]


@torch.no_grad()
def test_nothing_kept_is_no_token_at_all(sam):
    _, present, _ = prompts_of(sam, [[False, False, False]] * 2)
    assert not present.any()


@torch.no_grad()
def test_clicks_are_added_after_the_point_as_sam_embeds_them(sam):
    pixels = torch.tensor([[[10.0, 20.0], [63.0, 0.0]], [[0.0, 5.0], [30.0, 31.0]]])
    labels = torch.tensor([[1, 0], [0, 1]])
    clicks = Corrections((pixels + 0.5) / 64, labels)
    tokens, present, text = prompts_of(sam, [[True, True, True], [True, False, True]], clicks)
    expected = sam.sam.prompt_encoder(pixels[:, None], labels[:, None], None, None)[0][:, 0]
    close(tokens[:, 1:4], expected)
    close(tokens[0, 0], sams_click(sam, 3, 4)[0])
    close(tokens[:, 4:], text)
    # The person's clicks stay when the automatic point is dropped, and so does SAM's padding point.
    assert present.tolist() == [[True] * 7 + [False], [False] + [True] * 7]


# ------------------------------------------------------------------------------------------------ text, P_text


def attend(attention, queries, keys, values, allowed):
    """Multi-head attention for one sample, head by head."""
    q, k, v = attention.q_proj(queries), attention.k_proj(keys), attention.v_proj(values)
    width = q.shape[1] // attention.heads
    heads = []
    for h in range(attention.heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[allowed][:, part].T / math.sqrt(width)
        heads.append(scores.softmax(dim=1) @ v[allowed][:, part])
    return attention.out_proj(torch.cat(heads, dim=1))


@torch.no_grad()
def test_text_prompter_by_hand(prompter):
    words, image, code = torch.randn(2, 4, 12), torch.randn(2, 32, 3, 5), torch.randn(1, 32, 3, 5)
    result = prompter(words, WORDS, image, code)
    assert result.shape == (2, 4, 32) and len(prompter.blocks) == 2
    for i in range(2):
        x = prompter.input_proj(words[i])
        features, positions = image[i].flatten(1).T, code[0].flatten(1).T
        everywhere = torch.ones(15, dtype=torch.bool)
        for block in prompter.blocks:
            normed = block.self_norm(x)
            x = x + attend(block.self_attention, normed, normed, normed, WORDS[i])
            x = x + attend(
                block.cross_attention, block.cross_norm(x), features + positions, features, everywhere
            )
            hidden = F.gelu(block.ffn.in_proj(block.ffn_norm(x)))
            x = x + block.ffn.out_proj(hidden)
        expected = F.layer_norm(x, (32,), prompter.output_norm.weight, prompter.output_norm.bias)
        close(result[i][WORDS[i]], expected[WORDS[i]])


@torch.no_grad()
def test_text_prompts_depend_on_the_image_and_where_things_are(prompter):
    words, image, code = torch.randn(2, 4, 12), torch.randn(2, 32, 3, 5), torch.randn(1, 32, 3, 5)
    result = prompter(words, WORDS, image, code)
    assert (prompter(words, WORDS, image.flip(0), code) - result).abs().max() > 1e-2
    assert (prompter(words, WORDS, image.flip(3), code) - result).abs().max() > 1e-2


@torch.no_grad()
def test_padding_words_change_no_text_prompt(prompter):
    words, image, code = torch.randn(2, 4, 12), torch.randn(2, 32, 3, 5), torch.randn(1, 32, 3, 5)
    result = prompter(words, WORDS, image, code)
    noisy = prompter(words.masked_fill(~WORDS[..., None], 1e4), WORDS, image, code)
    close(noisy[WORDS], result[WORDS])
    close(prompter(words[:1, :3], WORDS[:1, :3], image[:1], code), result[:1, :3])
