"""Tower configurations by name: the only place that knows sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from promptris.config import DecoderConfig, PromptingConfig, PromptRISConfig, SamPromptConfig
from promptris.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Sizes of a CLIP and a SAM and the model configuration that goes with them.

    Attributes:
        vision: arguments of CLIPVisionConfig.
        text: arguments of CLIPTextConfig.
        projection_dim: width of CLIP's joint space.
        sam_vision: arguments of SamVisionConfig.
        sam_dim: D_S.
        sam_mlp_dim: feed-forward width of SAM's mask decoder.
        sam_heads: attention heads of SAM's mask decoder.
        config: the model's configuration.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    projection_dim: int
    sam_vision: dict[str, Any]
    sam_dim: int = 256
    sam_mlp_dim: int = 2048
    sam_heads: int = 8
    config: PromptRISConfig = field(default_factory=PromptRISConfig)

    def clip_config(self) -> CLIPConfig:
        """transformers' configuration of CLIP."""
        joint = {"projection_dim": self.projection_dim}
        return CLIPConfig(
            text_config=CLIPTextConfig(**self.text, **joint).to_dict(),
            vision_config=CLIPVisionConfig(**self.vision, **joint).to_dict(),
            **joint,
        )

    def sam_config(self) -> SamConfig:
        """transformers' configuration of SAM."""
        vision = SamVisionConfig(
            **self.sam_vision,
            output_channels=self.sam_dim,
            num_pos_feats=self.sam_dim // 2,
            # transformers' default of 1e-10 leaves random weights without any signal.
            initializer_range=0.02,
        )
        return SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=SamPromptEncoderConfig(
                hidden_size=self.sam_dim, image_size=vision.image_size, patch_size=vision.patch_size
            ).to_dict(),
            mask_decoder_config=SamMaskDecoderConfig(
                hidden_size=self.sam_dim,
                mlp_dim=self.sam_mlp_dim,
                num_attention_heads=self.sam_heads,
                iou_head_hidden_dim=self.sam_dim,
            ).to_dict(),
        )


_VIT_B_16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16}
_VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_TEXT_B = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_TEXT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_SAM_B: dict[str, Any] = {}
_SAM_L = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "global_attn_indexes": [5, 11, 17, 23],
}
_SAM_H = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "global_attn_indexes": [7, 15, 23, 31],
}

PRESETS: dict[str, Preset] = {
    "vit-b": Preset(_VIT_B_16, _TEXT_B, 512, _SAM_B),
    "vit-b-32": Preset({**_VIT_B_16, "patch_size": 32}, _TEXT_B, 512, _SAM_B),
    "vit-l": Preset(_VIT_L_14, _TEXT_L, 768, _SAM_L, config=PromptRISConfig(clip_image_size=476)),
    "vit-h": Preset(_VIT_L_14, _TEXT_L, 768, _SAM_H, config=PromptRISConfig(clip_image_size=476)),
    # The towers of the built-in RefShapes models; pretraining sets the vocabulary's size to its tokenizer's.
    "refshapes": Preset(
        vision={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 96,
            "patch_size": 12,
        },
        text={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            "vocab_size": 1024,
            "bos_token_id": 1022,
            "eos_token_id": 1023,
        },
        projection_dim=96,
        sam_vision={
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 8,
            "window_size": 8,
            "global_attn_indexes": [1, 3],
            # Exact GELU takes a sixth of a training step at this width on a CPU.
            "hidden_act": "relu",
            "use_rel_pos": False,
        },
        sam_dim=64,
        sam_mlp_dim=256,
        sam_heads=4,
        config=PromptRISConfig(
            clip_image_size=96,
            prompting=PromptingConfig(num_prompts=4, heads=4),
            decoder=DecoderConfig(
                dim=96,
                layers=3,
                heads=4,
                self_attention=True,
                position_signal=True,
                start_from_clip=True,
                initial_bias=-4.0,
            ),
            sam_prompts=SamPromptConfig(text_heads=4),
        ),
    ),
}
# A grid of 12 x 12 patches in place of 8 x 8: the coarse mask of a small object needs it.
_COARSE = PRESETS["refshapes"]
PRESETS["refshapes-fine"] = replace(_COARSE, vision={**_COARSE.vision, "patch_size": 8})


def get_preset(name: str) -> Preset:
    """A preset by name; an `InputError` lists the known ones."""
    if name not in PRESETS:
        raise InputError(f"there is no tower preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
