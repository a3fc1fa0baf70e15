"""One predictor asked by many threads at once gives each of them its own answer."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from promptris.predictor import Predictor

THREADS, ROUNDS = 6, 2
TEXTS = ["a", "the red circle", "ein blauer Stern links", "x y z", "🐶", "a b c d e f g h i j k", "q", "ring"]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + 3 * n, 50 - n, 3), dtype=np.uint8) for n in range(THREADS)]


def ask(predictor: Predictor, image: np.ndarray, number: int) -> list[tuple]:
    """Answers of several kinds of questions, by number different ones."""
    with_image = predictor.set_image(image)
    point, text = (number % 7, number % 5, number % 2), TEXTS[number % len(TEXTS)]
    answers = [
        *with_image.predict([text, *TEXTS[: number % 3]]),
        with_image.predict(text, points=[point]),
        with_image.predict(text, prompts=("mask",), box=(number, 2, 20, 15)),
        with_image.explain(text).prediction,
    ]
    return [(p.expression, p.mask.tobytes(), p.score, p.coarse_mask.tobytes(), p.point) for p in answers]


@pytest.mark.parametrize("remembered", [0, 3])
def test_threads_get_the_answers_of_one_by_one(make_model, images, remembered: int) -> None:
    model = make_model(seed=7)
    alone = Predictor(model, remembered_images=0)
    expected = [ask(alone, image, number) for number, image in enumerate(images)]
    assert len({answers[0][1] for answers in expected}) == THREADS  # exchanged answers would be seen

    # A new model, so that what it computes when first needed is not there yet.
    shared = Predictor(make_model(seed=7), remembered_images=remembered)
    start = threading.Barrier(THREADS)

    def work(number: int) -> list[list[tuple]]:
        start.wait()
        return [ask(shared, images[number], number) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        for answers, one_by_one in zip(pool.map(work, range(THREADS)), expected, strict=True):
            for answer in answers:
                assert answer == one_by_one


def test_long_expressions_from_many_threads_are_answered_and_told(make_model, images) -> None:
    shared = Predictor(make_model(seed=7)).set_image(images[0])
    texts = [f"{'word ' * 200}{number}" for number in range(THREADS)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(shared.predict, texts))
        assert [answer.expression for answer in answers] == texts
        assert len([warning for warning in told if "tokens" in str(warning.message)]) == THREADS


def test_images_read_at_the_same_time_leave_the_warnings_of_the_process_alone(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters set and restored by threads across each other stayed changed: all warnings were gone for good."""
    from promptris.images import load_image

    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    opened, inside = Image.open, threading.Event()

    def slow(file, formats=None):
        if threading.current_thread().name == "first":
            inside.set()
            threading.Event().wait(0.1)
        else:
            threading.Event().wait(0.2)
        return opened(file, formats=formats)

    monkeypatch.setattr(Image, "open", slow)
    before = list(warnings.filters)
    first = threading.Thread(target=load_image, args=[path], name="first")
    second = threading.Thread(target=load_image, args=[path])
    first.start()
    assert inside.wait(5)
    second.start()
    first.join()
    second.join()
    assert warnings.filters == before
