"""Recipes by name or file, with any field changed from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from promptris.errors import InputError
from promptris.training.config import Recipe


def builtin_recipes() -> dict[str, str]:
    """Text of every recipe that comes with the package, by name."""
    entries = (files("promptris") / "recipes").iterdir()
    texts = {entry.name.removesuffix(".yaml"): entry for entry in entries if entry.name.endswith(".yaml")}
    return {name: entry.read_text() for name, entry in sorted(texts.items())}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with changes.

    Args:
        name: a built-in name or a YAML file.
        overrides: "--key value" or "--key=value" as typed; keys are dotted, such as train.lr.

    Raises:
        InputError: for an unknown recipe, an unknown key (the closest known one is named) or a bad value.
    """
    # Our dataclasses are plain data: errors then name the field instead of a class path.
    set_parsing_settings(subclasses_disabled=[dataclasses.is_dataclass])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    try:
        values = parser.parse_string(_recipe_text(name))
        values = parser.parse_args(list(overrides), namespace=values)
    except ArgumentError as error:
        raise InputError(_sentence(name, str(error))) from error
    return Recipe(**parser.instantiate_classes(values))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, ready for `load_recipe`."""
    return yaml.safe_dump(plain(recipe), sort_keys=False)


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as JSON-like containers."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def _recipe_text(name: str) -> str:
    known = builtin_recipes()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the recipe {name}: {error}") from error
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"there is no recipe {name!r}: give a YAML file or one of {', '.join(known)}{hint}")


def _sentence(name: str, problem: str) -> str:
    """jsonargparse's message as one sentence, with the closest key for a mistyped one."""
    if match := re.search(r"unrecognized arguments: --(\S+)", problem):
        return f"recipe {name}: there is no key {match[1].split('=')[0]!r}{_closest(match[1].split('=')[0])}"
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", problem):
        key = f"{match[1]}.{match[2]}"
        return f"recipe {name}: there is no key {key!r}{_closest(key)}"
    return f"recipe {name}: {' '.join(problem.split())}"


def _closest(key: str) -> str:
    close = difflib.get_close_matches(key, _keys(plain(Recipe())), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in values.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += _keys(value, f"{prefix}{name}.")
    return keys
