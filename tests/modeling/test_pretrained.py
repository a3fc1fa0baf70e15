"""Saving and loading: bit-equal models back, and every kind of wrong folder named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptris.errors import InputError, WeightsError
from promptris.modeling.base_weights import load_clip, load_sam
from promptris.modeling.build import build_from_sources
from promptris.modeling.pretrained import full_state, tuned_parameters
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.tokenizer import byte_tokenizer
from promptris.structures import ExpressionBatch, ImageBatch

IMAGES = ImageBatch(
    torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)),
    torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
)
EXPRESSIONS = ExpressionBatch(
    torch.tensor([[598, 5, 6, 599]]), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
)


@torch.no_grad()
def answer(model):
    return model(model.encode_image(IMAGES), EXPRESSIONS)


def assert_same_model(a, b):
    """Weights equal bit by bit; answers but for rounding, which follows where in memory the weights lie."""
    state = b.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in a.state_dict().items())
    assert a.config == b.config
    ours, theirs = answer(a), answer(b)
    for name in ("coarse_logits", "mask_logits", "predicted_iou"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def towers(make_clip, make_sam, tmp_path_factory):
    """Folders of two CLIPs and a SAM, each in transformers' format."""
    root = tmp_path_factory.mktemp("towers")
    for name, seed in (("clip", 0), ("other_clip", 1)):
        make_clip(seed=seed).save_pretrained(root / name)
        byte_tokenizer(600, 24).save_pretrained(root / name)
    make_sam(seed=0).save_pretrained(root / "sam")
    return root


@pytest.fixture(scope="module")
def tuned(towers, make_model):
    """A model around the saved towers whose learned parts are not those of any seed."""
    model = make_model(
        max_words=20, prompting={"direction": "l2v"}, decoder={"dim": 24, "position_signal": True}
    )
    again = build_from_sources(towers / "clip", towers / "sam", model.config)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            if name in learned:
                parameter.copy_(learned[name])
    return again


@pytest.fixture
def tuned_folder(tuned, tmp_path):
    tuned.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def full_folder(tuned, tmp_path):
    tuned.save_pretrained(tmp_path / "full", full=True)
    return tmp_path / "full"


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# --------------------------------------------------------------------------------------------------- it works


def test_tuned_parameters_and_named_towers_give_the_same_model(tuned, tuned_folder):
    again = PromptRIS.from_pretrained(tuned_folder)
    assert_same_model(tuned, again)
    assert again.sources == tuned.sources
    assert again.processor().context_length == 20


def test_tuned_folder_holds_the_trainable_parameters_and_nothing_else(tuned, tuned_folder):
    stored = load_file(tuned_folder / "model.safetensors")
    assert set(stored) == {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert set(stored) == set(tuned_parameters(tuned))
    config = json.loads((tuned_folder / "config.json").read_text())
    assert config["format"] == "promptris" and config["format_version"] == 1 and config["full"] is False
    assert config["sources"]["clip"]["sha256"] == tuned.sources["clip"]["sha256"]
    assert sorted(path.name for path in tuned_folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_full_folder_needs_nothing_else(tuned, full_folder, monkeypatch):
    from promptris.modeling import pretrained

    monkeypatch.setattr(pretrained, "load_clip", None)
    monkeypatch.setattr(pretrained, "load_sam", None)
    assert_same_model(tuned, PromptRIS.from_pretrained(full_folder))


def test_a_model_of_random_towers_is_saved_in_full(make_model, tmp_path):
    model = make_model(seed=3)
    model.save_pretrained(tmp_path / "model", full=True)
    assert_same_model(model, PromptRIS.from_pretrained(str(tmp_path / "model")))


def test_small_built_in_sizes_survive_with_their_tokenizer(small_model, tmp_path):
    """Tied position matrix, start at CLIP's map, a vocabulary of its own."""
    small_model.save_pretrained(tmp_path / "model", full=True)
    again = PromptRIS.from_pretrained(tmp_path / "model")
    ours = small_model.processor().expressions(["the Red circle, left"])
    theirs = again.processor().expressions(["the Red circle, left"])
    assert torch.equal(ours.input_ids, theirs.input_ids)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in small_model.state_dict().items())
    assert (
        again.sam.sam.shared_image_embedding.positional_embedding
        is again.sam.sam.prompt_encoder.shared_embedding.positional_embedding
    )


def test_shared_position_matrix_is_stored_once(tuned, full_folder):
    stored = load_file(full_folder / "model.safetensors")
    assert len([name for name in stored if name.endswith("positional_embedding")]) == 1
    assert set(stored) == set(full_state(tuned))


def test_half_precision_storage(tuned, tmp_path):
    tuned.save_pretrained(tmp_path / "half", full=True, dtype=torch.float16)
    tuned.save_pretrained(tmp_path / "whole", full=True)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("half", "whole")]
    assert sizes[0] < 0.65 * sizes[1]
    again = PromptRIS.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    state = again.state_dict()
    for name, value in tuned.state_dict().items():
        assert torch.equal(state[name], value.half().float()), name
    assert (answer(again).mask_logits - answer(tuned).mask_logits).abs().max() < 0.05


def test_loaded_model_is_ready_to_predict_and_to_train(tuned_folder):
    model = PromptRIS.from_pretrained(tuned_folder)
    assert not model.training
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(load_file(tuned_folder / "model.safetensors"))


def test_moved_towers_are_found_by_argument(tuned, tuned_folder, towers, tmp_path):
    for name in ("clip", "sam"):
        shutil.copytree(towers / name, tmp_path / "moved" / name)
    edit_config(
        tuned_folder, lambda c: [c["sources"][t].update(source=f"/gone/{t}") for t in ("clip", "sam")]
    )
    with pytest.raises(InputError, match="/gone/clip"):
        PromptRIS.from_pretrained(tuned_folder)
    again = PromptRIS.from_pretrained(tuned_folder, clip=tmp_path / "moved/clip", sam=tmp_path / "moved/sam")
    assert_same_model(tuned, again)
    assert again.sources["clip"]["source"] == str(tmp_path / "moved/clip")


def test_saving_again_replaces_the_files(tuned, make_model, tmp_path):
    tuned.save_pretrained(tmp_path / "model", full=True)
    other = make_model(seed=5)
    other.save_pretrained(tmp_path / "model", full=True)
    assert_same_model(other, PromptRIS.from_pretrained(tmp_path / "model"))
    assert not list(tmp_path.glob("model/*.partial"))


# ---------------------------------------------------------------------------------------------- it says why not


def test_other_towers_are_refused(tuned_folder, towers):
    with pytest.raises(WeightsError, match=r"other_clip is not the CLIP .*content hash"):
        PromptRIS.from_pretrained(tuned_folder, clip=towers / "other_clip")
    edit_config(tuned_folder, lambda c: c["sources"]["sam"].update(sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"sam is not the SAM .*000000000000"):
        PromptRIS.from_pretrained(tuned_folder)


def test_towers_of_unknown_origin_are_not_saved_by_name(make_model, tmp_path):
    with pytest.raises(InputError, match="full=True"):
        make_model().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["tuned_folder", "full_folder"])
def test_missing_extra_and_misshapen_weights_are_named(kind, request):
    folder = request.getfixturevalue(kind)
    untouched = load_file(folder / "model.safetensors")

    edit_weights(folder, lambda t: t.pop("decoder.bias"))
    with pytest.raises(WeightsError, match=r"1 weights are missing.*decoder\.bias"):
        PromptRIS.from_pretrained(folder)

    save_file({**untouched, "decoder.extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 are unknown.*decoder\.extra"):
        PromptRIS.from_pretrained(folder)

    wrong = {**untouched, "decoder.image_proj.bias": torch.zeros(5)}
    save_file(wrong, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"decoder\.image_proj\.bias has shape \(5,\).*\(24,\)"):
        PromptRIS.from_pretrained(folder)


def test_damaged_weights(full_folder):
    weights = full_folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not weights at all", b""):
        weights.write_bytes(damaged)
        with pytest.raises(WeightsError, match="safetensors"):
            PromptRIS.from_pretrained(full_folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        PromptRIS.from_pretrained(full_folder)


@pytest.mark.parametrize(
    "text", ["{", "", "[1, 2]", '"promptris"', '{"format": "other"}', "\x00\x01", '{"model_type": "clip"}']
)
def test_damaged_or_foreign_config(full_folder, text):
    (full_folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        PromptRIS.from_pretrained(full_folder)


@pytest.mark.parametrize("key", ["format_version", "full", "model", "clip_config", "sam_config", "sources"])
def test_config_without_a_key_names_it(full_folder, key):
    edit_config(full_folder, lambda c: c.pop(key))
    with pytest.raises(InputError, match=key):
        PromptRIS.from_pretrained(full_folder)


def test_tuned_config_without_the_origin_of_its_towers(tuned_folder):
    edit_config(tuned_folder, lambda c: c["sources"].pop("sam"))
    with pytest.raises(InputError, match="sam"):
        PromptRIS.from_pretrained(tuned_folder)


def test_config_of_a_newer_format(full_folder):
    edit_config(full_folder, lambda c: c.update(format_version=2))
    with pytest.raises(InputError, match="newer"):
        PromptRIS.from_pretrained(full_folder)


def test_unknown_setting_in_the_config(full_folder):
    edit_config(full_folder, lambda c: c["model"]["decoder"].update(depth=3))
    with pytest.raises(InputError, match="depth"):
        PromptRIS.from_pretrained(full_folder)


def test_no_such_model(tmp_path, towers):
    with pytest.raises(InputError, match="nowhere"):
        PromptRIS.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no model folder just_a_word"):
        PromptRIS.from_pretrained("just_a_word")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        PromptRIS.from_pretrained(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        PromptRIS.from_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match=r"not a promptris model"):
        PromptRIS.from_pretrained(towers / "clip")


def test_unknown_hub_id_without_a_connection():
    # The test session sets HF_HUB_OFFLINE.
    with pytest.raises(InputError, match="nobody/has-this-model"):
        PromptRIS.from_pretrained("nobody/has-this-model")
    with pytest.raises(InputError, match="not a/valid id!"):
        PromptRIS.from_pretrained("not a/valid id!")


def test_a_folder_without_tokenizer_says_so(full_folder):
    for path in full_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        PromptRIS.from_pretrained(full_folder)


def test_towers_of_a_saved_model_are_sources_for_others(small_model, tmp_path):
    """A folder that holds its towers, or a built-in name, gives CLIP and SAM bit by bit."""
    folder = tmp_path / "model"
    small_model.save_pretrained(folder, full=True)
    built_in = PromptRIS.from_pretrained("tiny")
    for source, model in ((folder, small_model), ("tiny", built_in)):
        for load, tower in ((load_clip, model.clip.clip), (load_sam, model.sam.sam)):
            loaded, expected = load(source).module.state_dict(), tower.state_dict()
            assert loaded.keys() == expected.keys()
            assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_model_without_its_towers_is_no_source_of_them(small_model, tmp_path):
    small_model.save_pretrained(tmp_path, full=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "full": False}))
    with pytest.raises(InputError, match="model without its towers"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("sam.sam.")))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="does not hold exactly the SAM"):
        load_sam(tmp_path)
