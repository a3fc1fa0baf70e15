"""`promptris push`, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fake_hub import TOKEN, FakeHub

from promptris.builtin_models import builtin_folder


def run(address: str, home: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which knows the hub by its environment alone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "promptris", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=home)


def test_a_folder_goes_up_and_the_name_answers(tmp_path, save_noise):
    with FakeHub() as hub:
        done = run(hub.address, tmp_path, "push", "tiny", "me/tiny", "--private", "--message", "Again")
        assert (done.returncode, done.stdout) == (0, f"{hub.address}/me/tiny\n"), done.stderr
        uploaded = hub.models["me/tiny"]
        assert uploaded.private and uploaded.messages == ["Again"]
        assert uploaded.files == {path.name: path.read_bytes() for path in builtin_folder("tiny").iterdir()}

        photo = save_noise(tmp_path / "photo.png")
        masks = []
        for model, out in (("me/tiny", "there"), ("tiny", "here")):
            done = run(
                hub.address,
                tmp_path,
                *("segment", str(photo), "the star", "--model", model, "--out", out, "--format", "mask"),
            )
            assert done.returncode == 0, done.stderr
            (mask,) = (tmp_path / out).rglob("*.png")
            masks.append(mask.read_bytes())
        assert masks[0] == masks[1]


def test_without_a_token(tmp_path):
    with FakeHub() as hub:
        done = run(hub.address, tmp_path, "push", "tiny", "me/tiny", token="")
        assert hub.asked == []
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "log in with hf auth login , or set HF_TOKEN" in done.stderr


def test_wrong_use(promptris):
    promptris("push", "nowhere", "me/model").refused("no model folder nowhere")
    promptris("push", "tiny").refused("REPO_ID")
