"""The README tells the truth about the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree_paths() -> list[str]:
    """Paths of the README's tree, folders with a slash at the end."""
    block = README.split("## The tree")[1].split("```")[1]
    paths: list[str] = []
    parents: list[str] = []
    for line in block.strip("\n").splitlines():
        match = re.match(r"( *)(\S+)", line)
        assert match
        depth, name = len(match[1]) // 2, match[2]
        parents = parents[:depth]
        paths.append("".join(parents) + name)
        if name.endswith("/"):
            parents.append(name)
    return paths


def test_everything_in_the_tree_exists():
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_every_source_file_is_in_the_tree():
    listed = set(tree_paths())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py")}
    assert {path for path in sources if not path.endswith("__init__.py")} <= listed


def test_the_picture_is_there():
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "docs"])
def test_make_targets_exist(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\b(MEASURED|TREE|TODO|FIXME)\b", README)


def test_commands_in_the_readme_are_real():
    from typer.main import get_command

    from promptris.interfaces.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^promptris (\w+)", README, re.MULTILINE))
    assert used and used <= known
