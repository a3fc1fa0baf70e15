"""The opened-up towers equal transformers' CLIP as long as nothing prompts them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from promptris.errors import WeightsError
from promptris.modeling.clip_towers import ClipTowers, causal_mask

IDS = torch.tensor(
    [
        [598, 10, 20, 30, 40, 599, 599, 599],
        [598, 11, 599, 599, 599, 599, 599, 599],
        [598, 7, 8, 9, 12, 13, 14, 599],
    ]
)
LENGTHS = (6, 3, 8)


def pixels(side, images=2, seed=0):
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))


def no_prompts(tokens):
    return tokens.new_zeros(len(tokens), 0, tokens.shape[2])


def image_states(towers, images):
    """The image tower's state before every step and after the last one."""
    states = [towers.embed_image(images)]
    for step in range(towers.depth):
        states.append(towers.image_step(step, states[-1], no_prompts(states[-1])))
    return states


def text_states(towers, ids):
    states = [towers.embed_text(ids)]
    for step in range(towers.depth):
        states.append(towers.text_step(step, states[-1], no_prompts(states[-1])))
    return states


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("patch", "side"), [(8, 32), (8, 64), (16, 80), (4, 16), (14, 42)])
@torch.no_grad()
def test_image_tower_equals_transformers(make_clip, patch, side, attention):
    clip = make_clip(patch=patch, image_size=patch * 4)
    clip.set_attn_implementation(attention)
    towers, images = ClipTowers(clip), pixels(side)
    theirs = clip.vision_model(images, interpolate_pos_encoding=True, output_hidden_states=True)
    ours = image_states(towers, images)
    assert towers.patch_size == patch
    assert ours[0].shape == (2, 1 + (side // patch) ** 2, 32)
    assert len(ours) == len(theirs.hidden_states)
    for mine, reference in zip(ours, theirs.hidden_states, strict=True):
        close(mine, reference)
    close(ours[-1], theirs.last_hidden_state)
    finished = towers.finish_image(ours[-1])
    close(finished[:, 0], theirs.pooler_output)
    close(finished, clip.vision_model.post_layernorm(theirs.last_hidden_state))


@torch.no_grad()
def test_without_interpolation_the_plain_position_embedding_is_used(make_clip):
    clip = make_clip()
    theirs = clip.vision_model(pixels(32), interpolate_pos_encoding=False, output_hidden_states=True)
    close(image_states(ClipTowers(clip), pixels(32))[-1], theirs.last_hidden_state)


@torch.no_grad()
def test_positions_are_interpolated_bicubically_and_cls_keeps_its_own(make_clip):
    clip = make_clip(patch=8, image_size=32)
    vision, images = clip.vision_model, pixels(72)
    table = vision.embeddings.position_embedding.weight
    grid = table[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(9, 9), mode="bicubic", align_corners=False)[0].flatten(1).T
    patches = vision.embeddings.patch_embedding(images).flatten(2).transpose(1, 2) + resized
    cls = (vision.embeddings.class_embedding + table[0]).expand(2, 1, -1)
    expected = vision.pre_layrnorm(torch.cat([cls, patches], dim=1))
    close(ClipTowers(clip).embed_image(images), expected)


def test_kept_positions_follow_size_weights_and_training(make_clip):
    towers = ClipTowers(make_clip(patch=8, image_size=32))
    table = towers.clip.vision_model.embeddings.position_embedding.weight

    def fresh(images):
        return ClipTowers(towers.clip).embed_image(images)

    with torch.inference_mode():
        for side in (72, 48, 72):
            close(towers.embed_image(pixels(side)), fresh(pixels(side)))
    with torch.no_grad():
        before = towers.embed_image(pixels(72))
        table.mul_(2)
        after = towers.embed_image(pixels(72))
        close(after, fresh(pixels(72)))
    assert (after - before).abs().max() > 1e-3
    table.requires_grad_(True)
    towers.embed_image(pixels(72)).sum().backward()
    assert table.grad is not None and table.grad.abs().sum() > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_text_tower_equals_transformers_at_the_words(make_clip, attention):
    clip = make_clip(text_depth=3, image_depth=3)
    clip.set_attn_implementation(attention)
    towers = ClipTowers(clip)
    mask = torch.arange(IDS.shape[1]) < torch.tensor(LENGTHS)[:, None]
    theirs = clip.text_model(input_ids=IDS, attention_mask=mask.long(), output_hidden_states=True)
    ours = text_states(towers, IDS)
    assert len(ours) == len(theirs.hidden_states)
    for mine, reference in zip(ours, theirs.hidden_states, strict=True):
        close(mine[mask], reference[mask])
    finished = towers.finish_text(ours[-1])
    close(finished[mask], theirs.last_hidden_state[mask])
    rows = torch.arange(3)
    close(finished[rows, torch.tensor(LENGTHS) - 1], theirs.pooler_output)


@torch.no_grad()
def test_padding_changes_no_word(make_clip):
    towers = ClipTowers(make_clip())
    padded = text_states(towers, IDS)[-1]
    for row, length in enumerate(LENGTHS):
        close(text_states(towers, IDS[row : row + 1, :length])[-1][0], padded[row, :length])


@pytest.mark.parametrize(("image_depth", "text_depth", "depth"), [(4, 2, 2), (2, 6, 2), (3, 3, 3), (4, 1, 1)])
@torch.no_grad()
def test_towers_of_different_depths(make_clip, image_depth, text_depth, depth):
    clip = make_clip(image_depth=image_depth, text_depth=text_depth)
    towers, images = ClipTowers(clip), pixels(48)
    assert towers.depth == depth
    theirs = clip.vision_model(images, interpolate_pos_encoding=True, output_hidden_states=True)
    for step, mine in enumerate(image_states(towers, images)):
        close(mine, theirs.hidden_states[step * image_depth // depth])
    words = clip.text_model(input_ids=IDS, output_hidden_states=True)
    for step, mine in enumerate(text_states(towers, IDS)):
        close(mine, words.hidden_states[step * text_depth // depth])


def test_depths_that_do_not_divide_are_refused(make_clip):
    with pytest.raises(WeightsError, match=r"3 image and 2 text"):
        ClipTowers(make_clip(image_depth=3, text_depth=2))


@torch.no_grad()
def test_image_prompts_join_attention_and_leave(make_clip):
    """Prompts go in front of [CLS], stay for the layers of their step, and do not come out."""
    clip = make_clip(image_depth=4, text_depth=2)
    towers = ClipTowers(clip)
    tokens, prompts = towers.embed_image(pixels(32)), torch.randn(2, 5, 32)
    state = torch.cat([prompts, tokens], dim=1)
    for layer in clip.vision_model.encoder.layers[2:4]:
        state = layer(state, None)
    stepped = towers.image_step(1, tokens, prompts)
    assert stepped.shape == tokens.shape
    close(stepped, state[:, 5:])
    assert (stepped - towers.image_step(1, tokens, no_prompts(tokens))).abs().max() > 1e-2


@torch.no_grad()
def test_text_prompts_are_seen_by_every_word_and_words_stay_causal(make_clip):
    clip = make_clip(image_depth=2, text_depth=4)
    clip.set_attn_implementation("eager")
    towers = ClipTowers(clip)
    words, prompts = towers.embed_text(IDS), torch.randn(3, 5, 24)
    allowed = torch.zeros(13, 13, dtype=torch.bool)
    for query in range(13):
        for key in range(13):
            allowed[query, key] = key <= query
    assert allowed[5:, :5].all()  # every word sees every prompt
    mask = torch.where(allowed, 0.0, float("-inf"))[None, None]
    state = torch.cat([prompts, words], dim=1)
    for layer in clip.text_model.encoder.layers[:2]:
        state = layer(state, mask)
    stepped = towers.text_step(0, words, prompts)
    assert stepped.shape == words.shape
    close(stepped, state[:, 5:])

    # The first word hears of the last prompt, the last word is not heard by the first.
    other = prompts.clone()
    other[:, -1] *= -1
    assert (towers.text_step(0, words, other)[:, 0] - stepped[:, 0]).abs().max() > 1e-3
    later = words.clone()
    later[:, -1] *= -1
    close(towers.text_step(0, later, prompts)[:, :-1], stepped[:, :-1])


def test_causal_mask_is_additive_in_the_type_of_its_input():
    mask = causal_mask(3, torch.zeros(1, dtype=torch.float16))
    assert mask.shape == (1, 1, 3, 3) and mask.dtype == torch.float16
    assert (mask[0, 0] == 0).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask.min() == torch.finfo(torch.float16).min


def test_sizes_are_read_from_the_towers(make_clip):
    towers = ClipTowers(make_clip(patch=4, image_size=16, image_dim=40, text_dim=16))
    assert (towers.image_dim, towers.text_dim, towers.patch_size, towers.context_length) == (40, 16, 4, 24)


def test_built_model_runs_on_sdpa_attention(make_clip, make_model):
    clip = make_clip()
    clip.set_attn_implementation("eager")
    make_model(clip)
    for config in (clip.config, clip.text_model.config, clip.vision_model.config):
        assert config._attn_implementation == "sdpa"
