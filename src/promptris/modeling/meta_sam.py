"""Meta's original SAM files: sizes told from shapes, and tensors renamed to what transformers calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from promptris.errors import WeightsError
from promptris.modeling.openai_clip import count_layers, read_shape

if TYPE_CHECKING:
    from transformers import SamConfig

# Normalisation constants that some copies of the files carry beside the weights.
BOOKKEEPING = re.compile(r"pixel_mean|pixel_std")

TRANSPOSED: frozenset[str] = frozenset()

# All of Meta's mask decoders attend with eight heads; no tensor tells.
_DECODER_HEADS = 8

_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")


def infer_config(tensors: Mapping[str, Tensor], name: str) -> SamConfig:
    """The transformers config that Meta's tensors imply: ViT-B, L, H, and any other size of the same build.

    Layers with global attention are told by the length of their relative positions, 2 * grid - 1; the others
    give the window size. The channels of a relative position are the channels of a head. Epsilons are those
    of transformers, so that a file and a transformers folder give the same model (Meta's own code adds 1e-5
    rather than 1e-6 inside the decoder's norms).

    Args:
        tensors: Meta's names to tensors; only shapes are read, so meta tensors do.
        name: the file's name, for errors.

    Raises:
        WeightsError: tensors that the sizes are read from are missing, or their shapes contradict each other.
    """
    from transformers import SamConfig

    def shape(key: str, dims: int) -> torch.Size:
        return read_shape(tensors, key, dims, f"{name} is not a complete SAM as Meta released it")

    width, channels, patch, _ = shape("image_encoder.patch_embed.proj.weight", 4)
    _, grid, grid_width, _ = shape("image_encoder.pos_embed", 4)
    if grid != grid_width:
        raise WeightsError(f"{name}: a position embedding of {grid} x {grid_width} patches is not square")
    layers = count_layers(tensors, "image_encoder.blocks.")
    spans = [shape(f"image_encoder.blocks.{i}.attn.rel_pos_h", 2)[0] for i in range(layers)]
    windows = {(span + 1) // 2 for span in spans if span != 2 * grid - 1}
    if len(windows) > 1:
        raise WeightsError(
            f"{name}: the image encoder mixes windows of {sorted(windows)} patches, SAM uses one size"
        )
    head = shape("image_encoder.blocks.0.attn.rel_pos_h", 2)[1]
    if width % head:
        raise WeightsError(
            f"{name}: an image encoder of width {width} does not split into heads of {head} channels"
        )

    decoder = "mask_decoder.transformer.layers"
    hidden = shape("mask_decoder.iou_token.weight", 2)[1]
    narrow = shape(f"{decoder}.0.cross_attn_token_to_image.q_proj.weight", 2)[0]
    if hidden % narrow or narrow % _DECODER_HEADS:
        raise WeightsError(
            f"{name}: a mask decoder of width {hidden} with attention of width {narrow} is not SAM's, "
            f"which splits both into {_DECODER_HEADS} heads"
        )
    size = {"image_size": grid * patch, "patch_size": patch}
    return SamConfig(
        vision_config={
            **size,
            "hidden_size": width,
            "output_channels": shape("image_encoder.neck.0.weight", 4)[0],
            "num_hidden_layers": layers,
            "num_attention_heads": width // head,
            "num_channels": channels,
            "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in tensors,
            "mlp_dim": shape("image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
            # With no windowed layer the size is never used; 14 is what SAM has.
            "window_size": windows.pop() if windows else 14,
            "global_attn_indexes": [i for i, span in enumerate(spans) if span == 2 * grid - 1],
            "num_pos_feats": shape(_POSITIONS, 2)[1],
        },
        prompt_encoder_config={
            **size,
            "hidden_size": shape("prompt_encoder.no_mask_embed.weight", 2)[1],
            "mask_input_channels": shape("prompt_encoder.mask_downscaling.3.weight", 4)[0],
            "num_point_embeddings": count_layers(tensors, "prompt_encoder.point_embeddings."),
        },
        mask_decoder_config={
            "hidden_size": hidden,
            "mlp_dim": shape(f"{decoder}.0.mlp.lin1.weight", 2)[0],
            "num_hidden_layers": count_layers(tensors, f"{decoder}."),
            "num_attention_heads": _DECODER_HEADS,
            "attention_downsample_rate": hidden // narrow,
            "num_multimask_outputs": shape("mask_decoder.mask_tokens.weight", 2)[0] - 1,
            "iou_head_depth": count_layers(tensors, "mask_decoder.iou_prediction_head.layers."),
            "iou_head_hidden_dim": shape("mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
        },
    )


def key_table(config: SamConfig) -> dict[str, tuple[str, ...]]:
    """Meta's name of every tensor -> transformers' name, as one-element tuples.

    The position matrix goes to `shared_image_embedding`; transformers ties the prompt encoder's copy to it.
    """
    pairs = {
        "image_encoder.pos_embed": "vision_encoder.pos_embed",
        "image_encoder.neck.0.weight": "vision_encoder.neck.conv1.weight",
        "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
        _POSITIONS: "shared_image_embedding.positional_embedding",
        "prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight": "mask_decoder.mask_tokens.weight",
    }
    for i in range(config.prompt_encoder_config.num_point_embeddings):
        pairs[f"prompt_encoder.point_embeddings.{i}.weight"] = f"prompt_encoder.point_embed.{i}.weight"

    # From here on every entry is a module with a weight and a bias.
    modules = {
        "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
        "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
        "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
        "prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
        "prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
        "prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
        "prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
        "prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
        "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
        "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
        "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
        "mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
    }
    for i in range(config.vision_config.num_hidden_layers):
        theirs, ours = f"image_encoder.blocks.{i}", f"vision_encoder.layers.{i}"
        for part in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"):
            modules[f"{theirs}.{part}"] = f"{ours}.{part}"
        for number in (1, 2):
            modules[f"{theirs}.norm{number}"] = f"{ours}.layer_norm{number}"
        for axis in "hw":
            pairs[f"{theirs}.attn.rel_pos_{axis}"] = f"{ours}.attn.rel_pos_{axis}"

    transformer = "mask_decoder.transformer"
    attentions = [f"{transformer}.final_attn_token_to_image"]
    for i in range(config.mask_decoder_config.num_hidden_layers):
        layer = f"{transformer}.layers.{i}"
        attentions += [f"{layer}.{attention}" for attention in _ATTENTIONS]
        modules |= {f"{layer}.mlp.lin{number}": f"{layer}.mlp.lin{number}" for number in (1, 2)}
        modules |= {f"{layer}.norm{number}": f"{layer}.layer_norm{number}" for number in (1, 2, 3, 4)}
    for attention in attentions:
        modules |= {f"{attention}.{part}_proj": f"{attention}.{part}_proj" for part in ("q", "k", "v", "out")}

    modules |= _mlp("mask_decoder.iou_prediction_head", config.mask_decoder_config.iou_head_depth)
    for i in range(config.mask_decoder_config.num_multimask_outputs + 1):
        modules |= _mlp(f"mask_decoder.output_hypernetworks_mlps.{i}", 3)

    for theirs, ours in modules.items():
        pairs |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    if not config.vision_config.qkv_bias:
        pairs = {theirs: ours for theirs, ours in pairs.items() if not theirs.endswith("attn.qkv.bias")}
    return {theirs: (ours,) for theirs, ours in pairs.items()}


def _mlp(prefix: str, depth: int) -> dict[str, str]:
    """Meta numbers an MLP's layers 0 ... depth - 1; transformers calls the ends proj_in and proj_out."""
    names = {0: "proj_in", depth - 1: "proj_out"}
    return {f"{prefix}.layers.{i}": f"{prefix}.{names.get(i, f'layers.{i - 1}')}" for i in range(depth)}
