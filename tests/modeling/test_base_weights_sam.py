"""SAM from every format gives the same model; other files are refused; the content hash is of the content."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from promptris.errors import InputError, PromptRISError, WeightsError
from promptris.modeling import meta_sam
from promptris.modeling.base_weights import load_sam
from promptris.modeling.content_hash import content_hash

SIZES = {
    "b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "h": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
}
GLOBAL = {"b": [2, 5, 8, 11], "l": [5, 11, 17, 23], "h": [7, 15, 23, 31]}

# transformers' names turned back into Meta's, in this order.
TO_META = [
    (r"^shared_image_embedding\.positional_embedding", "pe.positional_encoding_gaussian_matrix"),
    (r"^pe\.", "prompt_encoder.pe_layer."),
    (r"^vision_encoder\.layers", "image_encoder.blocks"),
    (r"^vision_encoder", "image_encoder"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm", "norm"),
    (r"(mlps\.\d|head)\.layers\.0", r"\1.layers.1"),
    (r"(mlps\.\d|head)\.proj_in", r"\1.layers.0"),
    (r"(mlps\.\d|head)\.proj_out", r"\1.layers.2"),
]


def to_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' SamModel under the names of Meta's files."""
    meta = {}
    for name, tensor in state.items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            continue  # tied; Meta stores the matrix once
        for pattern, replacement in TO_META:
            name = re.sub(pattern, replacement, name)
        meta[name] = tensor
    return meta


def tiny_sam(**vision: object) -> SamModel:
    sizes = {"image_size": 64, "patch_size": 8}
    config = SamConfig(
        vision_config={
            **sizes,
            "hidden_size": 24,
            "output_channels": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            **vision,
        },
        prompt_encoder_config={**sizes, "hidden_size": 32, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 40, "iou_head_hidden_dim": 20},
    )
    torch.manual_seed(0)
    model = SamModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # many of them start as zeros
            shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(shift + 0.2 * torch.randn_like(parameter))
    return model


def click(model: SamModel) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(
            pixel_values=pixels, input_points=torch.tensor([[[[20.0, 41.0]]]]), multimask_output=False
        )
    return out.pred_masks, out.iou_scores


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("sam")
    model = tiny_sam()
    model.save_pretrained(folder / "hf")
    meta = {k: v.clone() for k, v in to_meta(model.state_dict()).items()}
    torch.save(meta, folder / "sam_tiny.pth")
    return SimpleNamespace(folder=folder, model=model, meta=meta)


def one_sentence(error: pytest.ExceptionInfo[PromptRISError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, text


# ---------------------------------------------------------------- the same model from every format


@pytest.mark.parametrize("name", ["hf", "sam_tiny.pth"])
def test_masks_under_a_click_equal_those_of_the_saved_model(world, name):
    loaded = load_sam(world.folder / name)
    expected_masks, expected_scores = click(world.model)
    assert expected_masks.shape == (1, 1, 1, 32, 32)
    assert expected_masks.std() > 0.01
    masks, scores = click(loaded.module)
    torch.testing.assert_close(masks, expected_masks, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores, expected_scores, atol=1e-6, rtol=0)


def test_every_tensor_of_the_meta_file_lands_where_it_came_from(world):
    loaded = load_sam(world.folder / "sam_tiny.pth")
    expected = world.model.state_dict()
    assert loaded.module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.module.state_dict().items())
    assert loaded.format == "meta"
    assert loaded.sha256 == load_sam(world.folder / "hf").sha256 == content_hash(world.model)


def test_position_matrix_stays_one_parameter(world):
    module = load_sam(world.folder / "sam_tiny.pth").module
    shared = module.shared_image_embedding.positional_embedding
    assert shared is module.prompt_encoder.shared_embedding.positional_embedding
    assert not shared.is_meta


def test_half_precision_and_normalisation_constants_are_accepted(world, tmp_path):
    extras = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    torch.save({k: v.half() for k, v in world.meta.items()} | extras, tmp_path / "half.pth")
    module = load_sam(tmp_path / "half.pth").module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    name = "vision_encoder.layers.0.attn.qkv.weight"
    assert torch.equal(module.state_dict()[name], world.model.state_dict()[name].half().float())


@pytest.mark.parametrize(
    ("vision", "window", "layers"),
    [
        ({"window_size": 14, "global_attn_indexes": [0, 2]}, 14, [0, 2]),  # windows larger than the grid
        ({"global_attn_indexes": [0, 1, 2]}, 14, [0, 1, 2]),
        ({"global_attn_indexes": []}, 3, []),
        ({"qkv_bias": False}, 3, [1]),
    ],
)
def test_unusual_encoders_are_told_from_shapes(vision, window, layers, tmp_path):
    model = tiny_sam(**vision)
    torch.save(to_meta(model.state_dict()), tmp_path / "sam.pth")
    loaded = load_sam(tmp_path / "sam.pth").module
    assert loaded.config.vision_config.window_size == window
    assert list(loaded.config.vision_config.global_attn_indexes) == layers
    torch.testing.assert_close(click(loaded)[0], click(model)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "parameters"), [("b", 93_735_472), ("l", 312_342_832), ("h", 641_090_608)])
def test_sizes_of_the_released_models_are_told_from_shapes(size, parameters):
    with torch.device("meta"):
        source = SamModel(SamConfig(vision_config=SIZES[size] | {"global_attn_indexes": GLOBAL[size]}))
        tensors = to_meta(source.state_dict())
        config = meta_sam.infer_config(tensors, "sam.pth")
        model = SamModel(config)
    vision = config.vision_config
    assert {key: getattr(vision, key) for key in SIZES[size]} == SIZES[size]
    assert list(vision.global_attn_indexes) == GLOBAL[size]
    assert (vision.image_size, vision.window_size, vision.mlp_dim) == (1024, 14, 4 * vision.hidden_size)
    assert config.prompt_encoder_config.to_dict() == source.config.prompt_encoder_config.to_dict()
    assert config.mask_decoder_config.to_dict() == source.config.mask_decoder_config.to_dict()
    # Published counts; they leave out the position matrix (2 x 128), a buffer in Meta's code.
    assert sum(p.numel() for p in model.parameters()) == parameters + 256
    assert meta_sam.key_table(config).keys() == tensors.keys()
    assert len(tensors) == 314 + 14 * (vision.num_hidden_layers - 12)


def test_names_are_those_of_the_released_file():
    """A few names of sam_vit_b_01ec64.pth, written out by hand."""
    with torch.device("meta"):
        table = meta_sam.key_table(SamModel(SamConfig()).config)
    for name in (
        "image_encoder.pos_embed",
        "image_encoder.blocks.11.attn.rel_pos_w",
        "image_encoder.blocks.0.norm2.bias",
        "image_encoder.neck.3.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.point_embeddings.3.weight",
        "prompt_encoder.mask_downscaling.6.bias",
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight",
        "mask_decoder.transformer.layers.0.norm4.weight",
        "mask_decoder.transformer.norm_final_attn.bias",
        "mask_decoder.output_upscaling.3.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
        "mask_decoder.iou_prediction_head.layers.1.weight",
    ):
        assert name in table


# ---------------------------------------------------------------- files that are no SAM


def test_bad_files_give_one_sentence_each(world, tmp_path):
    def changed(name: str, *shape: int) -> dict[str, Tensor]:
        return world.meta | {name: torch.zeros(*shape)}

    encoder, first = "image_encoder", "image_encoder.blocks.0"
    other_clip = {"visual.transformer.resblocks.0.ln_1.bias": torch.zeros(1)}
    contents = {
        "clip.pt": (other_clip, "a CLIP in OpenAI's format"),
        "sam2.pt": ({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}, "holds a SAM 2"),
        "hf.bin": (world.model.state_dict(), "a SAM in transformers' format"),
        "missing.pth": (
            {k: v for k, v in world.meta.items() if "norm3" not in k},
            "4 tensor(s) missing (mask_decoder.transformer.layers.0.norm3.bias, ",
        ),
        "extra.pth": (
            changed("mask_decoder.hf_token.weight", 1),
            "1 tensor(s) unexpected (mask_decoder.hf_t",
        ),
        "shape.pth": (changed(f"{encoder}.neck.1.bias", 5), "layer_norm1.bias is [5] instead of [32]"),
        "windows.pth": (
            changed(f"{encoder}.blocks.2.attn.rel_pos_h", 9, 12),
            "mixes windows of [3, 5] patches",
        ),
        "oblong.pth": (changed(f"{encoder}.pos_embed", 1, 8, 4, 24), "8 x 4 patches is not square"),
        "heads.pth": (changed(f"{first}.attn.rel_pos_h", 5, 7), "heads of 7 channels"),
        "decoder.pth": (changed("mask_decoder.iou_token.weight", 1, 36), "a mask decoder of width 36"),
        "hollow.pth": (changed(f"{encoder}.patch_embed.proj.weight", 0, 3, 8, 8), "[0, 3, 8, 8]"),
    }
    for name, (content, telling) in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError) as error:
            load_sam(tmp_path / name)
        one_sentence(error, tmp_path / name, telling)


def test_damaged_and_missing_files_give_one_sentence(world, tmp_path):
    whole = (world.folder / "sam_tiny.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for source, telling in ((tmp_path / "cut.pth", "truncated"), ("nowhere.pth", "facebook/sam-vit-base")):
        with pytest.raises(InputError) as error:
            load_sam(source)
        one_sentence(error, source, telling)


# ---------------------------------------------------------------- content hash


def test_content_hash_by_hand():
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor(3, dtype=torch.int64)}
    expected = hashlib.sha256(
        b'["a", "int64", []]'
        + struct.pack("<q", 3)
        + b'["b", "float32", [2]]'
        + struct.pack("<2f", 1.0, -2.0)
    )
    assert content_hash(state) == expected.hexdigest()


def test_content_hash_ignores_order_precision_layout_and_ties():
    weight = torch.arange(6.0).reshape(2, 3)
    expected = content_hash({"a": weight, "b": torch.ones(2)})
    assert content_hash({"b": torch.ones(2), "a": weight}) == expected
    assert content_hash({"a": weight.half(), "b": torch.ones(2, dtype=torch.bfloat16)}) == expected
    assert content_hash({"a": weight.T.contiguous().T, "b": torch.ones(2)}) == expected
    assert content_hash({"a": weight, "again": weight, "b": torch.ones(2)}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.arange(6.0).reshape(3, 2)},  # shape
        {"c": torch.arange(6.0).reshape(2, 3)},  # name
        {"a": torch.arange(6.0).reshape(2, 3) + 1e-6},  # value
        {"a": torch.arange(6).reshape(2, 3)},  # dtype
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(6.0).reshape(2, 3)},  # equal, but not tied
    ],
)
def test_content_hash_sees_every_difference(other):
    assert content_hash(other) != content_hash({"a": torch.arange(6.0).reshape(2, 3)})


def test_content_hash_of_a_module_skips_what_is_not_saved():
    module = nn.Linear(2, 2)
    before = content_hash(module)
    module.register_buffer("cache", torch.randn(3), persistent=False)
    assert content_hash(module) == before
    module.register_buffer("mean", torch.randn(3))
    assert content_hash(module) != before


def test_source_is_kept_as_given(world, monkeypatch):
    monkeypatch.chdir(world.folder)
    assert load_sam("sam_tiny.pth").source == "sam_tiny.pth"
    assert load_sam(Path("hf")).source == "hf"
