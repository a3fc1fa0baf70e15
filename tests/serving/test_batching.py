"""Questions that arrive together: the same answers as one by one, and no one suffers from another."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from promptris.errors import InputError
from promptris.modeling.build import build_random
from promptris.predictor import Guidance, Predictor
from promptris.serving import batching
from promptris.serving.batching import Batcher, DeadlinePassedError, Question, QueueFullError
from promptris.serving.uploads import prepare_upload


@pytest.fixture
def prepared(predictor, scenes):
    return [prepare_upload(scene.png, predictor, 10**7, 10**7) for scene in scenes]


@pytest.fixture
def gate(predictor, monkeypatch):
    """The model answers nothing before the gate is opened; encodings are counted by images."""
    opened, encoded = threading.Event(), []
    encode = predictor.encode_prepared

    def wait(images):
        assert opened.wait(20)
        encoded.append(len(images.clip_pixels))
        return encode(images)

    monkeypatch.setattr(predictor, "encode_prepared", wait)
    opened.encoded = encoded
    yield opened
    opened.set()


@pytest.fixture
def batcher(predictor):
    sizes = []
    made = Batcher(predictor, observe=sizes.append)
    made.sizes = sizes
    yield made
    made.close()


def soon(seconds=20.0):
    return time.monotonic() + seconds


def same(got, own):
    assert got.expression == own.expression and got.score == pytest.approx(own.score, abs=1e-4)
    assert (got.mask != own.mask).sum() <= 2 and (got.coarse_mask != own.coarse_mask).sum() <= 2
    assert got.point == own.point


def test_together_as_one_by_one(batcher, gate, predictor, scenes, prepared):
    first = batcher.submit(Question(prepared[0]), soon())
    time.sleep(0.2)  # the thread has taken it, and waits at the gate
    questions = [
        Question(prepared[number % 4], scenes[number % 4].expressions[: 1 + number % 3], guidance)
        for number, guidance in enumerate(
            [Guidance(), Guidance(), Guidance(("text",)), Guidance(points=((64.0, 64.0, 1),)), Guidance()] * 2
        )
    ]
    futures = [batcher.submit(question, soon()) for question in questions]
    assert batcher.waiting == 10 and batcher.expected_wait == 0
    gate.set()
    answers = [future.result(20) for future in futures]
    # Ten questions, batches of powers of two, four images: each is encoded once in a batch.
    assert batcher.sizes == [1, 8, 2] and gate.encoded == [1, 4, 2] and batcher.expected_wait > 0
    for question, answer, number in zip(questions, answers, range(10), strict=True):
        alone = predictor.set_image(scenes[number % 4].pixels)
        guidance = question.guidance
        own = alone.predict(list(question.expressions), prompts=guidance.prompts, points=guidance.points)
        for got, expected in zip(answer.predictions, own, strict=True):
            same(got, expected)
    gate.encoded.clear()
    again = batcher.submit(Question(first.result().image, scenes[0].expressions[:1]), soon()).result(20)
    same(again.predictions[0], answers[0].predictions[0])
    assert not gate.encoded


def test_an_encoded_image_holds_no_others(batcher, gate, prepared):
    futures = [batcher.submit(Question(image), soon()) for image in prepared]
    gate.set()
    for future in futures:
        features = future.result(20).image.features
        assert features.clip_tokens.untyped_storage().nbytes() == features.clip_tokens.nbytes
        assert features.sam_embeddings.untyped_storage().nbytes() == features.sam_embeddings.nbytes


def test_who_is_to_blame_fails_alone(unchecked, batcher, gate, scenes, prepared):
    batcher.submit(Question(prepared[0]), soon())
    time.sleep(0.2)
    good = Question(prepared[0], scenes[0].expressions[:1])
    outside = Question(prepared[1], scenes[1].expressions[:1], Guidance(points=((500.0, 5.0, 1),)))
    unknown = Question(prepared[2], scenes[2].expressions[:1], Guidance(("nonsense",)))
    futures = [batcher.submit(question, soon()) for question in (good, outside, unknown, good)]
    gate.set()
    assert len(futures[0].result(20).predictions) == len(futures[3].result(20).predictions) == 1
    with pytest.raises(InputError, match="500"):
        futures[1].result(20)
    with pytest.raises(InputError, match="nonsense"):
        futures[2].result(20)


def test_a_failing_batch_is_answered_one_by_one(batcher, gate, predictor, scenes, prepared, monkeypatch):
    batcher.submit(Question(prepared[0]), soon())
    time.sleep(0.2)
    answer = predictor.answer

    def no_memory_for_many(features, sizes, texts, index, guidance):
        if len(sizes) > 1:
            raise RuntimeError("out of memory")
        return answer(features, sizes, texts, index, guidance)

    monkeypatch.setattr(predictor, "answer", no_memory_for_many)
    futures = [
        batcher.submit(Question(p, s.expressions[:2]), soon()) for p, s in zip(prepared, scenes, strict=True)
    ]
    gate.set()
    assert all(len(future.result(20).predictions) == 2 for future in futures)


def test_a_full_queue_refuses(predictor, gate, prepared):
    batcher = Batcher(predictor, waiting=2)
    batcher.submit(Question(prepared[0]), soon())
    time.sleep(0.2)
    kept = [batcher.submit(Question(prepared[0]), soon()) for _ in range(2)]
    with pytest.raises(QueueFullError):
        batcher.submit(Question(prepared[0]), soon())
    gate.set()
    assert all(future.result(20).predictions == [] for future in kept)
    batcher.close()


def test_late_and_unwanted_questions_cost_nothing(batcher, gate, prepared):
    batcher.submit(Question(prepared[0]), soon())
    time.sleep(0.2)
    late = batcher.submit(Question(prepared[1]), soon(0.1))
    unwanted = batcher.submit(Question(prepared[2]), soon())
    assert unwanted.cancel()
    last = batcher.submit(Question(prepared[3]), soon())
    time.sleep(0.2)
    gate.set()
    last.result(20)
    with pytest.raises(DeadlinePassedError):
        late.result(0)
    assert gate.encoded == [1, 1]


def test_batches_are_bounded_by_requests_and_by_masks(predictor, gate, scenes, prepared, monkeypatch):
    sizes = []
    batcher = Batcher(predictor, together=4, observe=sizes.append)
    batcher.submit(Question(prepared[0]), soon())
    time.sleep(0.2)
    questions = [Question(prepared[0], scenes[0].expressions[:2])] * 5
    futures = [batcher.submit(question, soon()) for question in questions]
    gate.set()
    assert all(len(future.result(20).predictions) == 2 for future in futures)
    assert sizes == [1, 4, 1]
    monkeypatch.setattr(batching, "MASK_PIXELS", 5 * 128 * 128)
    gate.clear()
    futures = [batcher.submit(question, soon()) for question in questions]
    gate.set()
    assert all(len(future.result(20).predictions) == 2 for future in futures)
    assert max(sizes[3:]) <= 2
    batcher.close()


def test_closing_answers_what_waits_and_may_be_followed_by_more(batcher, gate, prepared):
    futures = [batcher.submit(Question(image), soon()) for image in prepared]
    gate.set()
    batcher.close()
    assert all(future.done() for future in futures)
    assert batcher.submit(Question(prepared[0]), soon()).result(20).image.size == (128, 128)


def test_large_models_answer_one_by_one_on_a_cpu(predictor, monkeypatch):
    assert batching.usual_batch(predictor) == 16
    monkeypatch.setattr(batching, "LARGE_IMAGE", 128)
    assert batching.usual_batch(predictor) == 1


def test_a_model_without_sam_is_served_too(scenes):
    predictor = Predictor(build_random("refshapes", seed=0), with_sam=False)
    batcher = Batcher(predictor)
    image = prepare_upload(scenes[0].png, predictor, 10**7, 10**7)
    answer = batcher.submit(Question(image, ("the star",)), soon()).result(20)
    assert np.array_equal(
        answer.predictions[0].mask, predictor.set_image(scenes[0].pixels).predict("the star").mask
    )
    with pytest.raises(InputError, match="without SAM"):
        batcher.submit(Question(image, ("the star",), Guidance(box=(0, 0, 9, 9))), soon()).result(20)
    batcher.close()
