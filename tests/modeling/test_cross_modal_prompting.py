"""Eq. 5 and 6 against a reference written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from promptris.errors import InputError
from promptris.modeling.attention import CrossAttention
from promptris.modeling.cross_modal_prompting import CrossModalPrompting, NoPrompts, PromptGenerator
from promptris.structures import ExpressionBatch, ImageBatch

IDS = torch.tensor([[598, 5, 6, 599, 599, 599], [598, 7, 8, 9, 10, 599], [598, 11, 599, 599, 599, 599]])
LENGTHS = torch.tensor([4, 6, 3])
WORDS = torch.arange(6) < LENGTHS[:, None]
EXPRESSIONS = ExpressionBatch(IDS, WORDS, torch.tensor([1, 0, 1]))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def attend_by_hand(attention, queries, context, allowed=None):
    """Multi-head attention, one sample and one head at a time; queries [Q, D_q], context [K, D_k]."""
    q, k, v = attention.q_proj(queries), attention.k_proj(context), attention.v_proj(context)
    width = q.shape[1] // attention.heads
    heads = []
    for h in range(attention.heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        if allowed is not None:
            scores[:, ~allowed] = float("-inf")
        heads.append(scores.softmax(dim=1) @ v[:, part])
    return attention.out_proj(torch.cat(heads, dim=1))


def prompts_by_hand(generator, context, allowed=None):
    """T = CrossAttn(learnable tokens; normed context), sample by sample."""
    normed = F.layer_norm(
        context, context.shape[-1:], generator.context_norm.weight, generator.context_norm.bias
    )
    rows = [
        attend_by_hand(
            generator.attention, generator.tokens, normed[i], None if allowed is None else allowed[i]
        )
        for i in range(len(context))
    ]
    return torch.stack(rows)


def encode_by_hand(model, clip_tokens, expressions, directions):
    """Both towers with transformers' layers called by hand, one image row per expression from the start."""
    clip = model.clip.clip
    image = clip_tokens[expressions.image_index]
    words = clip.text_model.embeddings(input_ids=expressions.input_ids)
    image_layers, text_layers = clip.vision_model.encoder.layers, clip.text_model.encoder.layers
    steps = min(len(image_layers), len(text_layers))
    for step in range(steps):
        to_text, to_image = words[:, :0], image[:, :0]
        if "v2l" in directions:
            to_text = prompts_by_hand(model.prompting.v2l[step], image[:, 1:])
        if "l2v" in directions:
            to_image = prompts_by_hand(model.prompting.l2v[step], words, expressions.word_mask)

        state = torch.cat([to_image, image], dim=1)
        per_step = len(image_layers) // steps
        for layer in image_layers[step * per_step : (step + 1) * per_step]:
            state = layer(state, None)
        next_image = state[:, to_image.shape[1] :]

        state = torch.cat([to_text, words], dim=1)
        length = state.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        mask = torch.zeros(length, length).masked_fill(hidden, float("-inf"))[None, None]
        per_step = len(text_layers) // steps
        for layer in text_layers[step * per_step : (step + 1) * per_step]:
            state = layer(state, mask)
        image, words = next_image, state[:, to_text.shape[1] :]
    return clip.vision_model.post_layernorm(image[:, 1:]), clip.text_model.final_layer_norm(words)


@pytest.mark.parametrize("direction", ["both", "v2l", "l2v", "none"])
@pytest.mark.parametrize(("image_depth", "text_depth"), [(3, 3), (4, 2)])
@torch.no_grad()
def test_towers_in_lock_step_equal_the_reference(make_clip, make_model, direction, image_depth, text_depth):
    model = make_model(make_clip(image_depth, text_depth), prompting={"direction": direction})
    tokens = model.clip.embed_image(torch.randn(2, 3, 48, 48))
    image, words = model.encode_expressions(tokens, EXPRESSIONS)
    directions = {"both": ("v2l", "l2v"), "none": ()}.get(direction, (direction,))
    expected_image, expected_words = encode_by_hand(model, tokens, EXPRESSIONS, directions)
    close(image, expected_image)
    close(words[WORDS], expected_words[WORDS])


@torch.no_grad()
def test_each_direction_reaches_its_tower_only(make_model):
    tokens, plain = None, None
    changed = {}
    for direction in ("none", "v2l", "l2v", "both"):
        model = make_model(prompting={"direction": direction})
        tokens = model.clip.embed_image(torch.ones(2, 3, 48, 48)) if tokens is None else tokens
        image, words = model.encode_expressions(tokens, EXPRESSIONS)
        if plain is None:
            plain = image, words
        changed[direction] = (
            bool((image - plain[0]).abs().max() > 1e-3),
            bool((words - plain[1])[WORDS].abs().max() > 1e-3),
        )
    assert changed == {
        "none": (False, False),
        "v2l": (False, True),
        "l2v": (True, False),
        "both": (True, True),
    }


@pytest.mark.parametrize(
    ("direction", "rows"), [("none", [2, 2]), ("v2l", [2, 2]), ("l2v", [3, 3]), ("both", [3, 3])]
)
@torch.no_grad()
def test_image_tower_runs_once_per_image_until_words_prompt_it(make_model, direction, rows):
    model = make_model(prompting={"direction": direction})
    seen = []
    for layer in model.clip.clip.vision_model.encoder.layers:
        layer.layer_norm2.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    image, _ = model.encode_expressions(model.clip.embed_image(torch.randn(2, 3, 48, 48)), EXPRESSIONS)
    assert seen == rows
    assert len(image) == 3


@pytest.mark.parametrize("first", [0, 1, 2, 3])
@torch.no_grad()
def test_prompting_may_start_later(make_clip, make_model, first):
    """The same as prompts of nothing before that layer, with the image's first layers run once per image."""
    model = make_model(make_clip(3, 3), prompting={"first_layer": first})
    pixels = torch.randn(2, 3, 48, 48)
    rows = []
    for layer in model.clip.clip.vision_model.encoder.layers:
        layer.layer_norm2.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    images = ImageBatch(pixels)
    image, words = model.encode_expressions(model.encode_image(images).clip_tokens, EXPRESSIONS)
    assert rows == [2] * first + [3] * (3 - first)

    plain = make_model(make_clip(3, 3))
    plain.load_state_dict(model.state_dict(), strict=False)
    for step in range(first):
        plain.prompting.v2l[step] = NoPrompts(plain.clip.text_dim)
        plain.prompting.l2v[step] = NoPrompts(plain.clip.image_dim)
    expected_image, expected_words = plain.encode_expressions(
        plain.encode_image(images).clip_tokens, EXPRESSIONS
    )
    close(image, expected_image)
    close(words[WORDS], expected_words[WORDS])
    generators = [*model.prompting.v2l, *model.prompting.l2v]
    assert sum(isinstance(one, PromptGenerator) for one in generators) == 2 * (3 - first)


def test_prompting_cannot_start_behind_the_last_layer(make_clip, make_model):
    with pytest.raises(InputError, match=r"first_layer is 4, but CLIP's towers have 3 layers"):
        make_model(make_clip(3, 3), prompting={"first_layer": 4})


@torch.no_grad()
def test_without_prompts_the_whole_clip_path_equals_transformers(make_model):
    model = make_model(prompting={"direction": "none"})
    clip, pixels = model.clip.clip, torch.randn(2, 3, 48, 48)
    image, words = model.encode_expressions(model.clip.embed_image(pixels), EXPRESSIONS)
    reference = clip.vision_model(pixels, interpolate_pos_encoding=True)
    close(image, clip.vision_model.post_layernorm(reference.last_hidden_state[:, 1:])[[1, 0, 1]])
    text = clip.text_model(input_ids=IDS, attention_mask=WORDS.long())
    close(words[WORDS], text.last_hidden_state[WORDS])


@torch.no_grad()
def test_zero_prompts_equal_no_direction(make_model):
    tokens = torch.randn(2, 37, 32)
    off = make_model(prompting={"direction": "none"}).encode_expressions(tokens, EXPRESSIONS)
    empty = make_model(prompting={"num_prompts": 0}).encode_expressions(tokens, EXPRESSIONS)
    for a, b in zip(off, empty, strict=True):
        close(a, b)


@torch.no_grad()
def test_v2l_reads_the_patches_and_not_cls(make_model):
    model = make_model(prompting={"direction": "v2l"})
    # In the first step [CLS] has not mixed with the patches yet.
    tokens = model.clip.embed_image(torch.randn(2, 3, 48, 48))
    seen = []
    model.prompting.v2l[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encode_expressions(tokens, EXPRESSIONS)
    assert torch.equal(seen[0], tokens[:, 1:])


@torch.no_grad()
def test_padding_words_do_not_reach_l2v(make_model):
    generator = make_model().prompting.l2v[0]
    words = torch.randn(3, 6, 24)
    prompts = generator(words, WORDS)
    close(generator(words.masked_fill(~WORDS[..., None], 1e4), WORDS), prompts)
    assert (generator(words) - prompts).abs().max() > 1e-3


def test_every_step_has_its_own_tokens_and_attention(make_clip, make_model):
    prompting = make_model(make_clip(4, 4), prompting={"num_prompts": 5}).prompting
    assert len(prompting.v2l) == len(prompting.l2v) == 4
    for generators, width in ((prompting.v2l, 32), (prompting.l2v, 24)):
        assert {tuple(g.tokens.shape) for g in generators} == {(5, width)}
        for kind in ("tokens", "attention.q_proj.weight", "attention.out_proj.bias"):
            parameters = [g.get_parameter(kind) for g in generators]
            assert len({p.data_ptr() for p in parameters}) == 4
            assert not torch.equal(parameters[0], parameters[1])
    assert sum(p.numel() for p in prompting.parameters()) == 4 * (
        # v2l: tokens, norm, queries/keys/values to width 24, result to 24
        (5 * 32 + 2 * 32 + 3 * (32 * 24 + 24) + 24 * 24 + 24)
        # l2v: the same from words, result to 32
        + (5 * 24 + 2 * 24 + 3 * (24 * 24 + 24) + 24 * 32 + 32)
    )


def test_a_switched_off_direction_has_no_parameters(make_model):
    prompting = make_model(prompting={"direction": "l2v"}).prompting
    assert sum(p.numel() for p in prompting.v2l.parameters()) == 0
    assert all(isinstance(g, NoPrompts) for g in prompting.v2l)
    assert all(isinstance(g, PromptGenerator) for g in prompting.l2v)
    context = torch.zeros(2, 9, 32, dtype=torch.float16)
    off = prompting.v2l[0](context)
    assert off.shape == (2, 0, 24) and off.dtype == torch.float16


@torch.no_grad()
def test_cross_attention_by_hand_with_mask_and_key_code():
    torch.manual_seed(0)
    attention = CrossAttention(query_dim=6, context_dim=10, out_dim=4, inner_dim=8, heads=2)
    queries, context, code = torch.randn(2, 3, 6), torch.randn(2, 5, 10), torch.randn(5, 10)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    for i in range(2):
        expected = attend_by_hand(attention, queries[i], context[i], mask[i])
        close(attention(queries, context, mask)[i], expected)
    # A code goes into the keys, never into the values.
    keys_only = CrossAttention(6, 10, 4, 8, 2)
    keys_only.load_state_dict(attention.state_dict())
    keys_only.k_proj.weight.zero_()
    close(keys_only(queries, context, context_code=code), keys_only(queries, context))
    assert (attention(queries, context, context_code=code) - attention(queries, context)).abs().max() > 1e-3


def test_heads_that_do_not_divide_the_width_are_refused(make_model):
    with pytest.raises(InputError, match="5 heads"):
        make_model(prompting={"heads": 5})


def test_prompting_takes_its_sizes_from_both_towers():
    prompting = CrossModalPrompting(2, image_dim=12, text_dim=8, v2l_prompts=3, l2v_prompts=0, heads=2)
    assert prompting.text_prompts(0, torch.zeros(2, 4, 12)).shape == (2, 3, 8)
    assert prompting.image_prompts(1, torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape == (
        2,
        0,
        12,
    )
