"""The folder of an export."""

from __future__ import annotations

import copy
import stat
from pathlib import Path

import pytest
import torch

from promptris.errors import InputError
from promptris.export.folder import new_folder, weights_hash


def test_it_appears_when_it_is_complete(tmp_path: Path):
    out = tmp_path / "deep" / "export"
    with new_folder(out) as folder:
        (folder / "graph").write_text("1")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["graph"]
    assert [path.name for path in out.parent.iterdir()] == ["export"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_an_empty_folder_is_taken(tmp_path: Path):
    with new_folder(tmp_path) as folder:
        (folder / "graph").write_text("1")
    assert (tmp_path / "graph").read_text() == "1"


def test_a_failure_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyError), new_folder(tmp_path / "export") as folder:
        (folder / "graph").write_text("1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path):
    (tmp_path / "mine").write_text("years of work")
    with pytest.raises(InputError, match="is not empty: name a new folder"), new_folder(tmp_path):
        pass
    with pytest.raises(InputError, match="mine is a file"), new_folder(tmp_path / "mine"):
        pass
    with pytest.raises(InputError, match="cannot write to"), new_folder(tmp_path / "mine" / "export"):
        pass
    assert (tmp_path / "mine").read_text() == "years of work"


def test_the_hash_tells_any_weight(small_model):
    changed = copy.deepcopy(small_model)
    assert weights_hash(changed) == weights_hash(small_model)
    with torch.no_grad():
        next(changed.text_prompter.parameters()).view(-1)[0] += 1
    assert weights_hash(changed) != weights_hash(small_model)
