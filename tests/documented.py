"""What README and docs/ say, taken apart: fenced blocks, commands, code spans, links, pictures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_RUN = "<!-- not run: "
"""Begins the line above a Python block that is compiled but not executed, and says why."""
SHELL = ("", "sh", "bash", "console")
TREE = "src/\n"
"""How README's tree begins, which tests/test_readme.py compares with the files."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, first line, the kind after the fence, its text, the line above it."""

    page: Path
    line: int
    kind: str
    text: str
    above: str

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.name}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Whether its lines are commands."""
        return self.kind in SHELL and not self.text.startswith(TREE)

    @property
    def is_run(self) -> bool:
        """Whether nothing above it says that it cannot be executed."""
        return not self.above.startswith(NOT_RUN)


@cache
def tokens(page: Path) -> list[Token]:
    """The page as Markdown; what stands within paragraphs, headings and cells comes in its place."""
    parsed = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [inner for token in parsed for inner in (token, *(token.children or []))]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        Block(page, token.map[0] + 2, token.info.strip(), token.content, lines[token.map[0] - 1].strip())
        for token in tokens(page)
        if token.type == "fence" and token.map
    ]


def prose(page: Path) -> str:
    """What a page says outside of code."""
    return "\n".join(token.content for token in tokens(page) if token.type == "text")


def spans(page: Path) -> list[str]:
    """Code within sentences, each as one line."""
    return [" ".join(token.content.split()) for token in tokens(page) if token.type == "code_inline"]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block: comments, prompts, pipes and redirections taken away."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        skip = False
        for word in lexer:
            if word in ("&&", "||", "|", ";", "&"):
                yield command
                command = []
            elif word in (">", ">>", "<", ">&"):
                skip = True
            elif skip or (not command and re.fullmatch(r"[A-Z_]+=.*", word)):
                skip = False
            else:
                command.append(word)
        if command:
            yield command


def links(page: Path) -> list[tuple[str, str]]:
    """(target, anchor) of every link and picture that stays in the repository."""
    found = [
        str(token.attrs["href"] if token.type == "link_open" else token.attrs["src"])
        for token in tokens(page)
        if token.type in ("link_open", "image")
    ]
    return [
        (target, anchor) for target, _, anchor in (each.partition("#") for each in found) if ":" not in target
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst make them."""
    all_of_them = tokens(page)
    headings = [
        all_of_them[number + 1].content
        for number, token in enumerate(all_of_them)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def pictures(page: Path) -> list[tuple[str, str | None]]:
    """Every picture, with the command in the first `made by` that comes after it."""
    found: list[tuple[str, str | None]] = []
    waiting: list[str] = []
    said = ""
    for token in tokens(page):
        if token.type == "image":
            waiting.append(str(token.attrs["src"]))
        elif token.type == "code_inline" and re.search(r"\bmade by\s*$", said, re.I):
            found += [(picture, " ".join(token.content.split())) for picture in waiting]
            waiting = []
        if token.type in ("text", "softbreak", "code_inline"):
            said = said[-20:] + (token.content or " ")
    return found + [(picture, None) for picture in waiting]
