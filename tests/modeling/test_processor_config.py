"""What a model folder says of its images is what is done with them."""

from __future__ import annotations

import json

import pytest

from promptris.errors import InputError, WeightsError
from promptris.modeling.processor_config import processor_config
from promptris.modeling.prompt_ris import PromptRIS


@pytest.fixture
def folder(make_model, tmp_path):
    make_model(max_words=20).save_pretrained(tmp_path / "model", full=True)
    return tmp_path / "model"


def edit(folder, change):
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_it_says_what_is_done(folder):
    said = json.loads((folder / "preprocessor_config.json").read_text())
    assert said == processor_config(PromptRIS.from_pretrained(folder))
    assert said["clip"]["size"] == {"height": 48, "width": 48} and said["sam"]["size"]["height"] == 64
    assert said["clip"]["resample"] == "bicubic" and said["sam"]["resample"] == "bilinear"
    assert said["max_tokens"] == 20 and said["mask_size"] == 32 and said["mask_threshold"] == 0.5
    # CLIP's and ImageNet's statistics, as the towers were pretrained with.
    assert said["clip"]["image_mean"][0] == 0.48145466 and said["sam"]["image_std"][2] == 0.225


def test_the_numbers_are_those_of_transformers(folder):
    from transformers import CLIPImageProcessor, SamImageProcessor

    said = json.loads((folder / "preprocessor_config.json").read_text())
    for tower, theirs in (("clip", CLIPImageProcessor()), ("sam", SamImageProcessor())):
        assert said[tower]["image_mean"] == pytest.approx(list(theirs.image_mean))
        assert said[tower]["image_std"] == pytest.approx(list(theirs.image_std))
        assert said[tower]["rescale_factor"] == pytest.approx(theirs.rescale_factor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["clip"]["size"].update(height=224), r"says clip\.size\.height = 224.* use 48"),
        (lambda c: c["sam"].update(image_mean=[0.5, 0.5, 0.5]), r"sam\.image_mean = \[0\.5"),
        (lambda c: c.update(mask_threshold=0.35), r"mask_threshold = 0\.35"),
        (lambda c: c.pop("max_tokens"), r"max_tokens = nothing"),
        (lambda c: c["clip"].update(crop=True), r"clip\.crop = True.* use nothing"),
    ],
)
def test_a_difference_is_an_error(folder, change, message):
    edit(folder, change)
    with pytest.raises(WeightsError, match=message):
        PromptRIS.from_pretrained(folder)


def test_damaged(folder):
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config\.json is not valid JSON"):
        PromptRIS.from_pretrained(folder)


def test_folders_from_before_there_was_such_a_file(folder):
    (folder / "preprocessor_config.json").unlink()
    assert PromptRIS.from_pretrained(folder).config.max_words == 20
