"""`promptris train --dry-run`: what a recipe would do, as tables."""

from __future__ import annotations

from pathlib import Path

from promptris.interfaces.terminal import new_table, print_table, say
from promptris.training.config import Recipe
from promptris.training.dry_run import DryRun, dry_run


def show_dry_run(recipe: Recipe, name: str, device: str, out: Path | None) -> None:
    """Print parameters per part, steps and times per stage, memory; notes go to stderr."""
    from promptris.placement import pick_device

    place = pick_device(device)
    plan = dry_run(recipe, place, out)
    table = new_table("part", "trainable", "frozen")
    *parts, total = plan.parameters
    for part in parts:
        table.add_row(part.part, f"{part.trainable:,}", f"{part.frozen:,}")
    table.add_section()
    table.add_row(total.part, f"{total.trainable:,}", f"{total.frozen:,}")
    print_table(table, name)
    print()
    _print_stages(plan, recipe)
    config = recipe.train
    print(f"weights, gradients and optimiser  {_size(plan.weights_bytes)}")
    print(
        f"a pass of {config.images_per_step} x {config.expressions_per_image:<20} {_size(plan.step_bytes)} "
        f"on each device, counted for precision {recipe.engine.precision}"
    )
    if plan.peak_bytes is not None:
        print(
            f"peak of a step of {plan.timed_images} images       {_size(plan.peak_bytes)} "
            f"(the whole {'GPU part' if place.type == 'cuda' else 'process'})"
        )
    if plan.seconds is not None:
        print(
            f"expected time on {place}             {_duration(plan.seconds)}, loading and evaluation left out"
        )
    for note in plan.notes:
        say(f"note: {note}")


def _print_stages(plan: DryRun, recipe: Recipe) -> None:
    if plan.images is None:
        return
    number, origin = plan.images
    config = recipe.train
    title = (
        f"{number:,} training images ({origin}), {config.images_per_step} x {config.expressions_per_image} "
        f"expressions per pass, {config.accumulate} per step"
    )
    table = new_table("stage", "steps", "seconds per step")
    for stage in plan.stages:
        seconds = "-" if stage.seconds_per_step is None else f"{stage.seconds_per_step:.2f}"
        table.add_row(stage.name, f"{stage.steps:,}", seconds)
    print_table(table, title)
    print()


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
