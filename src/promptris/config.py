"""The typed configuration of the model: one description for Python, YAML and the command line.

Field comments are the help texts. Sizes of the frozen towers are not repeated here: they come from the
towers themselves, so a configuration fits any CLIP and SAM whose depths go together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from promptris.errors import InputError

PromptName = Literal["mask", "point", "text"]
PROMPT_NAMES: tuple[PromptName, ...] = ("mask", "point", "text")


_LOWEST = {
    "clip_image_size": 1,
    "max_words": 0,
    "num_prompts": 0,
    "heads": 1,
    "first_layer": 0,
    "dim": 1,
    "layers": 0,
    "ffn_ratio": 1,
    "text_layers": 0,
    "text_heads": 1,
    "gumbel_temperature": 0.01,
}
"""Smallest value that a field of this name takes."""


class _Checked:
    """Refuses field values that do not fit, so that a misspelt choice is not taken for "off"."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in (f.name for f in dataclasses.fields(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if not _fits(value, hints[name]):
                raise InputError(f"{name} must be {_spelt(hints[name])}, not {value!r}")
            if name in _LOWEST and not value >= _LOWEST[name]:
                raise InputError(f"{name} must be at least {_LOWEST[name]}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spelt(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each item {_spelt(get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return "a group of settings"
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return names[hint]


@dataclass
class PromptingConfig(_Checked):
    """Cross-modal prompting (Eq. 5 and 6).

    Attributes:
        direction: which prompts are generated: "both", "v2l", "l2v" or "none" (Table 4).
        num_prompts: prompt tokens n per layer and direction.
        heads: attention heads of each prompt generator.
        first_layer: layers of both towers before this one run without prompts, and those of the image tower once per
            image instead of once per expression; the paper prompts from the first, 0.
    """

    direction: Literal["both", "v2l", "l2v", "none"] = "both"
    num_prompts: int = 16
    heads: int = 8
    first_layer: int = 0


@dataclass
class DecoderConfig(_Checked):
    """Cross-modal decoder and coarse response map (Eq. 1 and 2).

    Attributes:
        dim: width D_C of the joint space.
        layers: layers in each direction; the paper has one.
        heads: attention heads.
        ffn_ratio: hidden width of the feed-forward blocks over `dim`.
        self_attention: image tokens also attend to each other in every layer.
        position_signal: every block reads the image tokens with a fixed 2-D sine-cosine code added.
        start_from_clip: copy CLIP's own projections and begin as its similarity map (needs `dim` equal to
            CLIP's projection width).
        initial_bias: initial value of the response map's learned bias.
    """

    dim: int = 512
    layers: int = 1
    heads: int = 8
    ffn_ratio: int = 4
    self_attention: bool = False
    position_signal: bool = False
    start_from_clip: bool = False
    initial_bias: float = 0.0


@dataclass
class SamPromptConfig(_Checked):
    """Mask, point and text prompts for SAM (Eq. 3 and 4).

    Attributes:
        enabled: the prompts this model uses unless a call says otherwise (Table 5).
        text_layers: transformer blocks of the text prompt.
        text_heads: their attention heads.
        gumbel_temperature: temperature of the straight-through Gumbel-Softmax over positions.
        refine: the answer is SAM's; without it, as for models trained without SAM, it is the coarse mask.
    """

    enabled: tuple[PromptName, ...] = PROMPT_NAMES
    text_layers: int = 2
    text_heads: int = 8
    gumbel_temperature: float = 1.0
    refine: bool = True


@dataclass
class PromptRISConfig(_Checked):
    """Everything that defines a Prompt-RIS model beside its two frozen towers.

    Attributes:
        clip_image_size: side of the square image CLIP sees, in pixels; a multiple of CLIP's patch size.
        max_words: longest expression in tokens, [SOS] and [EOS] included; 0 means CLIP's own limit.
        prompting: cross-modal prompting.
        decoder: cross-modal decoder.
        sam_prompts: prompts for SAM.
    """

    clip_image_size: int = 480
    max_words: int = 0
    prompting: PromptingConfig = field(default_factory=PromptingConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    sam_prompts: SamPromptConfig = field(default_factory=SamPromptConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON or YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptRISConfig:
        """Inverse of `to_dict`; unknown keys are an `InputError` that names them."""
        return from_plain(cls, values)


Config = TypeVar("Config")


def from_plain(kind: type[Config], values: dict[str, Any], where: str = "config") -> Config:
    """A (nested) dataclass from plain containers.

    Raises:
        InputError: for a key the dataclass does not have, or a value it does not take.
    """
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{where} has unknown keys {unknown}; known are {sorted(hints)}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = from_plain(hint, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)


def check_prompt_names(names: tuple[str, ...] | list[str]) -> tuple[PromptName, ...]:
    """The given SAM prompts in canonical order; an `InputError` names an unknown one."""
    unknown = [name for name in names if name not in PROMPT_NAMES]
    if unknown:
        raise InputError(f"unknown prompt {unknown[0]!r}: choose from {', '.join(PROMPT_NAMES)}")
    return tuple(name for name in PROMPT_NAMES if name in names)
