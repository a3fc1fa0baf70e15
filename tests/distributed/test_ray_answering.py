"""The questions of a shard, answered in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptris.distributed.answering import answer_questions
from promptris.distributed.identity import model_hash
from promptris.distributed.questions import read_questions
from promptris.ops.run_lengths import rle_to_mask

Lines = Callable[[Path, list[Any]], Path]


@pytest.fixture
def encoded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were encoded at a time."""
    counts: list[int] = []
    encode = type(tiny).encode

    def counting(self: Any, images: Any) -> Any:
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(tiny), "encode", counting)
    return counts


def test_answers_are_the_predictor_s(
    tmp_path: Path, scenes: Any, expected: Any, tiny: Any, write_lines: Lines, encoded: list[int]
) -> None:
    # Every expression in a row of its own, the first ones of all images before the second ones.
    rows = [{"image": image, "expression": texts[n]} for n in range(3) for image, texts in scenes.items()]
    rows[5:5] = [{"image": "gone.png", "expression": "the star"}, {"image": 3, "expression": "the star"}]
    answers = answer_questions(read_questions(write_lines(tmp_path / "q.jsonl", rows)), tiny, 0)
    assert [answer["row"] for answer in answers] == list(range(len(rows)))
    for row, answer in zip(rows, answers, strict=True):
        if row["image"] in ("gone.png", 3):
            assert answer["error"] and answer["score"] is None and answer["counts"] is None
            continue
        prediction = expected[row["image"], row["expression"]]
        assert (answer["image"], answer["expression"], answer["error"]) == (*row.values(), None)
        mask = rle_to_mask({"size": answer["size"], "counts": answer["counts"]})
        # Other expressions in the same pass move the last bits of a probability.
        assert (mask != prediction.mask).sum() <= 2
        assert answer["area"] == mask.sum() and answer["point"] == list(prediction.point)
        assert answer["score"] == pytest.approx(prediction.score, abs=1e-4)
        ys, xs = np.nonzero(mask)
        assert answer["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert sum(encoded) == len(scenes) and max(encoded) > 1
    assert str(tmp_path / "gone.png") in answers[5]["error"]


def test_large_images_are_not_gathered(
    tmp_path: Path, scenes: Any, tiny: Any, write_lines: Lines, encoded: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr("promptris.distributed.answering._PIXELS_AT_ONCE", 128 * 128 + 1)
    rows = [{"image": image, "expressions": texts[:1]} for image, texts in list(scenes.items())[:5]]
    answers = answer_questions(read_questions(write_lines(tmp_path / "q.jsonl", rows)), tiny, 0)
    assert encoded == [2, 2, 1] and all(answer["counts"] for answer in answers)


def test_a_model_is_known_by_its_content(tmp_path: Path, make_model: Any) -> None:
    from promptris import PromptRIS

    model = make_model()
    model.save_pretrained(tmp_path / "model", full=True)
    assert model_hash(PromptRIS.from_pretrained(tmp_path / "model")) == model_hash(model)
    assert model_hash(make_model(prompting={"num_prompts": 4})) != model_hash(model)
    other = make_model()
    assert model_hash(other) == model_hash(model)
    next(p for p in other.parameters() if p.requires_grad).data.view(-1)[0] += 1e-6
    assert model_hash(other) != model_hash(model)
