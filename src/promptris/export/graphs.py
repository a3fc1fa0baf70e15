"""The three graphs that a model is exported as, and the shapes of what goes in and comes out.

SAM's image encoder runs once per image; CLIP with its prompts and the prompted decoder run for any number of
expressions about any of the images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.sam_prompts import Corrections
from promptris.ops.plain import plain_paths
from promptris.processing import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD
from promptris.structures import ExpressionBatch

SAM_ENCODER, PROMPTED_CLIP, PROMPTED_DECODER = "sam_encoder", "prompted_clip", "prompted_decoder"

DIMENSIONS = {
    "images": "how many images",
    "expressions": "how many expressions; each points at one of the images",
    "tokens": "of the longest expression, start and end included",
    "clicks": "of the expression with most of them; may be 0",
}
"""Sizes that are chosen at every call."""

_SAMS_OTHER_PARTS = ("prompt_encoder", "mask_decoder", "shared_image_embedding")
Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: in the graph.
        dtype: numpy's name of its type.
        shape: sizes, or names from `DIMENSIONS`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def zeros(self, sizes: Mapping[str, int]) -> Tensor:
        """A tensor of this shape and type."""
        shape = [size if isinstance(size, int) else sizes[size] for size in self.shape]
        return torch.zeros(shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Graph:
    """A part of the model with named inputs and outputs.

    Attributes:
        name: of the graph and its file.
        module: takes the inputs in their order, gives the outputs in theirs.
        inputs: what goes in.
        outputs: what comes out.
        longest: tokens of the longest expression that the model reads.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    longest: int

    def dynamic_shapes(self, fewest_clicks: int = 0) -> tuple[dict[int, Any], ...]:
        """Per input, the axes whose size is chosen at every call, as torch.export wants them."""
        ranges = {"tokens": {"min": 2, "max": self.longest}, "clicks": {"min": fewest_clicks}}
        dimensions = {name: Dim(name, **ranges.get(name, {})) for name in DIMENSIONS}
        return tuple(
            {axis: dimensions[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
            for spec in self.inputs
        )

    def record(self, fewest_clicks: int = 0) -> ExportedProgram:
        """The graph's operations as torch.export records them."""
        # No two sizes are equal, nor 0 or 1, which recording takes for fixed.
        sizes = {"images": 2, "expressions": 5, "tokens": min(7, self.longest), "clicks": 3}
        example = tuple(spec.zeros(sizes) for spec in self.inputs)
        with torch.no_grad(), plain_paths():
            return torch.export.export(
                self.module, example, dynamic_shapes=self.dynamic_shapes(fewest_clicks)
            )


def graphs_of(model: PromptRIS) -> tuple[Graph, ...]:
    """The graphs of a model in float32: what is computed per image, then the two for expressions."""
    sam, clip, config = model.sam, model.clip, model.config
    longest = model.processor().context_length
    features: tuple[int, ...] = (sam.dim, sam.grid_size, sam.grid_size)
    side, coarse, large = config.clip_image_size, model.coarse_grid, sam.mask_size
    embeddings = TensorSpec("sam_embeddings", "float32", ("images", *features))
    response = TensorSpec("coarse_logits_hr", "float32", ("expressions", large, large))
    words = TensorSpec("words", "float32", ("expressions", "tokens", clip.text_dim))
    word_mask = TensorSpec("word_mask", "bool", ("expressions", "tokens"))
    index = TensorSpec("image_index", "int64", ("expressions",))
    return (
        Graph(
            SAM_ENCODER,
            SamEncoder(model),
            (TensorSpec("sam_pixels", "uint8", ("images", 3, sam.image_size, sam.image_size)),),
            (embeddings,),
            longest,
        ),
        Graph(
            PROMPTED_CLIP,
            PromptedClip(model),
            (
                TensorSpec("clip_pixels", "uint8", ("images", 3, side, side)),
                TensorSpec("input_ids", "int64", ("expressions", "tokens")),
                word_mask,
                index,
            ),
            (TensorSpec("coarse_logits", "float32", ("expressions", coarse, coarse)), response, words),
            longest,
        ),
        Graph(
            PROMPTED_DECODER,
            PromptedDecoder(model),
            (
                embeddings,
                response,
                words,
                word_mask,
                index,
                TensorSpec("prompts", "bool", ("expressions", 3)),
                TensorSpec("points", "float32", ("expressions", "clicks", 2)),
                TensorSpec("labels", "int64", ("expressions", "clicks")),
            ),
            (
                TensorSpec("mask_logits", "float32", ("expressions", large, large)),
                TensorSpec("predicted_iou", "float32", ("expressions",)),
                TensorSpec("point_index", "int64", ("expressions",)),
            ),
            longest,
        ),
    )


def _without(module: Part, *paths: str) -> Part:
    """The module without some of those inside it: a recorded program keeps every weight it can reach.

    All others are shared with the original.
    """
    part = copy.copy(module)
    part._modules = dict(module._modules)
    for path in paths:
        name, _, rest = path.partition(".")
        if rest:
            inner = part._modules[name]
            assert inner is not None
            part._modules[name] = _without(inner, rest)
        else:
            del part._modules[name]
    return part


class Normalisation(nn.Module):
    """uint8 pixels as the towers take them: `promptris.processing.normalise` as one product and one sum."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        centre, spread = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * spread), persistent=False)
        self.register_buffer("shift", -centre / spread, persistent=False)

    def forward(self, pixels: UInt8[Tensor, "I 3 h w"]) -> Float[Tensor, "I 3 h w"]:
        """(value / 255 - mean) / std per channel."""
        return pixels.float() * self.scale + self.shift


class SamEncoder(nn.Module):
    """SAM's image features, once per image."""

    def __init__(self, model: PromptRIS) -> None:
        super().__init__()
        self.normalisation = Normalisation(SAM_MEAN, SAM_STD)
        self.sam = _without(model.sam, *(f"sam.{part}" for part in _SAMS_OTHER_PARTS))

    def forward(self, sam_pixels: UInt8[Tensor, "I 3 s s"]) -> Float[Tensor, "I D_S H_S W_S"]:
        """F_IS."""
        return self.sam.encode_image(self.normalisation(sam_pixels))


class PromptedClip(nn.Module):
    """CLIP with cross-modal prompting and the decoder behind it."""

    def __init__(self, model: PromptRIS) -> None:
        super().__init__()
        self.normalisation = Normalisation(CLIP_MEAN, CLIP_STD)
        sams = (f"sam.sam.{part}" for part in ("vision_encoder", *_SAMS_OTHER_PARTS))
        self.model = _without(
            model, "text_prompter", "clip.clip.visual_projection", "clip.clip.text_projection", *sams
        )

    def forward(
        self,
        clip_pixels: UInt8[Tensor, "I 3 h w"],
        input_ids: Int[Tensor, "B T"],
        word_mask: Bool[Tensor, "B T"],
        image_index: Int[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B H_C W_C"], Float[Tensor, "B H W"], Float[Tensor, "B T D_T"]]:
        """S'_C, S_C and F_T."""
        tokens = self.model.embed_for_clip(self.normalisation(clip_pixels))
        return self.model.respond(tokens, ExpressionBatch(input_ids, word_mask, image_index))


class PromptedDecoder(nn.Module):
    """SAM's decoder with the model's prompts and a person's."""

    def __init__(self, model: PromptRIS) -> None:
        super().__init__()
        self.model = _without(model, "clip", "prompting", "decoder", "sam.sam.vision_encoder")

    def forward(
        self,
        sam_embeddings: Float[Tensor, "I D_S H_S W_S"],
        coarse_logits_hr: Float[Tensor, "B H W"],
        words: Float[Tensor, "B T D_T"],
        word_mask: Bool[Tensor, "B T"],
        image_index: Int[Tensor, " B"],
        prompts: Bool[Tensor, "B 3"],
        points: Float[Tensor, "B M 2"],
        labels: Int[Tensor, "B M"],
    ) -> tuple[Float[Tensor, "B H W"], Float[Tensor, " B"], Int[Tensor, " B"]]:
        """S', its predicted IoU and the chosen position; clicks and labels are those of `Corrections`."""
        return self.model.refine(
            sam_embeddings[image_index],
            coarse_logits_hr,
            words,
            word_mask,
            prompts,
            corrections=Corrections(points, labels),
        )
