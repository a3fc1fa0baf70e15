"""Building from towers, presets and sources; the sizes of the published models."""

from __future__ import annotations

import pytest
import torch

from promptris.config import DecoderConfig, PromptRISConfig
from promptris.errors import InputError, WeightsError
from promptris.modeling.build import build_from_sources, build_model, build_random, count_parameters
from promptris.modeling.presets import PRESETS, get_preset
from promptris.modeling.tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def full_size():
    """Builds a preset without storage for its weights."""

    def build(name):
        with torch.device("meta"):
            return build_random(name)

    return build


@pytest.mark.parametrize(
    ("preset", "clip", "sam"),
    [
        # Published sizes; transformers counts SAM's position matrix (256 numbers), Meta does not.
        ("vit-b", 149_620_737, 93_735_472 + 256),
        ("vit-b-32", 151_277_313, 93_735_472 + 256),
        ("vit-l", 427_616_513, 312_342_832 + 256),
        ("vit-h", 427_616_513, 641_090_608 + 256),
    ],
)
def test_presets_have_the_published_towers(full_size, preset, clip, sam):
    model = full_size(preset)
    assert sum(p.numel() for p in model.clip.parameters()) == clip
    assert sum(p.numel() for p in model.sam.parameters()) == sam
    assert model.sam.mask_size == 256 and model.sam.image_size == 1024 and model.sam.dim == 256
    assert model.clip.context_length == 77 and model.clip.depth == 12
    assert len(model.prompting.v2l) == len(model.prompting.l2v) == 12


def test_paper_preset_has_the_papers_grids(full_size):
    model = full_size("vit-b")
    assert model.coarse_grid == 30 and model.sam.grid_size == 64
    assert (model.clip.image_dim, model.clip.text_dim, model.decoder.dim) == (768, 512, 512)
    assert model.prompting.v2l[0].tokens.shape == (16, 768)
    assert model.prompting.l2v[0].tokens.shape == (16, 512)
    # CLIP L/14 cannot divide 480; 476 gives 34 x 34.
    assert full_size("vit-l").coarse_grid == 34


def test_parameter_counts_per_part_by_shape_arithmetic(full_size):
    counts = {c.part: (c.trainable, c.frozen) for c in count_parameters(full_size("vit-b"))}
    norm_768, norm_512 = 2 * 768, 2 * 512
    v2l = 16 * 768 + norm_768 + 3 * (768 * 512 + 512) + 512 * 512 + 512
    l2v = 16 * 512 + norm_512 + 3 * (512 * 512 + 512) + 512 * 768 + 768
    assert counts["cross-modal prompting"] == (12 * (v2l + l2v), 0)
    attention, ffn = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512
    assert counts["cross-modal decoder"] == (
        (768 * 512 + 512) + (512 * 512 + 512) + 2 * attention + 2 * ffn + 4 * norm_512 + 1,
        0,
    )
    block = 2 * 4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 3 * 2 * 256
    assert counts["text prompter"] == (512 * 256 + 256 + 2 * block + 2 * 256, 0)
    assert counts["SAM image encoder"] == (0, 89_670_912)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_total_counts_every_parameter_once(full_size, preset):
    # A start at CLIP's similarity map reads weights, so the small presets need real ones.
    model = build_random(preset) if preset.startswith("refshapes") else full_size(preset)
    *parts, total = count_parameters(model)
    everything = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total.part == "total"
    assert (total.trainable, total.frozen) == (trainable, everything - trainable)
    assert sum(c.trainable + c.frozen for c in parts) == everything
    assert all(c.frozen == 0 or c.trainable == 0 for c in parts)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(InputError, match=r"vit-z.*vit-b.*refshapes"):
        get_preset("vit-z")
    with pytest.raises(InputError, match="vit-z"):
        build_random("vit-z")


def test_the_seed_decides_every_weight():
    first, same, other = (
        build_random("refshapes", 3),
        build_random("refshapes", 3),
        build_random("refshapes", 4),
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(first.decoder.image_proj.weight, other.decoder.image_proj.weight)
    for a, b in zip(first.frozen_towers(), other.frozen_towers(), strict=True):
        assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_seed_of_the_learned_parts_leaves_the_towers_alone(make_clip, make_sam):
    clip, sam = make_clip(), make_sam()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    config = PromptRISConfig(clip_image_size=32, decoder=DecoderConfig(dim=16))
    tokenizer = byte_tokenizer(600, 24)
    first = build_model(clip, sam, config, tokenizer, seed=1)
    second = build_model(clip, sam, config, tokenizer, seed=1)
    third = build_model(clip, sam, config, tokenizer, seed=2)
    assert first.clip.clip is clip and first.sam.sam is sam
    assert torch.equal(first.decoder.text_proj.weight, second.decoder.text_proj.weight)
    assert not torch.equal(first.decoder.text_proj.weight, third.decoder.text_proj.weight)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())


def test_building_without_a_seed_leaves_torchs_random_state_alone(make_clip, make_sam):
    config = PromptRISConfig(clip_image_size=32, decoder=DecoderConfig(dim=16))
    clip, sam = make_clip(), make_sam()
    torch.manual_seed(5)
    first = build_model(clip, sam, config, byte_tokenizer(600, 24))
    second = build_model(clip, sam, config, byte_tokenizer(600, 24))
    assert not torch.equal(first.decoder.text_proj.weight, second.decoder.text_proj.weight)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"clip_image_size": 50}, "50.*patch size 8"),
        ({"decoder": {"dim": 20, "heads": 3}}, "20 is not a multiple of 3"),
        ({"prompting": {"heads": 7}}, "24 is not a multiple of 7"),
        ({"sam_prompts": {"text_heads": 5}}, "32 is not a multiple of 5"),
        ({"decoder": {"dim": 24, "start_from_clip": True}}, "projection width 16"),
    ],
)
def test_configurations_that_do_not_fit_the_towers_are_refused(make_model, settings, named):
    with pytest.raises(InputError, match=named):
        make_model(**settings)


def test_towers_that_cannot_go_in_lock_step_are_refused(make_clip, make_model):
    with pytest.raises(WeightsError, match="lock step"):
        make_model(make_clip(image_depth=3, text_depth=2))


@pytest.mark.parametrize(
    ("direction", "v2l", "l2v"), [("both", 3, 3), ("v2l", 3, 0), ("l2v", 0, 3), ("none", 0, 0)]
)
def test_directions_of_table_4(make_model, direction, v2l, l2v):
    prompting = make_model(prompting={"direction": direction}).prompting
    words, patches = torch.zeros(1, 4, 24), torch.zeros(1, 9, 32)
    assert prompting.text_prompts(0, patches).shape[1] == v2l
    assert prompting.image_prompts(0, words, torch.ones(1, 4, dtype=torch.bool)).shape[1] == l2v


def test_every_setting_reaches_its_part(make_model):
    model = make_model(
        max_words=9,
        prompting={"num_prompts": 5, "heads": 2},
        decoder={
            "dim": 24,
            "layers": 3,
            "heads": 2,
            "ffn_ratio": 3,
            "self_attention": True,
            "position_signal": True,
            "initial_bias": -30.0,
        },
        sam_prompts={"text_layers": 1, "text_heads": 8},
    )
    assert model.prompting.v2l[0].tokens.shape[0] == 5 and model.prompting.l2v[1].attention.heads == 2
    decoder = model.decoder
    assert len(decoder.layers) == 3 and decoder.layers[0].image_self is not None and decoder.position_signal
    assert (
        decoder.layers[2].image_ffn.in_proj.out_features == 72 and decoder.layers[0].image_to_text.heads == 2
    )
    assert decoder.bias.item() == pytest.approx(-30, abs=1)  # the fixture adds noise
    assert len(model.text_prompter.blocks) == 1
    assert model.text_prompter.blocks[0].cross_attention.heads == 8
    assert model.processor().context_length == 9
    assert model.processor().clip_size == 48 and model.processor().sam_size == 64
    assert make_model().processor().context_length == 24


def test_build_from_sources_remembers_where_they_are(make_clip, make_sam, tmp_path):
    from promptris.modeling.content_hash import content_hash

    clip, sam = make_clip(), make_sam()
    clip.save_pretrained(tmp_path / "clip")
    byte_tokenizer(600, 24).save_pretrained(tmp_path / "clip")
    sam.save_pretrained(tmp_path / "sam")
    config = PromptRISConfig(clip_image_size=32, decoder=DecoderConfig(dim=16))
    model = build_from_sources(tmp_path / "clip", tmp_path / "sam", config, seed=0)
    assert model.sources == {
        "clip": {"source": str(tmp_path / "clip"), "format": "transformers", "sha256": content_hash(clip)},
        "sam": {"source": str(tmp_path / "sam"), "format": "transformers", "sha256": content_hash(sam)},
    }
    assert model.tokenizer.model_max_length == 24
    loaded = dict(model.clip.clip.named_parameters())
    assert all(torch.equal(loaded[name], p) for name, p in clip.named_parameters())
