"""Every command and every block of code of docs/own-photos.md works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptris.outputs import FORMATS, RUN_FORMATS
from promptris.predictor import load

PAGE = (Path(__file__).parents[2] / "docs/own-photos.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_the_page_runs(promptris: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptris.predictor.load", cache(load))  # the model is read once
    lines = "".join(blocks("bash")).replace("|\n", "|").splitlines()
    errors = ""
    for line in lines:
        if line.startswith("promptris ") or "|" in line:
            given, _, command = line.rpartition("|")
            stdin = subprocess.run(["bash", "-c", given], capture_output=True, check=True).stdout
            run = promptris(*shlex.split(command, comments=True)[1:], stdin=stdin)
            assert run.code == 0, (line, run.err)
            errors += run.err
        else:
            subprocess.run(["bash", "-c", line], check=True)
    assert "5 of 5 images were finished before" in errors and "knows RefShapes scenes only" not in errors
    assert json.loads(Path("out/run/coco.json").read_text())["categories"][1]["name"] == "the star"
    for block in blocks("python"):
        exec(compile(block, "docs/own-photos.md", "exec"), {})
    for name in ("overlay.png", "explain.png", "annotated.png"):
        with Image.open(name) as picture:
            assert picture.width >= 128


def test_the_page_has_every_format() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert told == {*FORMATS, *RUN_FORMATS}
