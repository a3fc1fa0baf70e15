"""README and docs/ say nothing that is not so: every command, name, link and picture is looked up."""

from __future__ import annotations

import ast
import importlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import PAGES, ROOT, SHELL, Block, anchors, blocks, commands, links, pictures, prose, spans
from typer.main import get_command

import promptris
from promptris.interfaces.cli import app

TEXT = ("text", "csv", "http", "ini", "mermaid")
"""Kinds of block that hold no code; their lines that begin with promptris are checked all the same."""
PLAIN = ("source", "git", "cd", "mkdir", "export", "cp", "ls", "cat", "echo", "unzip", "open", "kill")
"""Shell commands of no program of this package."""
ELSEWHERE = ("curl", "docker", "ray", "hf", "nvidia-smi", "prometheus", "kubectl")
"""Programs that are not here, or speak to what is not here: their lines cannot be checked."""
EXAMPLES = {"RECIPE": "refshapes-quick"}
"""What stands for any value of its kind, and a value to check with."""

PYPROJECT = (ROOT / "pyproject.toml").read_text()
ALL = [block for page in PAGES for block in blocks(page)]


def of_kind(*kinds: str) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in ALL if block.kind in kinds]


# --------------------------------------------------------------------------------------------------- commands


def resolve(name: str) -> Any:
    """What a dotted name means; AttributeError or ImportError when nothing."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words after promptris begin with, and the words after it."""
    command, rest = get_command(app), list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    return command, rest


def check_promptris(words: list[str]) -> None:
    """Parse as the command line does; fields of recipes as training does."""
    command, rest = find_command([EXAMPLES.get(word, word) for word in words if word != "--debug"])
    context = command.make_context(command.name, [word for word in rest if word not in ("--help", "-h")])
    if command.name in ("train", "ablate") and context.params.get("recipe"):
        from promptris.training.recipes import load_recipe

        load_recipe(context.params["recipe"], context.args)
    else:
        assert not context.args, f"unknown: {context.args}"


def check_script(path: str, words: list[str]) -> None:
    """The file is there and has these options; they are read from its source, as it may be slow to import."""
    assert (ROOT / path).is_file(), f"there is no {path}"
    tree = ast.parse((ROOT / path).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    added = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_argument"]
    known = {arg.value for call in added for arg in call.args if isinstance(arg, ast.Constant)}
    used = {word.split("=")[0] for word in words if word.startswith("-")}
    assert used <= known, f"{path} has no {', '.join(map(str, used - known))}"


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in (word for word in words if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M), f"there is no make {target}"


def check_pip(words: list[str]) -> None:
    """Files that are named are there, and so are extras."""
    for before, word in pairwise(words):
        if before in ("-c", "-r"):
            assert (ROOT / word).is_file(), f"there is no {word}"
        if match := re.fullmatch(r"(?:\.|promptris)\[([\w,-]+)\]", word):
            for extra in match[1].split(","):
                assert re.search(rf"^{extra} = \[", PYPROJECT, re.M), f"there is no extra {extra}"


def check_command(words: list[str]) -> None:
    program, *rest = words
    if program == "promptris":
        check_promptris(rest)
    elif "-m" in rest and rest[rest.index("-m") + 1] == "promptris":
        check_promptris(rest[rest.index("-m") + 2 :])
    elif program in ("python", "python3") and rest and rest[0].endswith(".py"):
        check_script(rest[0], rest[1:])
    elif program in ("python", "python3") and rest[:1] == ["-c"]:
        compile(rest[1], "command", "exec")
    elif program.startswith(("benchmarks/", "examples/")):
        assert (ROOT / program).is_file(), f"there is no {program}"
    elif program == "make":
        check_make(rest)
    elif program == "pip" or rest[:2] == ["-m", "pip"]:
        check_pip(rest)
    else:
        assert program in (*PLAIN, *ELSEWHERE), f"{program!r} is neither checked nor known here"


def test_every_kind_of_block_is_known():
    known = {*SHELL, *TEXT, "python", "json", "yaml", "dockerfile", "{toctree}", "{eval-rst}"}
    assert [block.where for block in ALL if block.kind not in known] == []
    assert len(ALL) > 40


@pytest.mark.parametrize("block", [block for block in ALL if block.is_shell], ids=lambda block: block.where)
def test_commands(block: Block):
    found = list(commands(block.text))
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize("block", of_kind(*TEXT))
def test_commands_in_plain_text(block: Block):
    for line in block.text.splitlines():
        if line.startswith("promptris "):
            for words in commands(line):
                check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences(page: Path):
    """They may be cut short, so commands and options are looked up, not parsed."""
    for span in spans(page):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            check_make(words[1:2])
        if words[0] != "promptris" or len(words) < 2:
            continue
        command, rest = find_command([word for word in words[1:] if word != "..."])
        known = {
            option for parameter in command.params for option in parameter.opts + parameter.secondary_opts
        }
        known |= {"--help", "-h", "--debug"}
        used = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert {option for option in used if "." not in option} <= known, span


def test_a_wrong_command_is_found():
    """The checks above can fail."""
    for line in (
        "promptris segmnt photo.jpg x",
        "promptris segment photo.jpg x --formt mask",
        "promptris segment",
        "promptris segment photo.jpg x --threshold high",
        "promptris train refshapes-quick --train.learning 1 --out o",
        "promptris train refshapes-quik --out o",
        "promptris data fetch",
        "python benchmarks/data.py --round 3",
        "python benchmarks/gone.py",
        "make tests",
        "pip install -e '.[trian]'",
        "frobnicate --all",
    ):
        (words,) = commands(line)
        with pytest.raises(Exception, match=r".+"):
            check_command(words)


# ------------------------------------------------------------------------------------------------ other blocks


@pytest.mark.parametrize("block", of_kind("python"))
def test_python_blocks_compile_and_import_what_is_there(block: Block):
    tree = ast.parse(block.text, block.where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "promptris":
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "promptris":
                    resolve(alias.name)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "promptris"
        ):
            getattr(promptris, node.attr)


@pytest.mark.parametrize("block", of_kind("json", "yaml"))
def test_data_blocks_are_what_they_say(block: Block):
    if block.kind == "yaml":
        yaml.safe_load(block.text)
    else:
        try:
            json.loads(block.text)
        except json.JSONDecodeError:  # one object a line
            assert [json.loads(line) for line in block.text.splitlines() if line]


def test_the_api_page_names_what_is_there_and_every_public_name():
    named = {
        name
        for block in ALL
        if block.kind == "{eval-rst}"
        for name in re.findall(r"^\.\. auto\w+:: (\S+)", block.text, re.M)
    }
    for name in named:
        resolve(name)
    public = {name for name in promptris.__all__ if not name.endswith(("Error", "__version__"))}
    assert {f"promptris.{name}" for name in public} <= named


def test_every_page_is_in_the_table_of_contents():
    listed = [
        line for block in ALL if block.kind == "{toctree}" for line in block.text.split("\n\n")[-1].split()
    ]
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem not in ("README", "index"))


# ------------------------------------------------------------------------------------- names, links, pictures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_sentences(page: Path):
    from promptris.modeling.presets import PRESETS
    from promptris.training.recipes import builtin_recipes

    recipes = {*builtin_recipes(), *PRESETS}
    for span in spans(page):
        if re.fullmatch(r"promptris(\.\w+)+(\(.*\))?", span):
            resolve(span.split("(")[0])
        if re.fullmatch(r"(src|tests|benchmarks|docs)/[\w/.+-]*\w(\.\w+)+", span):
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"(refshapes|refcoco)-[a-z]+", span):
            assert span in recipes, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path):
    for target, anchor in links(page):
        linked = page if not target else page.parent / target
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_is_there_and_a_command_of_the_repository_makes_it(page: Path):
    for target, command in pictures(page):
        assert (page.parent / target).is_file(), target
        assert command is not None, f"{target}: no sentence after it says what it was made by"
        check_command(command.split())


def test_every_picture_in_docs_is_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for target, _ in pictures(page)}
    assert {path.resolve() for path in (ROOT / "docs" / "images").iterdir()} == shown


# ----------------------------------------------------------------------------------------- paper map, measured


def paper_map() -> list[tuple[str, list[str], list[str]]]:
    """(what, functions, tests) of every row of docs/equations.md."""
    rows = []
    for line in (ROOT / "docs" / "equations.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and "`" in cells[1]:
            rows.append((cells[0], *(re.findall(r"`([^`]+)`", cell) for cell in cells[1:])))
    return rows


def test_the_paper_map_has_every_equation():
    named = [int(match[1]) for what, _, _ in paper_map() if (match := re.match(r"Eq\. (\d)", what))]
    assert named == list(range(1, 10))


@pytest.mark.parametrize(("what", "functions", "tests"), paper_map(), ids=[row[0] for row in paper_map()])
def test_a_row_of_the_paper_map(what: str, functions: list[str], tests: list[str]):
    assert functions and tests
    for name in functions:
        assert callable(resolve(name)), name
    if match := re.match(r"Eq\. (\d)", what):
        # Of the functions, one says of itself which equation it is.
        said = [resolve(name).__doc__ or "" for name in functions]
        said += [importlib.import_module(resolve(name).__module__).__doc__ or "" for name in functions]
        assert any(re.search(rf"Eq\. (?:\d (?:to|and) )?{match[1]}\b", text) for text in said), functions
    for test in tests:
        path, name = test.split("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


STAGES = ("checkpointing_memory_stage1", "checkpointing_memory_stage2")
MEASURED = (ROOT / "docs" / "measured.md").read_text()


def test_every_number_that_was_measured_has_its_command():
    heading, *sections = re.split(r"^## ", MEASURED, flags=re.M)
    assert heading.startswith("# What has been measured")
    for section in sections[1:]:
        assert re.search(r"^```\n\S.*?^```$", section, re.M | re.S), section.splitlines()[0]


@pytest.mark.parametrize(
    ("file", "numbers"),
    [
        ("data", {"coco": "5.7", "photographs_reduced": "5.2", "opening_vs_refer": "44"}),
        ("training", {"sharing_time": "1.9", **dict(zip(STAGES, ("5.45", "4.77"), strict=True))}),
        ("training_full", {"sharing_time": "2.38", **dict(zip(STAGES, ("5.46", "3.5"), strict=True))}),
    ],
)
def test_measured_numbers_are_those_of_the_files(file: str, numbers: dict[str, str]):
    ratios = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())["ratios"]
    for name, told in numbers.items():
        digits = len(told.partition(".")[2])
        assert f"{ratios[name]:.{digits}f}" == told
        assert re.search(rf"\b{re.escape(told)}\b", MEASURED), told


def test_the_citation_file():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(said) and said["type"] == "software"
    for here, there in (("title", "name"), ("version", "version"), ("license", "license")):
        assert f'\n{there} = "{said[here]}"\n' in PYPROJECT
    (paper,) = said["references"]
    assert {"type", "title", "authors", "year"} <= set(paper) and len(paper["authors"]) == 6


def test_no_page_is_left_to_fill_in():
    for page in PAGES:
        assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b", prose(page)), page.name
