"""The model's configuration: round trips, and mistakes that are named."""

from __future__ import annotations

import json

import pytest
import yaml

from promptris.config import (
    DecoderConfig,
    PromptingConfig,
    PromptRISConfig,
    SamPromptConfig,
    check_prompt_names,
)
from promptris.errors import InputError

OTHER = PromptRISConfig(
    clip_image_size=96,
    max_words=17,
    prompting=PromptingConfig(direction="l2v", num_prompts=5, heads=2),
    decoder=DecoderConfig(
        dim=64,
        layers=3,
        heads=4,
        ffn_ratio=2,
        self_attention=True,
        position_signal=True,
        start_from_clip=True,
        initial_bias=-2.5,
    ),
    sam_prompts=SamPromptConfig(
        enabled=("mask", "text"), text_layers=1, text_heads=2, gumbel_temperature=0.5, refine=False
    ),
)


@pytest.mark.parametrize("text", [json.dumps, yaml.safe_dump])
def test_round_trip_through_text(text):
    plain = OTHER.to_dict()
    plain["sam_prompts"]["enabled"] = list(plain["sam_prompts"]["enabled"])
    again = PromptRISConfig.from_dict(yaml.safe_load(text(plain)))
    assert again == OTHER
    assert isinstance(again.decoder, DecoderConfig)
    assert again.sam_prompts.enabled == ("mask", "text")


def test_paper_values_are_the_defaults():
    config = PromptRISConfig()
    assert config.clip_image_size == 480
    assert (config.prompting.direction, config.prompting.num_prompts) == ("both", 16)
    assert (config.decoder.dim, config.decoder.layers, config.decoder.heads) == (512, 1, 8)
    assert not (
        config.decoder.self_attention or config.decoder.position_signal or config.decoder.start_from_clip
    )
    assert config.sam_prompts.enabled == ("mask", "point", "text")
    assert config.sam_prompts.text_layers == 2


def test_missing_keys_take_their_defaults():
    config = PromptRISConfig.from_dict({"decoder": {"dim": 32}})
    assert config.decoder.dim == 32
    assert config.decoder.heads == DecoderConfig().heads
    assert config.prompting == PromptingConfig()


def test_unknown_keys_are_named():
    with pytest.raises(InputError, match="clip_size"):
        PromptRISConfig.from_dict({"clip_size": 480})
    with pytest.raises(InputError, match=r"decoder.*width"):
        PromptRISConfig.from_dict({"decoder": {"width": 1}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sam_prompts": {"enabled": ["mask", "box"]}}, "box"),
        ({"prompting": {"direction": "sideways"}}, "sideways"),
        ({"prompting": {"num_prompts": -1}}, "num_prompts"),
        ({"sam_prompts": {"gumbel_temperature": 0.0}}, "gumbel_temperature"),
        ({"prompting": 16}, "prompting"),
        ({"decoder": {"layers": "three"}}, "layers"),
        ({"clip_image_size": 0}, "clip_image_size"),
    ],
)
def test_wrong_values_are_named(values, named):
    with pytest.raises(InputError, match=named):
        PromptRISConfig.from_dict(values)


def test_prompt_names_come_back_in_canonical_order():
    assert check_prompt_names(["text", "mask"]) == ("mask", "text")
    assert check_prompt_names(()) == ()
    assert check_prompt_names(("point", "point")) == ("point",)
    with pytest.raises(InputError, match="circle"):
        check_prompt_names(("mask", "circle"))
