"""`promptris export`: what it refuses; what it writes is tested with the export itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptris.interfaces import options

Command = Callable[..., Any]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere/at/all"], ["there is no model folder nowhere/at/all"]),
        (["--model", "vit-b"], ["vit-b is a size", "--random-weights"]),
        (["--random-weights"], ["--random-weights needs the size"]),
        (["--model", "vit-x", "--random-weights"], ["no tower preset 'vit-x'"]),
        (["--model", "vit-b", "--random-weights", "--clip", "CLIP"], ["takes no --clip"]),
    ],
)
def test_models_that_are_not_there(
    promptris: Command, kind: str, arguments: list[str], words: list[str]
) -> None:
    promptris("export", kind, "--out", "new", *arguments).refused(*words)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_folders_that_cannot_be_taken(promptris: Command, kind: str) -> None:
    """Seen before the model is loaded: nothing is said about it."""
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    for out, words in (
        ("mine", "mine is not empty: name a new folder"),
        ("mine/thesis.txt", "thesis.txt is a file"),
        ("mine/thesis.txt/export", "cannot write to mine/thesis.txt/export"),
    ):
        run = promptris("export", kind, "--out", out)
        run.refused(words)
        assert len(run.err.splitlines()) == 1
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("opset", [5, 17, 23, 99])
def test_opsets_that_are_not_there(promptris: Command, opset: int) -> None:
    promptris("export", "onnx", "--out", "new", "--opset", opset).refused(f"--opset {opset}", "18 to 22")


def test_a_folder_is_needed(promptris: Command) -> None:
    promptris("export", "onnx").refused("--out")


def test_a_missing_extra_is_named(promptris: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "missing_packages", lambda extra: ["onnx"] if extra == "export" else [])
    promptris("export", "onnx", "--out", "new").refused("onnx is not installed", "promptris[export]")


def test_help_without_a_kind(promptris: Command) -> None:
    run = promptris("export")
    assert run.code == 0
    assert "onnx" in run.out and "torch" in run.out
