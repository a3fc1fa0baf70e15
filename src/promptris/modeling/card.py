"""Model cards: the head that the hub reads, and the card of a model without a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptris.config import PromptRISConfig

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"
TASK = "image-segmentation"
TAGS = ("referring-image-segmentation", "prompt-ris", "clip", "sam")
ALWAYS_ANSWERS = (
    "It always answers with one mask, also where the sentence means nothing in the image, or several things."
)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def card_head(
    sources: Mapping[str, Mapping[str, str]],
    license: str | None = None,
    name: str | None = None,
    results: Sequence[EvalResult] | None = None,
) -> str:
    """The YAML at the top of a card, its lines of dashes included.

    Args:
        sources: of the towers, as `PromptRIS.sources`; those that are hub ids become base models.
        license: as the hub spells it, or None when that is for somebody else to say.
        name: of the model, where there are results.
        results: what was measured, if anything.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="promptris",
        pipeline_tag=TASK,
        tags=list(TAGS),
        license=license,
        base_model=[source["source"] for source in sources.values() if _is_on_the_hub(source)] or None,
        model_name=name if results else None,
        eval_results=list(results) if results else None,
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def with_license(card: str, license: str) -> str:
    """The card with this licence in its head; a card without a head gets one."""
    from huggingface_hub import ModelCard

    changed = ModelCard(card if card.startswith("---") else card_head({}) + card, ignore_metadata_errors=True)
    changed.data["license"] = license
    return str(changed)


def short_card(config: Mapping[str, Any], learned: int) -> str:
    """The card of a model of which no training run has told anything.

    Args:
        config: as `save_pretrained` writes it.
        learned: how many parameters training changes.
    """
    model = PromptRISConfig.from_dict(config["model"])
    clip_size, sam_size = model.clip_image_size, config["sam_config"]["vision_config"]["image_size"]
    lines = [
        card_head(config["sources"]) + "# Prompt-RIS model",
        "An image and a sentence in, the mask of the one thing the sentence means out: CLIP and SAM, bridged by "
        "learned prompts.",
        "**What it was trained on and what it scores is not known here:** this card was written without a training "
        "run. Measure it before you rely on it:",
        "```\npromptris evaluate --model FOLDER --dataset NAME --split val --data-root DATA --out out/eval\n```",
        usage(),
        "## What it is",
        bullets(
            [
                *(_tower(name, config["sources"].get(name), config["full"]) for name in ("clip", "sam")),
                f"{learned:,} parameters are learned prompts and decoders.",
                f"CLIP sees {clip_size} pixels, SAM {sam_size}; prompting: {model.prompting.direction}, "
                f"{model.prompting.num_prompts} prompts a layer; the answer is "
                + ("SAM's mask." if model.sam_prompts.refine else "CLIP's coarse mask, without SAM."),
            ]
        ),
        "## Where it ends",
        bullets([ALWAYS_ANSWERS]),
    ]
    return "\n\n".join(lines) + "\n"


def usage() -> str:
    """How to use a model folder, in Markdown."""
    return (
        "```python\nimport promptris\n\n"
        'predictor = promptris.load("path/to/this/folder")\n'
        'predictor.set_image("scene.png")\n'
        'predictor.predict("the red circle").mask  # bool [H, W]\n```'
    )


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def _tower(name: str, source: Mapping[str, str] | None, inside: bool) -> str:
    where = "its weights are in this folder" if inside else "its weights are not in this folder"
    if source is None:
        return f"{name.upper()}: of unknown origin; {where}."
    origin = f"{source['source']} ({source['format']}), content hash {source['sha256'][:12]}"
    return f"{name.upper()}: {origin}; {where}."


def _is_on_the_hub(source: Mapping[str, str]) -> bool:
    named = source["source"]
    is_id = _HUB_ID.fullmatch(named) and not Path(named).exists()
    return bool(is_id) and source["format"] == "transformers"
