"""Other runtimes in torch's place: the same answers, converted once, and clear words where they cannot run."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from promptris.data.refshapes import WorldOptions, make_example
from promptris.engines import choice
from promptris.engines.cache import cache_folder
from promptris.engines.choice import choose_engine, make_image_encoder
from promptris.errors import InputError, MissingExtraError
from promptris.predictor import Predictor, load

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "promptris" / "engines"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_answers_are_torchs(cache, monkeypatch, engine):
    pytest.importorskip(engine)
    scene = make_example(777, 0, WorldOptions())
    texts = [description.text for description in scene.descriptions]
    expected = load("tiny", "cpu").set_image(scene.image).predict(texts)
    told: list[str] = []
    model = load("tiny", "cpu").model
    encoder = make_image_encoder(engine, model, False, told.append)
    assert len(told) == 1 and "once for these weights" in told[0]
    predictor = Predictor(model, image_encoder=encoder)
    monkeypatch.setattr(model.sam, "encode_image", None)  # nothing of torch's is used
    for found, answer in zip(predictor.set_image(scene.image).predict(texts), expected, strict=True):
        np.testing.assert_array_equal(found.mask, answer.mask)
        assert found.score == pytest.approx(answer.score, abs=1e-3) and found.point == answer.point

    answers: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        image = make_example(777, number, WorldOptions()).image
        answers[number] = Predictor(model, image_encoder=encoder).set_image(image).predict(texts[0]).mask

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(answers[0], expected[0].mask)

    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    # What was converted is there for the next one, and for nobody with other weights.
    make_image_encoder(engine, model, False, told.append)
    assert len(told) == 1
    with torch.no_grad():
        model.sam.sam.vision_encoder.neck.conv1.weight.mul_(2)
    make_image_encoder(engine, model, False, told.append)
    assert len(told) == 2
    assert len(list(cache.iterdir())) == 2


def test_half_precision_of_openvino_is_near(cache):
    pytest.importorskip("openvino")
    model = load("tiny", "cpu").model
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    exact, half = (make_image_encoder("openvino", model, half)(pixels) for half in (False, True))
    assert exact.shape == half.shape == (2, 64, 16, 16)
    assert float((exact - half).norm() / exact.norm()) < 0.03


def test_names(monkeypatch):
    assert choose_engine("torch", torch.device("cuda")) == "torch"
    with pytest.raises(InputError, match="there is no engine 'tensorrt': choose from auto, torch"):
        choose_engine("tensorrt", CPU)
    with pytest.raises(InputError, match="runs on the CPU here, not on cuda"):
        choose_engine("openvino", torch.device("cuda"))
    monkeypatch.setattr(choice, "_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"promptris\[cpu\]"):
        choose_engine("openvino", CPU)
    with pytest.raises(InputError, match="no engine"):
        load("tiny", engine="fast")


def test_auto_is_torch_unless_it_lacks_onednn(monkeypatch):
    monkeypatch.setattr(choice, "has_onednn", lambda: True)
    assert choose_engine("auto", CPU) == choose_engine("auto", torch.device("cuda")) == "torch"
    monkeypatch.setattr(choice, "has_onednn", lambda: False)
    monkeypatch.setattr(choice, "_installed", lambda package: package == "onnxruntime")
    assert choose_engine("auto", CPU) == "onnxruntime"
    assert choose_engine("auto", torch.device("mps")) == "torch"
    monkeypatch.setattr(choice, "_installed", lambda package: False)
    assert choose_engine("auto", CPU) == "torch"


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder().parent.parent == tmp_path / "file"
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        load("tiny", "cpu", engine="openvino")
