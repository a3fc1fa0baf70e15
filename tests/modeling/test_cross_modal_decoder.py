"""Eq. 1 and 2 by hand, the start at CLIP's own map, and the position code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from promptris.errors import InputError
from promptris.modeling.cross_modal_decoder import CrossModalDecoder, last_word, sine_cosine_code

WORDS = torch.tensor([[True, True, True, False, False], [True] * 5])


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def make_decoder(seed=0, **settings):
    torch.manual_seed(seed)
    decoder = CrossModalDecoder(
        **{"image_dim": 12, "text_dim": 10, "dim": 8, "layers": 1, "heads": 2} | settings
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder.eval()


def tokens(seed=1):
    torch.manual_seed(seed)
    return torch.randn(2, 6, 12), torch.randn(2, 5, 10)


def attend(attention, queries, context, allowed):
    """Softmax attention in two explicit heads of width 4, for one sample."""
    q, k, v = attention.q_proj(queries), attention.k_proj(context), attention.v_proj(context)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[:, part] @ k[allowed][:, part].T / 2.0
        heads.append(scores.softmax(dim=1) @ v[allowed][:, part])
    return attention.out_proj(torch.cat(heads, dim=1))


def feed_forward(ffn, x):
    hidden = F.gelu(x @ ffn.in_proj.weight.T + ffn.in_proj.bias)
    return hidden @ ffn.out_proj.weight.T + ffn.out_proj.bias


def response_by_hand(decoder, image_tokens, text_tokens, word_mask, code=0.0):
    """[B, N_C] for a decoder of any number of layers; `code` joins the image tokens where they are read."""
    maps = []
    for i in range(len(image_tokens)):
        image = image_tokens[i] @ decoder.image_proj.weight.T + decoder.image_proj.bias
        text = text_tokens[i] @ decoder.text_proj.weight.T + decoder.text_proj.bias
        everything = torch.ones(len(image), dtype=torch.bool)
        for layer in decoder.layers:
            if layer.image_self is not None:
                normed = layer.image_self_norm(image) + code
                image = image + attend(layer.image_self, normed, normed, everything)
            normed_image, normed_text = layer.image_norm(image) + code, layer.text_norm(text)
            image = image + attend(layer.image_to_text, normed_image, normed_text, word_mask[i])
            text = text + attend(layer.text_to_image, normed_text, normed_image, everything)
            image = image + feed_forward(layer.image_ffn, layer.image_ffn_norm(image) + code)
            text = text + feed_forward(layer.text_ffn, layer.text_ffn_norm(text))
        end = int(word_mask[i].sum()) - 1
        maps.append(image @ text[end] / math.sqrt(8) + decoder.bias)
    return torch.stack(maps)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("self_attention", [False, True])
@torch.no_grad()
def test_equations_1_and_2_by_hand(layers, self_attention):
    decoder = make_decoder(layers=layers, self_attention=self_attention)
    image, text = tokens()
    response = decoder(image, text, WORDS, (2, 3))
    assert response.shape == (2, 2, 3)
    close(response.flatten(1), response_by_hand(decoder, image, text, WORDS))


@torch.no_grad()
def test_response_is_a_scaled_dot_product_with_the_end_token():
    """With silent layers: (patch . [EOS]) / sqrt(D_C) + bias, small whole numbers."""
    decoder = make_decoder(layers=0, image_dim=8, text_dim=8)
    for linear in (decoder.image_proj, decoder.text_proj):
        linear.weight.copy_(torch.eye(8))
        linear.bias.zero_()
    decoder.bias.fill_(0.25)
    image, text = torch.zeros(1, 4, 8), torch.zeros(1, 3, 8)
    image[0, :, 0], image[0, :, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0]), 1.0
    text[0, 0], text[0, 2] = 100.0, -100.0
    text[0, 1, 0], text[0, 1, 1] = 2.0, -1.0
    response = decoder(image, text, torch.tensor([[True, True, False]]), (2, 2))
    scale = math.sqrt(8)
    expected = torch.tensor([[1 / scale, 3 / scale], [5 / scale, 7 / scale]]) + 0.25
    close(response[0], expected)


@torch.no_grad()
def test_padding_words_have_no_influence():
    decoder = make_decoder(layers=2, self_attention=True)
    image, text = tokens()
    response = decoder(image, text, WORDS, (2, 3))
    close(decoder(image, text.masked_fill(~WORDS[..., None], 1e4), WORDS, (2, 3)), response)
    close(decoder(image[:1], text[:1, :3], WORDS[:1, :3], (2, 3)), response[:1])


def test_end_token_is_the_last_true_position():
    mask = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
    assert last_word(mask).tolist() == [1, 3, 0]


@pytest.mark.parametrize("self_attention", [False, True])
@torch.no_grad()
def test_position_signal_is_read_by_every_block_and_stays_out_of_the_stream(self_attention):
    settings = {"layers": 2, "self_attention": self_attention}
    plain, coded = make_decoder(**settings), make_decoder(position_signal=True, **settings)
    image, text = tokens()
    code = sine_cosine_code((2, 3), 8, image)
    response = coded(image, text, WORDS, (2, 3))
    close(response.flatten(1), response_by_hand(coded, image, text, WORDS, code))
    assert (response - plain(image, text, WORDS, (2, 3))).abs().max() > 1e-2
    silent = make_decoder(position_signal=True, layers=0)
    close(silent(image, text, WORDS, (2, 3)), make_decoder(layers=0)(image, text, WORDS, (2, 3)))


@torch.no_grad()
def test_without_position_signal_the_order_of_patches_plays_no_part():
    decoder = make_decoder(layers=2, self_attention=True)
    image, text = tokens()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = decoder(image[:, order], text, WORDS, (2, 3)).flatten(1)
    close(shuffled, decoder(image, text, WORDS, (2, 3)).flatten(1)[:, order])


@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (30, 30), (3, 7)])
@pytest.mark.parametrize("dim", [4, 64])
def test_position_code_is_distinct_per_cell_and_bounded(grid, dim):
    code = sine_cosine_code(grid, dim, torch.zeros(1))
    assert code.shape == (grid[0] * grid[1], dim)
    assert code.abs().max() <= 1
    distances = torch.cdist(code, code) + 10 * torch.eye(len(code))
    assert distances.min() > 0.03


def test_position_code_runs_row_by_row_with_y_before_x():
    code = sine_cosine_code((3, 4), 8, torch.zeros(1)).reshape(3, 4, 8)
    for x in range(4):
        close(code[:, x, :4], code[:, 0, :4])
    for y in range(3):
        close(code[y, :, 4:], code[0, :, 4:])
    assert (code[0, 0, :4] - code[1, 0, :4]).abs().max() > 0.1
    assert (code[0, 0, 4:] - code[0, 1, 4:]).abs().max() > 0.1


def test_widths_that_do_not_fit_are_refused(make_clip):
    with pytest.raises(InputError, match="multiple of 4"):
        make_decoder(dim=6, position_signal=True)
    with pytest.raises(InputError, match="multiple of 3 heads"):
        make_decoder(dim=8, heads=3)
    with pytest.raises(InputError, match="projection width 16"):
        make_decoder(image_dim=32, text_dim=24).start_from_clip(make_clip())


def test_initial_bias_is_the_starting_level_of_the_map():
    torch.manual_seed(0)
    decoder = CrossModalDecoder(12, 10, 8, layers=1, heads=2, initial_bias=-4.0)
    assert decoder.bias.item() == -4.0 and decoder.bias.requires_grad


def clip_similarity(clip, pixels, ids, word_mask):
    """CLIP's own dense map: exp(logit_scale) * cosine of projected patches and sentence, [B, N_C]."""
    image = clip.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    image = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(image)), dim=-1)
    sentence = F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output), dim=-1)
    return clip.logit_scale.exp() * torch.einsum("bnd,bd->bn", image, sentence)


@pytest.mark.parametrize(
    "settings", [{}, {"layers": 3, "self_attention": True}, {"layers": 3, "position_signal": True}]
)
@torch.no_grad()
def test_starts_as_clips_own_similarity_map(make_clip, settings):
    clip = make_clip(projection=32)
    decoder = make_decoder(image_dim=32, text_dim=24, dim=32, heads=4, **settings)
    decoder.start_from_clip(clip)
    decoder.bias.zero_()
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(4, 3, 64, 64, generator=generator)
    ids = torch.cat([torch.randint(1, 500, (4, 5), generator=generator), torch.full((4, 1), 599)], dim=1)
    everything = torch.ones(4, 6, dtype=torch.bool)
    image = clip.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    image = clip.vision_model.post_layernorm(image)
    text = clip.text_model(input_ids=ids).last_hidden_state
    ours = decoder(image, text, everything, (8, 8)).flatten(1)
    theirs = clip_similarity(clip, pixels, ids, everything)
    for mine, reference in zip(ours, theirs, strict=True):
        correlation = torch.corrcoef(torch.stack([mine, reference]))[0, 1]
        assert correlation > 0.9
        # The temperature is CLIP's, too: the slope of one map against the other is near 1.
        slope = correlation * mine.std() / reference.std()
        assert 0.5 < slope < 2.0


@torch.no_grad()
def test_starting_from_clip_quiets_every_residual_branch(make_clip):
    loud = make_decoder(image_dim=32, text_dim=24, dim=16, self_attention=True, layers=2)
    quiet = make_decoder(image_dim=32, text_dim=24, dim=16, self_attention=True, layers=2)
    quiet.start_from_clip(make_clip(projection=16), residual_scale=0.25)
    for a, b in zip(loud.layers, quiet.layers, strict=True):
        writers = (
            "image_to_text.out_proj",
            "text_to_image.out_proj",
            "image_self.out_proj",
            "image_ffn.out_proj",
            "text_ffn.out_proj",
        )
        for name in writers:
            close(b.get_submodule(name).weight, a.get_submodule(name).weight * 0.25)
            close(b.get_submodule(name).bias, a.get_submodule(name).bias * 0.25)


def test_start_from_clip_is_a_value_of_the_configuration(make_clip, make_model):
    clip = make_clip(projection=16)
    model = make_model(clip, decoder={"dim": 16, "start_from_clip": True})
    weight, source = model.decoder.text_proj.weight, clip.text_projection.weight
    cosine = F.cosine_similarity(weight.flatten(), source.flatten(), dim=0)
    assert cosine > 0.9  # but for the noise that the fixture adds
    with pytest.raises(InputError, match="start_from_clip"):
        make_model(clip, decoder={"dim": 32, "start_from_clip": True})
