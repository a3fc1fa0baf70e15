"""The `promptris` command: options and exit codes; the work is done by the modules it calls.

Exit codes: 0 done, 1 some items failed (each is named on stderr), 2 wrong use or unreadable input, 130
interrupted. Everything heavy is imported inside the commands, so that `promptris --help` is instant.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from promptris.errors import InputError
from promptris.interfaces.ablate import ablate_command
from promptris.interfaces.arguments import Clip, Device, Model, Sam
from promptris.interfaces.batch import batch_command
from promptris.interfaces.bench import bench_command
from promptris.interfaces.data import app as data_app
from promptris.interfaces.describe import describe_command, sheet_command
from promptris.interfaces.evaluate import evaluate_command
from promptris.interfaces.export import app as export_app
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.options import (
    TRAIN_DEVICES,
    parse_splits,
    require_extra,
)
from promptris.interfaces.pictures import curves_command, figure_command, gallery_command
from promptris.interfaces.push import push_command
from promptris.interfaces.segment import segment_command
from promptris.interfaces.serve import serve_command
from promptris.interfaces.terminal import (
    metrics_table,
    new_table,
    print_table,
    progress,
    report,
    say,
)

DONE, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Segment what an expression refers to: frozen CLIP and SAM, bridged by learned prompts (Prompt-RIS).",
)

data_app.command("describe")(describe_command)
data_app.command("sheet")(sheet_command)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.command("segment")(segment_command)
app.command("batch")(batch_command)
app.command("evaluate")(evaluate_command)
app.command("figure")(figure_command)
app.command("gallery")(gallery_command)
app.command("curves")(curves_command)
app.command("bench")(bench_command)
app.command("serve")(serve_command)
app.command("push")(push_command)
app.command("ablate", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    ablate_command
)


def _show_version(value: bool) -> None:
    if value:
        import promptris

        print(f"promptris {promptris.__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors; so does PROMPTRIS_DEBUG=1.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command. --debug is for the help only: `main` takes it out, wherever it stands."""


@app.command("refshapes")
def refshapes_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="New or empty folder, or a RefShapes to replace.")
    ],
    splits: Annotated[str, typer.Option(help="Scenes per split.")] = "train:2000,val:200,test:200",
    seed: Annotated[
        int, typer.Option(help="Of the world; the same seed and options give the same bytes.")
    ] = 0,
    size: Annotated[int, typer.Option(help="Side of the square scenes in pixels, 64 to 1024.")] = 128,
    level: Annotated[str, typer.Option(help="easy, standard or hard.")] = "standard",
    categories: Annotated[
        str,
        typer.Option(
            help="What val and test describe: seen, unseen or all; train splits stay with seen ones."
        ),
    ] = "seen",
) -> int:
    """Write a RefShapes data set in the REFER layout."""
    counts = parse_splits(splits)

    from promptris.data.refshapes import WorldOptions
    from promptris.data.refshapes.writer import write_refshapes

    options = WorldOptions(size, level, categories)
    with progress("scenes") as advance:
        summary = write_refshapes(folder, counts, seed, options, advance)
    title = f"RefShapes, level {level}, {size} px, seed {seed}, categories {categories}"
    table = new_table("split", "images", "referents", "expressions")
    for split, count in summary.splits.items():
        table.add_row(split, str(count.images), str(count.referents), str(count.expressions))
    print_table(table, title)
    say(f"written to {summary.directory}")
    return 0


@app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train_command(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(help="Built-in name or YAML file; then --key value for any of its fields."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; new or empty, unless --resume."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")
    ] = False,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken", help="Go on without items that cannot be used; they are listed at the end."
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help=f"{', '.join(TRAIN_DEVICES[:-1])} or {TRAIN_DEVICES[-1]}.")
    ] = "auto",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the recipe with its changes and stop.")
    ] = False,
    only_look: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show parameters, steps, memory and expected time, and train nothing."
        ),
    ] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the built-in recipes and stop.")] = False,
) -> int:
    """Train a model as a recipe says, and evaluate it.

    Any field of the recipe can be changed: --train.lr 2e-4 --seed 1 --data.root DIR ...
    """
    require_extra("train")
    from promptris.training.recipes import dump_recipe, load_recipe

    if list_recipes:
        _list_recipes()
        return 0
    if recipe is None or recipe.startswith("-"):
        raise InputError("no recipe is given before the other options: promptris train --list shows them")
    resolved = load_recipe(recipe, context.args)
    resolved.data.skip_broken |= skip_broken
    if print_config:
        print(dump_recipe(resolved), end="")
        return 0
    if only_look:
        from promptris.interfaces.dry_run import show_dry_run

        show_dry_run(resolved, recipe, device, out)
        return 0
    if out is None:
        raise InputError("--out is missing: name the folder of the run")
    if device not in TRAIN_DEVICES:
        raise InputError(f"cannot train on device {device!r}: choose from {', '.join(TRAIN_DEVICES)}")

    from promptris.placement import pick_device
    from promptris.team import launched_rank
    from promptris.training.run import SKIPPED_FILE, run_recipe
    from promptris.training.stopping import Interrupted

    pick_device(device)
    try:
        if launched_rank() > 0:  # one of several processes; the first one speaks
            run_recipe(resolved, out, resume=resume, device=device)
            return 0
        evaluation = run_recipe(resolved, out, resume=resume, device=device, notify=say)
    except Interrupted as stop:
        if launched_rank() == 0:
            say(str(stop))
        return stop.exit_code
    finally:
        _say_skipped(out / SKIPPED_FILE)
    where = f"{resolved.data.val_name or resolved.data.name} {resolved.data.val_split}"
    print_table(metrics_table(evaluation), f"{recipe} on {where}, in percent")
    say(f"the model is in {out / 'model'}")
    return 0


def _say_skipped(path: Path) -> None:
    """Every item that training has left out, if any."""
    from promptris.team import launched_rank

    if launched_rank() == 0 and path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            say(line)
        say(f"{len(lines)} items were left out of training, each named above and in {path}")


def _list_recipes() -> None:
    from promptris.training.recipes import builtin_recipes

    for name, text in builtin_recipes().items():
        print(name)
        for line in text.splitlines():
            if not line.startswith("#"):
                break
            print(f"    {line.lstrip('# ')}")


@app.command("info")
def info_command(
    model: Model = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Sizes without weights: vit-b, vit-b-32, vit-l, vit-h, refshapes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Show a model's parameters, input sizes and weights' origin."""
    from promptris.interfaces.info import show_info

    show_info(ModelChoice(model, device="cpu", clip=clip, sam=sam), preset, as_json)
    return 0


@app.command("doctor")
def doctor_command() -> int:
    """Show versions, devices, extras and built-in models."""
    from promptris.interfaces.info import show_doctor

    show_doctor()
    return 0


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and index.json.")] = Path("out/demo"),
    scenes: Annotated[int, typer.Option(help="How many scenes.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 12345,
    model: Model = None,
    device: Device = "auto",
) -> int:
    """Segment unseen RefShapes scenes: pictures and IoU."""
    from promptris.interfaces.demo import run_demo

    run_demo(ModelChoice(model, device=device), out, scenes, seed)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    arguments, debug = _without_debug(list(sys.argv[1:] if argv is None else argv))
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _say_warning
        try:
            code = app(arguments or ["--help"], prog_name="promptris", standalone_mode=False, obj=debug)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except BrokenPipeError:
            code = SOME_FAILED
        except SystemExit as exit_:  # how typer and rich answer a reader that has gone away
            code = exit_.code
        except Exception as error:
            # Usage errors are told by what they can do: their class depends on typer's version.
            if hasattr(error, "format_message"):
                command = getattr(getattr(error, "ctx", None), "command_path", "promptris")
                say(f"{error.format_message()} (see {command} --help)")
            else:
                report(error, debug)
            return WRONG_USE
    if code == SOME_FAILED:
        _drop_unread_output()
    return code if isinstance(code, int) else DONE


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments less --debug, which may stand anywhere before a "--", and whether it is wanted."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    wanted = len(options) < end or os.environ.get("PROMPTRIS_DEBUG", "0") not in ("", "0")
    return options + arguments[end:], wanted


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings to users as one line; those for developers are seen with --debug."""
    if issubclass(category, UserWarning):
        say(f"warning: {message}")


def _drop_unread_output() -> None:
    """When nobody reads stdout any more, what is left in its buffer must not fail at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
