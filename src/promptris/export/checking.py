"""Exported graphs against the model itself, on random images, expressions and clicks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptris.errors import ExportError
from promptris.export.graphs import PROMPTED_CLIP, PROMPTED_DECODER, SAM_ENCODER, Graph
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.sam_prompts import Corrections
from promptris.ops.onednn import inference
from promptris.structures import ExpressionBatch, ImageBatch

TOLERANCE = 1e-3
"""Largest difference of an output that is let through, as a share of the output's largest value."""

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Arrays]
"""Runs a graph: inputs by name in, outputs by name out."""


@dataclass(frozen=True)
class Question:
    """What every graph is given, and what the model makes of it, by graph."""

    inputs: dict[str, Arrays]
    outputs: dict[str, Arrays]


def check_sizes(longest: int, fewest_clicks: int = 0) -> tuple[dict[str, int], ...]:
    """The sizes that graphs are checked at: one of everything, the fewest clicks, the longest expressions."""
    return (
        {"images": 1, "expressions": 1, "tokens": min(4, longest), "clicks": fewest_clicks},
        {"images": 2, "expressions": 3, "tokens": longest, "clicks": 2},
        {"images": 1, "expressions": 2, "tokens": min(9, longest), "clicks": 1},
    )


def ask_model(model: PromptRIS, sizes: Mapping[str, int], seed: int) -> Question:
    """A random question of the given sizes, answered by the model the way it always answers.

    Clicks carry all labels: none, background, foreground, and the corners of a box.
    """
    draw = torch.Generator().manual_seed(seed)

    def below(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    images, rows, tokens, clicks = (sizes[name] for name in ("images", "expressions", "tokens", "clicks"))
    clip_side, sam_side = model.config.clip_image_size, model.sam.image_size
    batch = ImageBatch(
        below(256, images, 3, clip_side, clip_side).to(torch.uint8),
        below(256, images, 3, sam_side, sam_side).to(torch.uint8),
    )
    lengths = 2 + below(tokens - 1, rows)
    lengths[0] = tokens
    expressions = ExpressionBatch(
        below(model.clip.clip.config.text_config.vocab_size, rows, tokens),
        torch.arange(tokens) < lengths[:, None],
        below(images, rows),
    )
    prompts = below(2, rows, 3).bool()
    prompts[0] = True
    labels = below(5, rows, clicks) - 1
    points = torch.rand(rows, clicks, 2, generator=draw)
    with inference():
        features = model.encode_image(batch)
        coarse, response, words = model.respond(features.clip_tokens, expressions)
        embeddings = features.sam_embeddings
        assert embeddings is not None
        mask, iou, index = model.refine(
            embeddings[expressions.image_index],
            response,
            words,
            expressions.word_mask,
            prompts,
            corrections=Corrections(points, labels),
        )
    about = {"word_mask": expressions.word_mask, "image_index": expressions.image_index}
    told = {"coarse_logits_hr": response, "words": words}
    inputs: dict[str, dict[str, Tensor | None]] = {
        SAM_ENCODER: {"sam_pixels": batch.sam_pixels},
        PROMPTED_CLIP: {"clip_pixels": batch.clip_pixels, "input_ids": expressions.input_ids, **about},
        PROMPTED_DECODER: {
            "sam_embeddings": embeddings,
            **told,
            **about,
            "prompts": prompts,
            "points": points,
            "labels": labels,
        },
    }
    outputs: dict[str, dict[str, Tensor | None]] = {
        SAM_ENCODER: {"sam_embeddings": embeddings},
        PROMPTED_CLIP: {"coarse_logits": coarse, **told},
        PROMPTED_DECODER: {"mask_logits": mask, "predicted_iou": iou, "point_index": index},
    }
    return Question(_arrays(inputs), _arrays(outputs))


def _arrays(tensors: Mapping[str, Mapping[str, Tensor | None]]) -> dict[str, Arrays]:
    return {
        graph: {name: value.numpy() for name, value in given.items() if value is not None}
        for graph, given in tensors.items()
    }


def compare(graph: Graph, run: Run, questions: list[Question]) -> float:
    """The largest difference between a graph and the model, as a share of the largest value of the output it is in.

    Raises:
        ExportError: when it is above TOLERANCE, when a shape or type differs, or a chosen point, or when the graph
            does not run.
    """
    worst = 0.0
    for question in questions:
        try:
            answers = run(question.inputs[graph.name])
        except Exception as error:  # whatever the runtime raised
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise ExportError(f"the exported graph {graph.name} does not run: {reason}") from error
        for name, wanted in question.outputs[graph.name].items():
            got = answers[name]
            if got.shape != wanted.shape or got.dtype != wanted.dtype:
                raise ExportError(
                    f"the exported graph {graph.name} gives {name} as {got.dtype} {got.shape}, the model as "
                    f"{wanted.dtype} {wanted.shape}: nothing was written"
                )
            difference = _difference(got, wanted)
            # Also true of a difference that is no number.
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"the exported graph {graph.name} does not compute what the model does: {name} is off by "
                    f"{difference:.2g} of its largest value, and {TOLERANCE:g} is allowed: nothing was written"
                )
            worst = max(worst, difference)
    return worst


def _difference(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
