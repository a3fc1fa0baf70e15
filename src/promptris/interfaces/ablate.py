"""`promptris ablate`: the paper's tables, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptris.errors import InputError
from promptris.interfaces.options import TRAIN_DEVICES, require_extra
from promptris.interfaces.terminal import say

DEFAULT_RECIPE = "refshapes-ablation"


def ablate_command(
    context: typer.Context,
    tables: Annotated[
        list[str], typer.Argument(help="table1, table2, table3, table4, table5, icl, start, model; or all.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the tables and everything that they are made from.")],
    recipe: Annotated[str, typer.Option(help="Recipe that every run starts from.")] = DEFAULT_RECIPE,
    seeds: Annotated[str, typer.Option(help="Comma list of training seeds.")] = "0,1,2",
    scenes: Annotated[int, typer.Option(help="RefShapes scenes per measured split.", min=1)] = 200,
    parallel: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> int:
    """Train and measure the models of the paper's tables, the paper's numbers beside ours.

    What is there already is not done again: the same command goes on after an interruption, and with more tables
    or seeds. Fields of the recipe can be changed as in promptris train: --train.lr 2e-4 --data.root DIR ...
    """
    require_extra("train")
    require_extra("experiments")
    from promptris.experiments.ablation import Ablation, Plan
    from promptris.experiments.report import to_markdown
    from promptris.experiments.tables import TABLES, get_tables
    from promptris.placement import pick_device
    from promptris.training.recipes import load_recipe

    # What is no option of this command comes along with the tables: fields of the recipe.
    count = next((k for k, word in enumerate(tables) if word.startswith("-")), len(tables))
    names, changes = tables[:count], [*tables[count:], *context.args]
    if not names:
        raise InputError(
            "no table is named before the other options: give table1 to table5, icl, start, model, or all"
        )
    late = [word for word in changes if word in TABLES or word == "all"]
    if late:
        raise InputError(f"{late[0]} stands after other options: name all tables first")
    if any(change.split("=")[0] == "--seed" for change in changes):
        raise InputError("--seed is none of this command's options: --seeds gives the training seeds")
    if device not in TRAIN_DEVICES:
        raise InputError(f"cannot train on device {device!r}: choose from {', '.join(TRAIN_DEVICES)}")
    pick_device(device)
    plan = Plan(
        tables=tuple(get_tables(names)),
        recipe=load_recipe(recipe, changes),
        recipe_name=recipe,
        seeds=parse_seeds(seeds),
        out=out,
        scenes=scenes,
        device=device,
        parallel=parallel,
        changes=tuple(changes),
    )
    results, failed = Ablation(plan, say).run()
    for result in results:
        print(to_markdown(result))
    for outcome in failed:
        say(f"{outcome.task.name} ended with exit code {outcome.code}: {outcome.log} tells why")
    if results:
        say(f"{', '.join(result.table.name for result in results)}: Markdown, JSON and plots are in {out}")
    return 1 if failed else 0


def parse_seeds(text: str) -> tuple[int, ...]:
    """Training seeds of a comma list; an InputError names one that is none."""
    seeds = []
    for part in text.split(","):
        if not part.strip().isdigit():
            raise InputError(f"--seeds {text}: {part.strip()!r} is no whole number from 0 up")
        seeds.append(int(part))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text} names a seed twice")
    return tuple(seeds)
