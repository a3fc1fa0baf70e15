"""What a visitor has open, without a browser."""

from __future__ import annotations

import json

import numpy as np
import pytest

from promptris.data.refshapes import Example
from promptris.errors import InputError
from promptris.interfaces.web.markup import COLORS, answer_label, downloads, stage
from promptris.interfaces.web.scenes import built_in_scenes
from promptris.interfaces.web.session import (
    MAX_CHARACTERS,
    MAX_EXPRESSIONS,
    MAX_HISTORY,
    MAX_MARKS,
    Session,
)
from promptris.predictor import Predictor

ALL = ["mask", "point", "text"]


@pytest.fixture(scope="module")
def texts(scene: Example) -> list[str]:
    return list(dict.fromkeys(d.text for d in scene.descriptions))[:2]


@pytest.fixture(scope="module")
def asked(tiny: Predictor, scene: Example, texts: list[str]) -> Session:
    return Session().opened(tiny, scene.image, "shapes.png").asked(texts, ALL)


def test_answers_are_the_predictor_s(
    tiny: Predictor, scene: Example, asked: Session, texts: list[str], opened_mask
):
    expected = tiny.set_image(scene.image).predict(texts)
    for answer, prediction in zip(asked.answers, expected, strict=True):
        assert np.array_equal(opened_mask(answer.mask_png), prediction.mask)
        assert answer.facts["segmentation"] == prediction.to_rle()
        assert answer.facts["score"] == pytest.approx(prediction.score, abs=1e-4)
        assert answer.prompts == ("mask", "point", "text")


def test_only_the_chosen_answer_is_corrected(
    tiny: Predictor, scene: Example, asked: Session, texts: list[str], opened_mask
):
    click, box = (70, 70, 0), (10, 10, 60, 60)
    session = asked.corrected(1, click, ALL).corrected(1, box, ALL)
    expected = tiny.set_image(scene.image).predict(texts[1], points=[click], box=box)
    assert np.array_equal(opened_mask(session.answers[1].mask_png), expected.mask)
    assert session.answers[0] is asked.answers[0]
    assert asked.answers[1].marks == ()  # the old session is as it was


def test_corrections_are_taken_back_in_turn(asked: Session):
    session = asked.corrected(0, (70, 70, 1), ALL).corrected(0, (10, 10, 60, 60), ALL)
    assert session.taken_back(0, ALL).answers[0].marks == ((70, 70, 1),)
    assert session.taken_back(0, ALL, all_marks=True).answers[0].mask_png == asked.answers[0].mask_png
    other = session.corrected(0, (0, 0, 20, 20), ALL)
    assert other.answers[0].marks == ((70, 70, 1), (0, 0, 20, 20))  # there is one box


def test_corrections_stay_when_the_same_is_asked_again(asked: Session, texts: list[str]):
    session = asked.corrected(0, (70, 70, 1), ALL).asked([*texts, "the red circle"], ["point"])
    assert [answer.marks for answer in session.answers] == [((70, 70, 1),), (), ()]
    assert {answer.prompts for answer in session.answers} == {("point",)}


def test_another_picture_begins_anew_but_for_the_history(tiny: Predictor, asked: Session, texts: list[str]):
    session = asked.opened(tiny, built_in_scenes()[0].pixels, "scene 1.png", built_in=True)
    assert (session.answers, session.history) == ((), tuple(texts))


def test_the_history_is_short_and_the_latest_comes_first(asked: Session):
    session = asked
    for number in range(MAX_HISTORY):
        session = session.asked([f"star {number}"], ALL)
    session = session.asked(["star 3"], ALL)
    assert session.history[0] == "star 3"
    assert len(session.history) == len(set(session.history)) == MAX_HISTORY


@pytest.mark.parametrize(
    ("lines", "prompts", "words"),
    [
        ([], ALL, "no expression is given"),
        ([" "], ALL, "is empty"),
        ([f"star {n}" for n in range(MAX_EXPRESSIONS + 1)], ALL, "at most 8 at once"),
        (["word " * 10_000], ALL, f"say it in at most {MAX_CHARACTERS:,}"),
        (["the star"], [], "keep at least one"),
        (["the star"], ["colour"], "unknown prompt 'colour'"),
    ],
)
def test_what_cannot_be_asked_is_told(asked: Session, lines: list[str], prompts: list[str], words: str):
    with pytest.raises(InputError, match=words):
        asked.asked(lines, prompts)


def test_marks_are_checked(asked: Session):
    with pytest.raises(InputError, match="inside the 128 x 128 image"):
        asked.corrected(0, (128, 5, 1), ALL)
    with pytest.raises(InputError, match="nothing to correct"):
        Session().corrected(0, (5, 5, 1), ALL)
    with pytest.raises(InputError, match="no picture is open"):
        Session().asked(["the star"], ALL)


def test_marks_are_bounded(asked: Session):
    from dataclasses import replace

    full = replace(asked, answers=(replace(asked.answers[0], marks=((1, 1, 1),) * MAX_MARKS),))
    with pytest.raises(InputError, match="32 corrections already"):
        full.corrected(0, (5, 5, 1), ALL)


def test_a_long_expression_says_that_it_is_cut(asked: Session):
    session = asked.asked(["the red circle " + "and the star " * 20], ALL)
    assert "the model reads its first 22 tokens" in answer_label(session.answers[0])
    assert "tokens" not in answer_label(asked.answers[0])


def test_photographs_are_kept_no_larger_than_shown(tiny: Predictor, opened_mask):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2400, 3), dtype=np.uint8)
    session = Session().opened(tiny, noise, "noise.png").asked(["the star"], ALL)
    assert session.picture is not None
    assert session.picture.shown.size == (1024, 640)
    assert session.answers[0].shown_mask.shape == (640, 1024)
    assert opened_mask(session.answers[0].mask_png).shape == (1500, 2400)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 2)])
def test_odd_sizes_are_answered(tiny: Predictor, size: tuple[int, int], opened_mask):
    session = Session().opened(tiny, np.zeros((*size, 3), np.uint8), "thin.png").asked(["the star"], ALL)
    assert opened_mask(session.answers[0].mask_png).shape == size
    assert 'data-live="1"' in stage(session, 0, True)


def test_a_model_without_sam_takes_no_prompts_and_no_corrections(small_model, scene: Example):
    predictor = Predictor(small_model, with_sam=False)
    session = Session().opened(predictor, scene.image, "shapes.png").asked(["the star"], None)
    assert session.answers[0].prompts == ()
    assert 'data-live="0"' in stage(session, 0, can_correct=False)


def test_every_expression_has_a_colour_and_the_list_of_answers_the_same_ones():
    from pathlib import Path

    from promptris.interfaces import web

    assert len(set(COLORS)) == MAX_EXPRESSIONS
    looks = (Path(web.__file__).parent / "page.css").read_text()
    for number, (red, green, blue) in enumerate(COLORS, start=1):
        wanted = f"#answers label:nth-child({number}) {{ border-left-color: rgb({red}, {green}, {blue}); }}"
        assert wanted in " ".join(looks.split())


def test_text_is_never_markup(asked: Session):
    evil = '<img src=x onerror="alert(1)">'
    session = asked.asked([evil], ALL)
    for page in (stage(session, 0, True), downloads(session, 0, evil)):
        assert evil not in page


def test_scenes_are_always_the_same_and_small():
    scenes = built_in_scenes()
    assert len(scenes) == 6
    assert all(len(scene.expressions) >= 2 and scene.pixels.shape == (128, 128, 3) for scene in scenes)
    assert json.dumps([scene.expressions for scene in scenes]) == json.dumps(
        [scene.expressions for scene in built_in_scenes.__wrapped__()]
    )
