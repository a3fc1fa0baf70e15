"""Which method a command runs, and with which towers."""

from __future__ import annotations

import numpy as np
import pytest

from promptris.errors import InputError
from promptris.interfaces.methods import ProposalChoice, choose_method
from promptris.interfaces.models import ModelChoice
from promptris.mask_classification.segmenter import MaskClassifier

IMAGE = np.full((40, 60, 3), 90, np.uint8)


def test_prompts_are_the_usual_way():
    choice = ModelChoice("somewhere")
    assert choose_method("prompts", choice) is choice
    assert choose_method("proposals", choice) == ProposalChoice(choice)
    with pytest.raises(InputError, match=r"'magic'.*prompts, proposals"):
        choose_method("magic", choice)


def test_the_towers_of_a_model(model_folder, capsys):
    choice = choose_method("proposals", ModelChoice(str(model_folder), device="cpu", threshold=0.4))
    classifier = choice.load()
    assert isinstance(classifier, MaskClassifier) and classifier.threshold == choice.threshold == 0.4
    assert choice.shown_name == f"mask classification with {model_folder}" and choice.note is None
    assert str(model_folder) in capsys.readouterr().err
    assert classifier.set_image(IMAGE).predict("a").mask.shape == (40, 60)


def test_towers_of_their_own(small_model, tmp_path, capsys):
    small_model.clip.clip.save_pretrained(tmp_path / "clip")
    small_model.tokenizer.save_pretrained(tmp_path / "clip")
    small_model.sam.sam.save_pretrained(tmp_path / "sam")
    clip, sam = str(tmp_path / "clip"), str(tmp_path / "sam")
    choice = choose_method("proposals", ModelChoice(device="cpu", clip=clip, sam=sam))
    assert choice.load().set_image(IMAGE).predict("a").mask.shape == (40, 60)
    assert f"mask classification with {clip} and {sam} on cpu, float32" in capsys.readouterr().err
    for given, missing in (({"clip": clip}, "--sam"), ({"sam": sam}, "--clip")):
        with pytest.raises(InputError, match=f"{missing} is missing"):
            choose_method("proposals", ModelChoice(device="cpu", **given)).load()


def test_random_weights_keep_their_warning():
    choice = choose_method("proposals", ModelChoice("refshapes", random=True, device="cpu"))
    assert "meaningless" in choice.note and "random weights" in choice.shown_name
    assert isinstance(choice.load(), MaskClassifier)
    with pytest.raises(InputError, match="random-weights"):
        choose_method("proposals", ModelChoice("refshapes", random=True, clip="x", sam="y")).load()
    with pytest.raises(InputError, match="random-weights"):
        choose_method("proposals", ModelChoice(random=True, clip="x", sam="y")).load()
