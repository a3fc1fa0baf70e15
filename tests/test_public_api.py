"""The package's public names: lazy, complete, and free of charge at import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import promptris

NAMES = {
    "Explanation": "promptris.prediction",
    "InputError": "promptris.errors",
    "Prediction": "promptris.prediction",
    "Predictor": "promptris.predictor",
    "PromptRIS": "promptris.modeling.prompt_ris",
    "PromptRISConfig": "promptris.config",
    "PromptRISError": "promptris.errors",
    "load": "promptris.predictor",
    "to_detections": "promptris.prediction",
}


@pytest.mark.parametrize(("name", "home"), NAMES.items())
def test_public_name_is_the_one_at_home(name: str, home: str) -> None:
    assert getattr(promptris, name) is getattr(importlib.import_module(home), name)


def test_nothing_else_is_public() -> None:
    assert set(promptris.__all__) == {*NAMES, "__version__"}
    assert set(promptris.__all__) <= set(dir(promptris))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = promptris.no_such_name


def test_version_is_the_one_in_pyproject() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{promptris.__version__}"\n' in text


def test_import_is_light() -> None:
    code = (
        "import sys, promptris, promptris.errors, promptris.config\n"
        "promptris.PromptRISConfig, promptris.InputError, dir(promptris), promptris.__version__\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_load_takes_a_folder_and_answers(small_model: promptris.PromptRIS, tmp_path: Path) -> None:
    import numpy as np

    small_model.save_pretrained(tmp_path / "model", full=True)
    predictor = promptris.load(tmp_path / "model", device="cpu", dtype="float32")
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    one = predictor.set_image(image).predict("the red circle")
    assert isinstance(one, promptris.Prediction)
    assert one.mask.shape == one.coarse_mask.shape == (20, 30)
    several = predictor.set_image(image).predict(["the red circle", "left star"])
    assert [p.expression for p in several] == ["the red circle", "left star"]
    assert (several[0].mask == one.mask).all()


def test_errors_share_one_base() -> None:
    assert issubclass(promptris.InputError, promptris.PromptRISError)
    with pytest.raises(promptris.PromptRISError, match="nosuchmodel"):
        promptris.load("nosuchmodel")
