"""Builds a `PromptRIS` from its towers and a configuration; the only place that turns config into parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SamConfig, SamModel

from promptris.config import PromptRISConfig
from promptris.errors import InputError
from promptris.modeling.base_weights import BaseModel, load_clip, load_sam
from promptris.modeling.clip_towers import ClipTowers
from promptris.modeling.cross_modal_decoder import CrossModalDecoder
from promptris.modeling.cross_modal_prompting import CrossModalPrompting
from promptris.modeling.presets import get_preset
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.sam_adapter import SamAdapter
from promptris.modeling.sam_prompts import TextPrompter
from promptris.modeling.tokenizer import byte_tokenizer, load_tokenizer


def build_model(
    clip: CLIPModel, sam: SamModel, config: PromptRISConfig, tokenizer: CLIPTokenizer, seed: int | None = None
) -> PromptRIS:
    """Assemble the model around two towers, which are used as they are and frozen.

    Args:
        clip: transformers' CLIP.
        sam: transformers' SAM.
        config: sizes of the learned parts.
        tokenizer: that goes with `clip`.
        seed: of the learned parts' initial weights; None leaves torch's random state alone.

    Raises:
        InputError: when the configuration does not fit the towers.
    """
    if seed is not None:
        torch.manual_seed(seed)
    clip.set_attn_implementation("sdpa")
    towers, adapter = ClipTowers(clip), SamAdapter(sam)
    if config.clip_image_size % towers.patch_size:
        raise InputError(
            f"clip_image_size {config.clip_image_size} is not a multiple of CLIP's patch size {towers.patch_size}"
        )
    prompting, settings = config.prompting, config.decoder
    if prompting.first_layer > towers.depth:
        raise InputError(
            f"prompting.first_layer is {prompting.first_layer}, but CLIP's towers have {towers.depth} layers"
        )
    decoder = CrossModalDecoder(
        towers.image_dim,
        towers.text_dim,
        settings.dim,
        settings.layers,
        settings.heads,
        settings.ffn_ratio,
        settings.self_attention,
        settings.position_signal,
        settings.initial_bias,
    )
    if settings.start_from_clip:
        decoder.start_from_clip(clip)
    return PromptRIS(
        clip=towers,
        sam=adapter,
        prompting=CrossModalPrompting(
            towers.depth,
            towers.image_dim,
            towers.text_dim,
            v2l_prompts=prompting.num_prompts if prompting.direction in ("v2l", "both") else 0,
            l2v_prompts=prompting.num_prompts if prompting.direction in ("l2v", "both") else 0,
            heads=prompting.heads,
            first_step=prompting.first_layer,
        ),
        decoder=decoder,
        text_prompter=TextPrompter(
            towers.text_dim, adapter.dim, config.sam_prompts.text_layers, config.sam_prompts.text_heads
        ),
        config=config,
        tokenizer=tokenizer,
    )


def build_from_sources(
    clip_source: str | Path, sam_source: str | Path, config: PromptRISConfig, seed: int | None = None
) -> PromptRIS:
    """A model around pretrained towers: transformers folders, hub ids, or the original files."""
    clip, sam = load_clip(clip_source), load_sam(sam_source)
    model = build_model(clip.module, sam.module, config, load_tokenizer(clip_source), seed)
    model.sources = {"clip": describe_source(clip), "sam": describe_source(sam)}
    return model


def build_random(preset: str, seed: int = 0, config: PromptRISConfig | None = None) -> PromptRIS:
    """A model of a preset's sizes with random weights everywhere: for speed, memory and trying things out.

    `config` None takes the preset's own learned parts.
    """
    sizes = get_preset(preset)
    torch.manual_seed(seed)
    clip_config = sizes.clip_config()
    text = clip_config.text_config
    tokenizer = byte_tokenizer(text.vocab_size, text.max_position_embeddings)
    clip, sam = CLIPModel(clip_config), SamModel(sizes.sam_config())
    return build_model(clip, sam, config or sizes.config, tokenizer)


def build_from_configs(
    clip_config: dict[str, Any], sam_config: dict[str, Any], config: PromptRISConfig, tokenizer: CLIPTokenizer
) -> PromptRIS:
    """A model whose weights, towers included, are about to be loaded."""
    clip, sam = CLIPModel(CLIPConfig(**clip_config)), SamModel(SamConfig(**sam_config))
    return build_model(clip, sam, config, tokenizer)


def describe_source(base: BaseModel[Any]) -> dict[str, str]:
    """Where a tower comes from, for the saved configuration."""
    return {"source": base.source, "format": base.format, "sha256": base.sha256}


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one part."""

    part: str
    trainable: int
    frozen: int


def count_parameters(model: PromptRIS) -> list[ParameterCount]:
    """Trainable and frozen parameters per part, and their total as the last entry.

    CLIP's temperature is counted with its text tower.
    A matrix that two modules share (SAM's position matrix) is counted once.
    """
    clip, sam = model.clip.clip, model.sam.sam
    parts: dict[str, list[nn.Module]] = {
        "CLIP image tower": [clip.vision_model, clip.visual_projection],
        "CLIP text tower": [clip.text_model, clip.text_projection, nn.ParameterList([clip.logit_scale])],
        "SAM image encoder": [sam.vision_encoder],
        "SAM prompt encoder": [sam.prompt_encoder],
        "SAM mask decoder": [sam.mask_decoder],
        "cross-modal prompting": [model.prompting],
        "cross-modal decoder": [model.decoder],
        "text prompter": [model.text_prompter],
    }
    counts = []
    for part, modules in parts.items():
        parameters = {id(p): p for module in modules for p in module.parameters()}.values()
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        counts.append(ParameterCount(part, trainable, sum(p.numel() for p in parameters) - trainable))
    total = ParameterCount("total", sum(c.trainable for c in counts), sum(c.frozen for c in counts))
    return [*counts, total]
