"""The command line in-process, with a saved random model and small inputs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptris.interfaces.cli import main


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaints(self) -> list[str]:
        """The sentences on stderr, without the line that names the model."""
        lines = self.err.splitlines()
        assert all(line.startswith("promptris: ") for line in lines), self.err
        return [line for line in lines if not line.endswith("by torch")]

    def refused(self, *words: str) -> None:
        """Check for wrong use: exit code 2, nothing on stdout, one sentence that holds the words."""
        assert (self.code, self.out) == (2, ""), self
        assert "Traceback" not in self.err
        (sentence,) = self.complaints
        for word in words:
            assert word in sentence


@pytest.fixture
def promptris(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Run]:
    """Runs a command in an empty working folder."""
    monkeypatch.delenv("PROMPTRIS_DEBUG", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: Any, stdin: str | bytes = b"") -> Run:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model_folder(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, saved."""
    folder = tmp_path_factory.mktemp("model") / "random"
    small_model.save_pretrained(folder, full=True)
    return folder


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefShapes data set of three scenes."""
    from promptris.data.refshapes import WorldOptions
    from promptris.data.refshapes.writer import write_refshapes

    folder = tmp_path_factory.mktemp("shapes")
    write_refshapes(folder, {"train": 1, "val": 2}, seed=3, options=WorldOptions(size=64))
    return folder


@pytest.fixture(scope="session")
def save_noise() -> Callable[..., Path]:
    """Writes noise as an image: save_noise(path, mode="RGB", size=(width, height))."""

    def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        if mode == "I;16":
            Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(path)
        else:
            Image.fromarray(noise).convert(mode).save(path)
        return path

    return save


@pytest.fixture
def photo(tmp_path: Path, save_noise: Callable[..., Path]) -> Path:
    """A 48 x 32 picture."""
    return save_noise(tmp_path / "photo.png")
