"""Looking at what may not be there, and at names that no file can have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from promptris.data.paths import file_names, files_in, is_file, is_folder, listed, with_home
from promptris.errors import InputError


def test_only_files_are_listed_and_links_that_lead_to_one(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "c.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "d.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "e.jpg").symlink_to(tmp_path / "e.jpg")  # leads to itself
    assert file_names(tmp_path) == {"a.jpg", "c.jpg"}


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_impossible_names_are_neither_file_nor_folder(tmp_path, name):
    assert not is_file(tmp_path / name)
    assert not is_folder(tmp_path / name)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def closed(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match=f"cannot list the folder {tmp_path}: Permission denied"):
        listed(tmp_path)


def test_files_by_suffix(tmp_path):
    for name in ("b.csv", "A.CSV", "c.jsonl", "d.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.csv").mkdir()
    assert [path.name for path in files_in(tmp_path, ".csv", ".jsonl")] == ["A.CSV", "b.csv", "c.jsonl"]
    assert files_in(tmp_path / "nowhere", ".csv") == []


def test_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home("~/data") == Path("/home/me/data")
    assert with_home("data/~x") == Path("data/~x")
    assert with_home("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")
