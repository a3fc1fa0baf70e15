"""Recipes: every built-in one is read, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from promptris.errors import InputError
from promptris.training.config import Recipe, Stage
from promptris.training.dry_run import dry_run
from promptris.training.recipes import builtin_recipes, dump_recipe, load_recipe


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_recipe_is_read_and_begins_with_its_command(name: str):
    text = builtin_recipes()[name]
    assert text.startswith(f"# promptris train {name} ")
    assert isinstance(load_recipe(name), Recipe)


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_a_resolved_recipe_reads_back_the_same(name: str, tmp_path: Path):
    recipe = load_recipe(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_the_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.train.images_per_step, recipe.train.expressions_per_image) == (16, 4)
    assert recipe.train.stages == (Stage(20, sam=False), Stage(30, sam=True))
    assert (recipe.train.lr, recipe.train.decay_power) == (1e-4, 0.9)
    assert (recipe.model.clip_image_size, recipe.model.prompting.num_prompts) == (480, 16)
    assert (recipe.model.decoder.dim, recipe.model.decoder.layers) == (512, 1)


def test_any_field_can_be_set():
    recipe = load_recipe(
        "refshapes-smoke",
        [
            "--train.lr=0.5",
            "--model.prompting.direction",
            "v2l",
            "--train.stages",
            "[{epochs: 3, sam: false}]",
        ],
    )
    assert recipe.train.lr == 0.5
    assert recipe.model.prompting.direction == "v2l"
    assert recipe.train.stages == (Stage(3, sam=False),)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("refshapes-quik", [], ["'refshapes-quik'", "did you mean refshapes-quick?"]),
        ("refshapes-smoke", ["--train.lrr=1"], ["'train.lrr'", "did you mean 'train.lr'?"]),
        ("refshapes-smoke", ["--seeed", "1"], ["'seeed'", "did you mean 'seed'?"]),
        ("refshapes-smoke", ["--train.lr=fast"], ["train.lr", "fast"]),
        ("refshapes-smoke", ["--model.prompting.direction=up"], ["model.prompting.direction", "up"]),
        ("missing.yaml", [], ["missing.yaml"]),
    ],
)
def test_mistakes_are_named(name: str, overrides: list[str], words: list[str]):
    with pytest.raises(InputError) as caught:
        load_recipe(name, overrides)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["train: {lrr: 3}", "train: [", "- 1\n- 2", "\x00"])
def test_bad_recipe_files(text: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_recipe_can_be_looked_at_before_it_is_run(name: str):
    # Counting takes as long as a step has images.
    recipe = load_recipe(name, ["--train.images_per_step=2"])
    if name == "own-data":
        with pytest.raises(InputError, match="'own-data-folder' is neither a known data set"):
            dry_run(recipe, torch.device("cpu"))
        return
    plan = dry_run(recipe, torch.device("cpu"))
    assert plan.parameters[-1].part == "total"
    assert plan.parameters[-1].trainable > 0
    if recipe.data.name == "refshapes":
        assert plan.images == (recipe.data.generate.train, "to be generated")
        assert plan.seconds is not None and plan.seconds > 0
        assert plan.peak_bytes is not None
    else:
        assert plan.seconds is None
        assert any("vit-b" in note for note in plan.notes)


def test_a_dry_run_counts_steps_from_the_published_number_of_images():
    plan = dry_run(load_recipe("refcoco"), torch.device("cpu"))
    assert plan.images == (16994, "published")
    assert [stage.steps for stage in plan.stages] == [20 * (16994 // 16), 30 * (16994 // 16)]
    assert plan.parameters[-1].trainable == 40_985_857
    assert plan.weights_bytes == 40_985_857 * 16 + 243_356_465 * 4
    # As in docs/training-cost.md.
    assert plan.step_bytes / 2**30 == pytest.approx(20.2, abs=0.05)


def test_steps_shrink_with_processes_and_accumulation():
    options = ["--engine.devices=4", "--train.accumulate=2", "--engine.checkpoint_activations=true"]
    plan = dry_run(load_recipe("refcoco", options), torch.device("cpu"))
    assert plan.step_bytes / 2**30 == pytest.approx(6.4, abs=0.05)
    assert plan.stages[0].steps == 20 * (16994 // 64 // 2)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--engine.precision=fp8", ["engine.precision", "'fp8'", "bf16"]),
        ("--engine.strategy=magic", ["engine.strategy", "'magic'", "fsdp"]),
        ("--engine.devices=0", ["engine.devices is 0"]),
        ("--train.images_per_step=20000", ["16994 images", "fewer than the 20000 of one step"]),
    ],
)
def test_an_engine_that_cannot_be_is_named(option: str, words: list[str]):
    with pytest.raises(InputError) as caught:
        dry_run(load_recipe("refcoco", [option]), torch.device("cpu"))
    for word in words:
        assert word in str(caught.value)
