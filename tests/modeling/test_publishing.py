"""Models to the hub and back, against a hub on this machine that speaks its protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_hub import READ_TOKEN, TOKEN, FakeHub

import promptris
from promptris.builtin_models import builtin_folder
from promptris.data.refshapes import WorldOptions, make_example
from promptris.errors import InputError, WeightsError
from promptris.modeling.base_weights import load_clip
from promptris.modeling.build import build_from_sources
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.publishing import push_folder
from promptris.modeling.tokenizer import byte_tokenizer

FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub that this process speaks to, with a user who has logged in."""
    from huggingface_hub import constants

    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def tiny():
    return PromptRIS.from_pretrained("tiny")


@pytest.fixture(scope="module")
def towers(make_clip, make_sam, tmp_path_factory):
    """Folders of two CLIPs and a SAM, each in transformers' format."""
    root = tmp_path_factory.mktemp("towers")
    for name, seed in (("clip", 0), ("other_clip", 1)):
        make_clip(seed=seed).save_pretrained(root / name)
        byte_tokenizer(600, 24).save_pretrained(root / name)
    make_sam(seed=0).save_pretrained(root / "sam")
    return root


@pytest.fixture
def tuned_folder(towers, make_model, tmp_path):
    """A model without its towers."""
    model = build_from_sources(towers / "clip", towers / "sam", make_model().config, seed=5)
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def card_head(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---")[1])


# ------------------------------------------------------------------------------------------------- up and down


def test_a_folder_arrives_byte_for_byte_and_answers_alike(hub):
    page = push_folder("tiny", "me/tiny", message="First")
    assert page == f"{hub.address}/me/tiny"
    uploaded = hub.models["me/tiny"]
    assert uploaded.files == contents(builtin_folder("tiny"))
    assert sorted(uploaded.files) == sorted(FILES + TOKENIZER)
    assert uploaded.messages == ["First"] and not uploaded.private

    example = make_example(777, 3, WorldOptions())
    texts = [description.text for description in example.descriptions][:4]
    here, there = (
        promptris.load(name, device="cpu", dtype="float32").set_image(example.image).predict(texts)
        for name in ("tiny", "me/tiny")
    )
    for ours, theirs in zip(here, there, strict=True):
        assert ours.mask.any()
        assert np.array_equal(ours.mask, theirs.mask) and np.array_equal(ours.coarse_mask, theirs.coarse_mask)
        assert ours.point == theirs.point and ours.score == pytest.approx(theirs.score, abs=1e-6)


def test_a_model_goes_up_with_the_card_of_its_folder(hub, tiny):
    tiny.push_to_hub("me/again", full=True, private=True)
    uploaded = hub.models["me/again"]
    assert uploaded.private
    assert uploaded.files["README.md"] == contents(builtin_folder("tiny"))["README.md"]
    state = PromptRIS.from_pretrained("me/again").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in tiny.state_dict().items())


def test_a_model_that_has_changed_since_does_not_keep_the_card(hub, tmp_path):
    model = PromptRIS.from_pretrained("tiny")
    with torch.no_grad():
        model.decoder.bias.add_(1)
    model.push_to_hub("me/changed", full=True)
    card = hub.models["me/changed"].files["README.md"].decode()
    assert "91.4" not in card and "not known here" in card
    # Nor does a folder that such a model is saved in.
    shutil.copytree(builtin_folder("tiny"), tmp_path / "model")
    model.save_pretrained(tmp_path / "model", full=True)
    assert (tmp_path / "model" / "README.md").read_text() == card


def test_learned_parameters_alone_or_with_their_towers(hub, tuned_folder, towers):
    with pytest.warns(UserWarning, match=r"CLIP and SAM will be looked for at .*others must"):
        push_folder(tuned_folder, "me/tuned")
    assert hub.models["me/tuned"].files == contents(tuned_folder)
    push_folder(tuned_folder, "me/full", full=True)
    full = hub.models["me/full"].files
    assert json.loads(full["config.json"])["full"] is True
    assert full["README.md"] == contents(tuned_folder)["README.md"]

    here = PromptRIS.from_pretrained(tuned_folder).state_dict()
    for name in ("me/tuned", "me/full"):
        state = PromptRIS.from_pretrained(name).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in here.items())
    with pytest.raises(WeightsError, match="is not the CLIP that me/tuned was trained with"):
        PromptRIS.from_pretrained("me/tuned", clip=towers / "other_clip")
    with pytest.raises(WeightsError, match="is not the CLIP"):
        push_folder(tuned_folder, "me/wrong", full=True, clip=towers / "other_clip")
    assert "me/wrong" not in hub.models


def test_only_what_makes_a_model_goes_up(hub, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(builtin_folder("tiny"), folder)
    (folder / "README.md").unlink()
    (folder / "notes.md").write_text("private")
    (folder / "optimizer.pt").write_bytes(b"large")
    push_folder(folder, "me/clean", license="mit")
    uploaded = hub.models["me/clean"].files
    assert sorted(uploaded) == sorted(FILES + TOKENIZER)
    card = uploaded["README.md"].decode()
    learned = sum(p.numel() for p in PromptRIS.from_pretrained("tiny").parameters() if p.requires_grad)
    assert f"{learned:,} parameters are learned" in card and "not known here" in card
    assert card_head(uploaded["README.md"])["license"] == "mit"
    assert not (folder / "README.md").exists()


def test_licence_is_set_in_an_existing_card_and_nothing_else(hub):
    push_folder("tiny", "me/licensed", license="cc-by-4.0")
    card = hub.models["me/licensed"].files["README.md"]
    original = contents(builtin_folder("tiny"))["README.md"]
    assert card_head(card) == card_head(original) | {"license": "cc-by-4.0"}
    assert card.decode().split("---\n", 2)[2].strip() == original.decode().split("---\n", 2)[2].strip()


def test_revisions(hub, tiny):
    push_folder("tiny", "me/versions")
    first = hub.models["me/versions"].branches["main"]
    changed = PromptRIS.from_pretrained("tiny")
    with torch.no_grad():
        changed.decoder.bias.add_(1)
    changed.push_to_hub("me/versions", full=True)
    bias = tiny.decoder.bias
    assert torch.equal(PromptRIS.from_pretrained("me/versions").decoder.bias, bias + 1)
    assert torch.equal(promptris.load("me/versions", revision=first, device="cpu").model.decoder.bias, bias)
    with pytest.raises(InputError, match=r"me/versions has no revision 'v9' on the hub"):
        PromptRIS.from_pretrained("me/versions", revision="v9")
    with pytest.raises(InputError, match=r"tiny lies on this machine and has no revision 'v9'"):
        promptris.load("tiny", revision="v9")


def test_what_was_fetched_is_there_when_the_hub_is_not(hub, monkeypatch):
    from huggingface_hub import constants

    push_folder("tiny", "me/kept")
    PromptRIS.from_pretrained("me/kept")
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    PromptRIS.from_pretrained("me/kept")
    assert len(hub.asked) == asked
    with pytest.raises(
        InputError, match="me/other: the hub cannot be reached, and it was not fetched before"
    ):
        PromptRIS.from_pretrained("me/other")


def test_a_folder_needs_no_network(tuned_folder, tmp_path):
    """In a process of its own, where every connection is an error and nothing says that the hub is offline."""
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise RuntimeError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import promptris\n"
        "for name in sys.argv[1:]: promptris.load(name)\n"
    )
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    environment |= {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, "tiny", str(tuned_folder)]
    subprocess.run(command, check=True, timeout=120, env=environment)


# ---------------------------------------------------------------------------------------------- it says why not


def refused(message: str, *arguments, **options) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        push_folder(*arguments, **options)
    assert "\n" not in str(refusal.value)


def test_tokens_and_rights(hub, monkeypatch, tmp_path):
    refused("does not accept this token for me/tiny: log in", "tiny", "me/tiny", token="hf_wrong")
    refused("may not write to me/tiny: it needs the role write", "tiny", "me/tiny", token=READ_TOKEN)
    refused("somebody must be you or an organisation of yours", "tiny", "somebody/tiny")
    assert hub.models == {}
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "nothing"))
    asked = len(hub.asked)
    refused("without a token of the hub: log in", "tiny", "me/tiny")
    assert len(hub.asked) == asked


def test_names(hub):
    for name in ("a b/c", "a/b/c", "", "me/", "me/--x", "../up"):
        refused("is not a name for the hub: give owner/name", "tiny", name)
    assert hub.asked == []


def test_private_is_not_pushed_to_a_public_repository(hub):
    push_folder("tiny", "me/open")
    commits = len(hub.models["me/open"].commits)
    refused("me/open exists and is public, so nothing was sent", "tiny", "me/open", private=True)
    assert len(hub.models["me/open"].commits) == commits


def test_a_private_model_is_not_there_for_strangers(hub, monkeypatch):
    push_folder("tiny", "me/secret", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(
        InputError, match=r"hub model me/secret: it does not exist, or is private: then log in"
    ):
        PromptRIS.from_pretrained("me/secret")


def test_a_card_that_the_hub_refuses(hub, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(builtin_folder("tiny"), folder)
    (folder / "README.md").write_text("---\nlicense: [1]\n---\n# Model\n")
    refused("me/card was not written: Invalid metadata in README.md", folder, "me/card")


def test_no_connection(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refused("while HF_HUB_OFFLINE is set", "tiny", "me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("the hub cannot be reached", "tiny", "me/tiny")


def test_folders_that_are_no_complete_model(hub, tmp_path):
    refused("no model folder .*nowhere", tmp_path / "nowhere", "me/x")
    (tmp_path / "empty").mkdir()
    refused(r"no config\.json", tmp_path / "empty", "me/x")
    shutil.copytree(builtin_folder("tiny"), tmp_path / "run" / "model")
    refused(r"is the folder of a run: give its model, .*run.model", tmp_path / "run", "me/x")
    folder = tmp_path / "run" / "model"
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused("no tokenizer", folder, "me/x")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="damaged"):
        push_folder(folder, "me/x")
    (folder / "model.safetensors").unlink()
    refused(r"no model\.safetensors", folder, "me/x")
    assert hub.asked == []


def test_the_sources_of_a_pushed_model_are_what_they_were(hub, tuned_folder, towers):
    push_folder(tuned_folder, "me/named", full=True)
    sources = json.loads(hub.models["me/named"].files["config.json"])["sources"]
    assert sources["clip"]["sha256"] == load_clip(towers / "clip").sha256
