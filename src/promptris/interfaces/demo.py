"""`promptris demo`: the model on RefShapes scenes that it has never seen, as pictures and numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from promptris.errors import InputError
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.terminal import new_table, percent, print_table, progress, say
from promptris.outputs import make_folder, write_whole

if TYPE_CHECKING:
    from promptris.data.refshapes import Description, Example
    from promptris.prediction import Prediction
from promptris.predictor import Predictor

SPLIT = "demo"
"""Scenes come from the world of this split, which no recipe trains or validates on."""
_TILE = 192


@dataclass(frozen=True)
class Answer:
    """A prediction beside its description; IoUs in [0, 1]."""

    description: Description
    prediction: Prediction
    coarse_iou: float
    final_iou: float

    def record(self) -> dict[str, Any]:
        """Plain numbers for `index.json`."""
        return {
            "expression": self.description.text,
            "kind": self.description.kind,
            "coarse_iou": round(self.coarse_iou, 6),
            "final_iou": round(self.final_iou, 6),
            "score": round(self.prediction.score, 6),
            "point": list(self.prediction.point),
            "bbox": self.prediction.bbox,
        }


def run_demo(choice: ModelChoice, out: Path, scenes: int, seed: int) -> None:
    """Write scene_01.png, scene_02.png ... and index.json to `out`; print the IoU of every expression.

    Raises:
        InputError: for a wrong number of scenes or seed, a model that is not there, or an `out` that cannot
            be written.
    """
    if scenes < 1:
        raise InputError(f"--scenes {scenes} must be at least 1")
    if seed < 0:
        raise InputError(f"--seed {seed} must not be negative")
    make_folder(out)
    predictor = choice.load()

    from promptris.data.refshapes import WorldOptions, make_example
    from promptris.data.refshapes.writer import split_seed

    world, options = split_seed(seed, SPLIT), WorldOptions()
    answers: list[list[Answer]] = []
    files: list[str] = []
    with progress("scenes") as advance:
        for index in range(scenes):
            example = make_example(world, index, options)
            answers.append(answer_scene(predictor, example))
            files.append(f"scene_{index + 1:02d}.png")
            write_whole(out / files[-1], _figure(example, answers[-1]))
            advance(index + 1, scenes)
    everything = [answer for scene in answers for answer in scene]
    means = {
        "coarse_iou": fmean(answer.coarse_iou for answer in everything),
        "final_iou": fmean(answer.final_iou for answer in everything),
    }
    index_content = {
        "model": choice.shown_name,
        "world": {"seed": seed, "split": SPLIT, "level": options.level, "size": options.size},
        "scenes": [
            {"file": file, "answers": [answer.record() for answer in scene]}
            for file, scene in zip(files, answers, strict=True)
        ],
        "mean": {name: round(value, 6) for name, value in means.items()},
    }
    write_whole(out / "index.json", (json.dumps(index_content, indent=2) + "\n").encode())
    _print(answers, means)
    say(
        f"{scenes} RefShapes scenes of level {options.level}, {options.size} px, from seed {seed}, split "
        f"{SPLIT!r}: a world of its own that no recipe trains on; {len(everything)} expressions show how the "
        "model works, promptris evaluate measures how well"
    )
    say(f"pictures and numbers are in {out}")


def answer_scene(predictor: Predictor, example: Example) -> list[Answer]:
    """Predictions for one expression of each kind, about different objects where the scene allows it."""
    from promptris.ops.masks import mask_iou

    chosen = choose(example.descriptions)
    predictions = predictor.set_image(example.image).predict([description.text for description in chosen])
    return [
        Answer(
            description,
            prediction,
            mask_iou(prediction.coarse_mask, example.masks[description.target]),
            mask_iou(prediction.mask, example.masks[description.target]),
        )
        for description, prediction in zip(chosen, predictions, strict=True)
    ]


def choose(descriptions: Sequence[Description]) -> list[Description]:
    """The first description of every kind, of an object not chosen before where there is one."""
    chosen: dict[str, Description] = {}
    for kind in dict.fromkeys(description.kind for description in descriptions):
        of_kind = [description for description in descriptions if description.kind == kind]
        taken = {description.target for description in chosen.values()}
        chosen[kind] = next((d for d in of_kind if d.target not in taken), of_kind[0])
    return [chosen[kind] for kind in sorted(chosen)]


def _figure(example: Example, answers: Sequence[Answer]) -> bytes:
    from promptris.visualize import comparison_row, panel

    rows = [
        comparison_row(
            example.image,
            answer.prediction.coarse_mask,
            answer.prediction.point,
            answer.prediction.mask,
            example.masks[answer.description.target],
            answer.final_iou,
            _TILE,
        )
        for answer in answers
    ]
    titles = [f"{answer.description.text} ({answer.description.kind})" for answer in answers]
    buffer = io.BytesIO()
    panel(rows, titles, _TILE).save(buffer, format="PNG")
    return buffer.getvalue()


def _print(scenes: Sequence[Sequence[Answer]], means: dict[str, float]) -> None:
    table = new_table("scene", "expression", "kind", "coarse IoU %", "final IoU %", words=3)
    for number, answers in enumerate(scenes, start=1):
        for answer in answers:
            description = answer.description
            ious = percent(answer.coarse_iou), percent(answer.final_iou)
            table.add_row(str(number), description.text, description.kind, *ious)
    table.add_section()
    table.add_row("", "mean", "", percent(means["coarse_iou"]), percent(means["final_iou"]))
    print_table(table)
