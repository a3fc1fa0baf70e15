"""Whole runs in seconds: what is written, what stays frozen, and that nothing is lost when one is interrupted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from promptris.data.readers.refer import read_refer
from promptris.data.refshapes import WorldOptions
from promptris.data.refshapes.writer import write_refshapes
from promptris.errors import InputError
from promptris.images import load_image
from promptris.modeling.base_weights import load_clip, load_sam
from promptris.modeling.build import build_from_sources
from promptris.modeling.content_hash import content_hash
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.resizing import pool_masks
from promptris.predictor import Predictor, load
from promptris.processing import normalised
from promptris.training.callbacks import SeedSteps
from promptris.training.config import Recipe, Stage
from promptris.training.data import prepare_data
from promptris.training.recipes import load_recipe, plain
from promptris.training.run import run_recipe, tune


def rows(path: Path) -> list[dict[str, str]]:
    """The metrics file, without the columns that the machine decides."""
    machine = ("seconds", "images_per_second", "memory_mb")
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in machine} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, towers: Path) -> tuple[Path, Recipe]:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("run") / "out"
    recipe = load_recipe(
        "refshapes-smoke",
        [
            f"--towers.clip={towers / 'clip'}",
            f"--towers.sam={towers / 'sam'}",
            "--data.generate.train=12",
            "--data.generate.val=2",
            "--train.images_per_step=4",
            "--engine.checkpoint_seconds=0",
        ],
    )
    run_recipe(recipe, out, device="cpu")
    return out, recipe


def test_a_run_leaves_what_it_promises(finished: tuple[Path, Recipe]):
    out, _ = finished
    report = json.loads((out / "result.json").read_text())
    assert 0 <= report["metrics"]["mIoU"] <= 1
    assert {"oIoU", "P@0.5", "P@0.9", "ImgAcc", "InstAcc", "coarse", "by_kind"} <= set(report["metrics"])
    dataset = read_refer(out / "data", "refshapes")
    assert report["metrics"]["count"] == len(dataset.samples("val"))
    lines = (out / "evaluation" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == report["metrics"]["count"]
    assert json.loads((out / "evaluation" / "metrics.json").read_text()) == report["metrics"]
    assert not list(out.rglob("*.partial"))


def test_the_model_folder_tells_how_it_was_made(finished: tuple[Path, Recipe]):
    out, recipe = finished
    card = (out / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "promptris" and head["pipeline_tag"] == "image-segmentation"
    again = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert again == plain(recipe)
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    (line,) = [line for line in card.splitlines() if line.startswith("| final mask |")]
    assert line.split("|")[3].strip() == f"{100 * metrics['mIoU']:.1f}"
    assert "On a photograph its masks mean nothing" in card
    # RefShapes trains on its seen categories alone, whatever the recipe asks for.
    (data,) = [line for line in card.splitlines() if line.startswith("- Data:")]
    told = set(data.rstrip(".").split("seen categories: ")[1].split(", "))
    dataset = read_refer(out / "data", "refshapes")
    assert told == {dataset.categories[one.category_id] for one in dataset.referents("train")}
    (missing,) = [line for line in card.splitlines() if line.startswith("- Categories that no sentence")]
    assert "moon" in missing and "heart" in missing
    assert "It answers with coarse masks" not in card
    assert load_sam(recipe.towers.sam).sha256[:12] in card
    # What the hub reads in the head is what was measured.
    told_hub = {result.metric_name: result.metric_value for result in ModelCard(card).data.eval_results}
    assert told_hub == {name: round(100 * metrics[name], 1) for name in ("mIoU", "oIoU", "P@0.5")}
    # The towers were given, and so their licence is not for the package to say.
    assert "license" not in head


def test_metrics_file_has_a_row_per_step_and_sam_terms_in_the_second_stage(finished: tuple[Path, Recipe]):
    table = rows(finished[0] / "metrics.csv")
    assert [int(row["step"]) for row in table] == [1, 2, 3, 4, 5, 6]
    assert [row["stage"] for row in table] == ["0", "0", "0", "1", "1", "1"]
    assert all(float(row["loss"]) > 0 for row in table)
    assert [bool(row["final_dice"]) for row in table] == [False] * 3 + [True] * 3


def test_the_saved_model_gives_the_evaluated_masks(finished: tuple[Path, Recipe]):
    from promptris.evaluation.protocol import evaluate
    from promptris.predictor import Predictor

    out, _ = finished
    again = evaluate(
        Predictor(PromptRIS.from_pretrained(out / "model")), read_refer(out / "data", "refshapes"), "val"
    )
    assert again.to_dict() == json.loads((out / "evaluation" / "metrics.json").read_text())


def test_frozen_towers_are_bit_identical_after_training(finished: tuple[Path, Recipe], towers: Path):
    model = PromptRIS.from_pretrained(finished[0] / "model")
    assert content_hash(model.clip.clip) == load_clip(towers / "clip").sha256
    assert content_hash(model.sam.sam) == load_sam(towers / "sam").sha256


def test_training_changed_the_learned_parts(finished: tuple[Path, Recipe], towers: Path):
    out, recipe = finished
    before = build_from_sources(towers / "clip", towers / "sam", recipe.model, recipe.seed)
    after = dict(PromptRIS.from_pretrained(out / "model").named_parameters())
    for name, parameter in before.named_parameters():
        # A bias of the keys adds the same to all products of a query, and has no gradient.
        idle = name.startswith("prompting.") and name.endswith("k_proj.bias")
        if parameter.requires_grad:
            assert torch.equal(parameter, after[name]) == idle, name


def test_the_checkpoint_holds_no_frozen_weights(finished: tuple[Path, Recipe], towers: Path):
    out, recipe = finished
    saved = torch.load(out / "last.ckpt", weights_only=True)
    model = build_from_sources(towers / "clip", towers / "sam", recipe.model, recipe.seed)
    trainable = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert set(saved["state_dict"]) == trainable
    assert sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]) == len(
        trainable
    )


class KilledError(RuntimeError):
    """Stands for whatever kills a run."""


@pytest.mark.parametrize("steps_done", [2, 3, 5])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    finished: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_done: int
):
    """Killed in the first stage, between the stages, and in the second."""
    reference, recipe = finished
    out = tmp_path / "out"
    original = SeedSteps.on_train_batch_start

    def die(self: SeedSteps, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == steps_done:
            raise KilledError
        original(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(SeedSteps, "on_train_batch_start", die)
    with pytest.raises(KilledError):
        run_recipe(recipe, out, device="cpu")
    monkeypatch.setattr(SeedSteps, "on_train_batch_start", original)
    assert len(rows(out / "metrics.csv")) == steps_done

    run_recipe(recipe, out, resume=True, device="cpu")
    assert rows(out / "metrics.csv") == rows(reference / "metrics.csv")
    result, expected = (json.loads((f / "result.json").read_text())["metrics"] for f in (out, reference))
    assert result == expected


def test_resuming_a_finished_run_only_evaluates_again(
    finished: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
):
    out, recipe = finished
    before = rows(out / "metrics.csv")
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    run_recipe(recipe, out, resume=True, device="cpu")
    assert rows(out / "metrics.csv") == before
    assert json.loads((out / "result.json").read_text())["metrics"] == metrics


def test_the_first_stage_never_runs_sams_image_encoder(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe.engine.log = ()  # pictures are made with SAM
    model = build_from_sources(recipe.towers.clip, recipe.towers.sam, recipe.model, recipe.seed)
    calls = []
    encode = model.sam.encode_image
    monkeypatch.setattr(
        model.sam, "encode_image", lambda pixels: (calls.append(len(pixels)), encode(pixels))[1]
    )
    data = prepare_data(recipe.data, tmp_path / "data")
    tune(recipe, model, *data, tmp_path, resume=False, device="cpu")
    # Three steps of four images in the second stage: once per image, not once per expression.
    assert calls == [4, 4, 4]


def test_a_used_folder_is_refused(finished: tuple[Path, Recipe]):
    out, recipe = finished
    with pytest.raises(InputError, match="not empty"):
        run_recipe(recipe, out)


def test_resuming_nothing_is_refused(recipe: Recipe, tmp_path: Path):
    with pytest.raises(InputError, match="no run to resume"):
        run_recipe(recipe, tmp_path / "nothing", resume=True)


def test_resuming_under_another_recipe_is_refused(finished: tuple[Path, Recipe]):
    import dataclasses

    out, recipe = finished
    with pytest.raises(InputError, match="another recipe"):
        run_recipe(dataclasses.replace(recipe, seed=1), out, resume=True)


def test_an_unwritable_folder_is_found_before_anything_else(recipe: Recipe, tmp_path: Path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        run_recipe(recipe, blocker / "out")


def test_other_data_sets_need_a_root(recipe: Recipe, tmp_path: Path):
    recipe.data.name = "refcoco"
    with pytest.raises(InputError, match=r"--data\.root"):
        prepare_data(recipe.data, tmp_path)


# ------------------------------------------------------------------------------------------------- other data sets


def small(recipe: Recipe, **data: Any) -> Recipe:
    recipe.data = replace(recipe.data, **data)
    recipe.train.images_per_step = 2
    return recipe


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Six photographs of a person's own, a mask and two sentences each, and no validation split."""
    folder = tmp_path / "desk"
    (folder / "masks").mkdir(parents=True)
    rows = ["image,mask,expression,split"]
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg")
        mask = np.zeros((60, 90), dtype=np.uint8)
        mask[10 * (k % 3) : 30, 5 : 20 + k] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
        rows += [f"{k}.jpg,masks/{k}.png,the mug,", f"{k}.jpg,masks/{k}.png,the mug on the left,"]
    (folder / "expressions.csv").write_text("\n".join(rows))
    return folder


def test_a_folder_of_ones_own_is_trained_and_evaluated(recipe: Recipe, own_folder: Path, tmp_path: Path):
    result = run_recipe(small(recipe, name=str(own_folder), val_share=0.34), tmp_path / "out", device="cpu")
    assert result.final["count"] == 4  # two of six images, two sentences each
    assert not (tmp_path / "out" / "skipped.txt").exists()


def test_without_a_validation_split_that_is_said_before_training(
    recipe: Recipe, own_folder: Path, tmp_path: Path
):
    with pytest.raises(InputError, match="desk has no split 'val'; it has train"):
        run_recipe(small(recipe, name=str(own_folder)), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_training_goes_on_past_broken_items_and_lists_them(recipe: Recipe, own_folder: Path, tmp_path: Path):
    (own_folder / "0.jpg").write_bytes((own_folder / "0.jpg").read_bytes()[:-300])
    (own_folder / "masks" / "1.png").write_bytes(b"")
    with (own_folder / "expressions.csv").open("a") as file:
        file.write("\n2.jpg,masks/2.png,the cup,val")
    small(recipe, name=str(own_folder))
    with pytest.raises(InputError, match=r"1\.png"):
        prepare_data(recipe.data, tmp_path / "data")
    recipe.data.skip_broken = True
    recipe.train.stages = (Stage(epochs=6, sam=False),)
    data = prepare_data(recipe.data, tmp_path / "data")
    model = build_from_sources(recipe.towers.clip, recipe.towers.sam, recipe.model, recipe.seed)
    (tmp_path / "out").mkdir()
    tune(recipe, model, *data, tmp_path / "out", resume=False, device="cpu")
    lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert len(lines) == len(set(lines))
    assert any("1.png" in line for line in lines)
    assert any("0.jpg is damaged or cut off" in line for line in lines)


def test_a_cache_of_sam_embeddings_changes_nothing_but_rounding(
    finished: tuple[Path, Recipe], recipe: Recipe, tmp_path: Path
):
    recipe.engine.embedding_cache = str(tmp_path / "cache")
    encoded = []
    out = tmp_path / "out"
    run_recipe(recipe, out, device="cpu", notify=encoded.append)
    assert any("embedding" in sentence for sentence in encoded)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    for ours, expected in zip(rows(out / "metrics.csv"), rows(finished[0] / "metrics.csv"), strict=True):
        # Stored as bfloat16, which has eight bits.
        assert float(ours["loss"]) == pytest.approx(float(expected["loss"]), rel=0.02)


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_learns_the_same_to_its_accuracy(
    finished: tuple[Path, Recipe], recipe: Recipe, tmp_path: Path, precision: str
):
    recipe.engine.precision = precision
    run_recipe(recipe, tmp_path / "out", device="cpu")
    ours, expected = rows(tmp_path / "out" / "metrics.csv"), rows(finished[0] / "metrics.csv")
    assert float(ours[0]["loss"]) == pytest.approx(float(expected[0]["loss"]), rel=0.02)
    saved = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)
    assert {value.dtype for value in saved["state_dict"].values()} == {torch.float32}


def test_validation_in_the_middle_is_the_protocols_and_changes_no_step(
    finished: tuple[Path, Recipe], recipe: Recipe, tmp_path: Path
):
    recipe.train.validate_every = 1.0
    run_recipe(recipe, tmp_path / "out", device="cpu")
    assert rows(tmp_path / "out" / "metrics.csv") == rows(finished[0] / "metrics.csv")
    table = rows(tmp_path / "out" / "validation.csv")
    assert [row["step"] for row in table] == ["3", "6"]
    final = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert float(table[-1]["mIoU"]) == pytest.approx(final["mIoU"], abs=1e-6)


def test_the_engine_may_change_when_a_run_is_resumed(recipe: Recipe, finished: tuple[Path, Recipe]):
    out, original = finished
    changed = replace(original, engine=replace(original.engine, workers=1, checkpoint_seconds=7.0))
    run_recipe(changed, out, resume=True, device="cpu")
    assert "checkpoint_seconds: 7.0" in (out / "recipe.yaml").read_text()


def test_activation_checkpointing_changes_no_step(
    finished: tuple[Path, Recipe], recipe: Recipe, tmp_path: Path
):
    recipe.engine.checkpoint_activations = True
    run_recipe(recipe, tmp_path / "out", device="cpu")
    assert rows(tmp_path / "out" / "metrics.csv") == rows(finished[0] / "metrics.csv")


def test_linear_layers_by_onednn_change_steps_by_rounding_only(
    finished: tuple[Path, Recipe], recipe: Recipe, tmp_path: Path
):
    recipe.engine.onednn = False
    run_recipe(recipe, tmp_path / "out", device="cpu")
    plain, ours = rows(tmp_path / "out" / "metrics.csv"), rows(finished[0] / "metrics.csv")
    assert plain != ours
    for expected, found in zip(plain, ours, strict=True):
        for name in ("coarse_bce", "coarse_dice"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-3)


def test_fsdp_without_gpus_is_refused(recipe: Recipe, tmp_path: Path):
    recipe.engine.strategy = "fsdp"
    with pytest.raises(InputError, match="fsdp needs GPUs"):
        run_recipe(recipe, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_the_best_state_is_kept_and_the_last_ones(recipe: Recipe, tmp_path: Path):
    recipe.train.validate_every, recipe.engine.keep_last = 1.0, 2
    run_recipe(recipe, tmp_path / "out", device="cpu")
    out = tmp_path / "out"
    assert (out / "best.ckpt").is_file()
    assert [path.name for path in sorted(out.glob("step-*.ckpt"))] == ["step-00000005.ckpt"]
    saved = torch.load(out / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert set(saved["promptris"]["towers"]) == {"clip", "sam"}
    assert "refshapes" in saved["promptris"]["recipe"]


def test_other_towers_under_the_same_checkpoint_are_refused(
    recipe: Recipe, towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sam = tmp_path / "sam"
    shutil.copytree(towers / "sam", sam)
    recipe.towers.sam = str(sam)
    out = tmp_path / "out"
    run_recipe(recipe, out, device="cpu")
    weights = load_file(sam / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, sam / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="was trained with another SAM"):
        run_recipe(recipe, out, resume=True, device="cpu")


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(tmp_path: Path, teach_prompts: Callable[..., None]):
    """Final masks of the training images reach a mean IoU above 0.95 on the CPU, with both towers frozen.

    The small SAM is fitted to prompts of these scenes' objects first: what a released SAM can draw everywhere,
    it then can draw here, and whatever is missing at the end is the prompts' fault.
    """
    recipe = load_recipe(
        "refshapes-quick",
        [
            f"--data.root={tmp_path / 'data'}",
            "--data.val_split=train",
            f"--towers.clip={tmp_path / 'clip'}",
            f"--towers.sam={tmp_path / 'sam'}",
            "--train.stages=[{epochs: 150, sam: false}, {epochs: 350, sam: true}]",
            "--train.prompt_dropout=0",
            "--engine.log=[]",
        ],
    )
    model = load("tiny", device="cpu").model
    write_refshapes(tmp_path / "data", {"train": 8}, 0, WorldOptions(level="easy"))
    dataset = read_refer(tmp_path / "data", "refshapes")
    referents = dataset.by_image("train")
    masks = [dataset.mask(one) for image_id in referents for one in referents[image_id]]
    owners = torch.tensor([number for number, image_id in enumerate(referents) for _ in referents[image_id]])
    pictures = [load_image(dataset.images[image_id].path) for image_id in referents]
    pixels = normalised(model.processor().images(pictures)).sam_pixels
    truth = pool_masks(torch.from_numpy(np.stack(masks)), (model.sam.mask_size,) * 2)
    teach_prompts(model.sam, pixels, owners, truth, steps=400)
    model.clip.clip.save_pretrained(tmp_path / "clip")
    model.tokenizer.save_pretrained(tmp_path / "clip")
    model.sam.sam.save_pretrained(tmp_path / "sam")

    result = run_recipe(recipe, tmp_path / "out", device="cpu")
    assert result.final["mIoU"] > 0.95
    assert result.coarse["mIoU"] < result.final["mIoU"]


def test_towers_may_be_trained_too_as_an_upper_bound(recipe: Recipe, towers: Path, tmp_path: Path):
    recipe.train.tune_towers = recipe.save_full = True
    # Once around, so that a whole step of either stage is learnt from.
    run_recipe(recipe, tmp_path / "out", device="cpu")
    model = PromptRIS.from_pretrained(tmp_path / "out" / "model")
    assert content_hash(model.clip.clip) != load_clip(towers / "clip").sha256
    assert content_hash(model.sam.sam) != load_sam(towers / "sam").sha256
    before = load_sam(towers / "sam").module
    changed = {
        name: not torch.equal(value, before.state_dict()[name])
        for name, value in model.sam.sam.state_dict().items()
    }
    assert changed["vision_encoder.layers.0.attn.qkv.weight"]
    assert changed["mask_decoder.transformer.layers.0.self_attn.q_proj.weight"]
    assert not any(value for name, value in changed.items() if "positional_embedding" in name)
    # A model that holds its towers names no others; its card tells where they came from.
    assert model.sources == {}
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    for name, base in (("CLIP", load_clip(towers / "clip")), ("SAM", load_sam(towers / "sam"))):
        (line,) = [line for line in card.splitlines() if line.startswith(f"- {name}:")]
        assert base.sha256[:12] in line and "trained further" in line


def test_a_run_with_tuned_towers_is_resumed_to_the_same_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe.train.tune_towers = recipe.save_full = True
    run_recipe(recipe, tmp_path / "whole", device="cpu")
    original = SeedSteps.on_train_batch_start

    def die(self: SeedSteps, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            raise KilledError
        original(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(SeedSteps, "on_train_batch_start", die)
    with pytest.raises(KilledError):
        run_recipe(recipe, tmp_path / "out", device="cpu")
    monkeypatch.setattr(SeedSteps, "on_train_batch_start", original)
    run_recipe(recipe, tmp_path / "out", resume=True, device="cpu")
    assert rows(tmp_path / "out" / "metrics.csv") == rows(tmp_path / "whole" / "metrics.csv")
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "out"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"save_full": False}, "set save_full too"),
        ({"save_full": True, "cache": "cache"}, "exclude each other"),
        ({"save_full": True, "towers_lr": 0.0}, r"train\.towers_lr is 0\.0: give a share"),
    ],
)
def test_tuned_towers_are_never_lost(recipe: Recipe, tmp_path: Path, changes: dict[str, Any], words: str):
    recipe.train.tune_towers, recipe.save_full = True, changes["save_full"]
    recipe.engine.embedding_cache = changes.get("cache")
    recipe.train.towers_lr = changes.get("towers_lr", 0.1)
    with pytest.raises(InputError, match=words):
        run_recipe(recipe, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_model_trained_without_sam_is_measured_without_it(recipe: Recipe, tmp_path: Path):
    recipe.train.stages = (Stage(epochs=2.0, sam=False),)
    recipe.train.validate_every = 1.0
    out = tmp_path / "out"
    before = plain(recipe)
    result = run_recipe(recipe, out, device="cpu")
    assert result.final == result.coarse
    assert all(row["mIoU"] == row["coarse_mIoU"] for row in rows(out / "validation.csv"))
    # Whoever opens the model gets the answers that were measured; the recipe is what it was.
    assert json.loads((out / "model" / "config.json").read_text())["model"]["sam_prompts"]["refine"] is False
    assert not Predictor(PromptRIS.from_pretrained(out / "model")).with_sam
    assert plain(recipe) == before
    run_recipe(recipe, out, resume=True, device="cpu")

    card = (out / "model" / "README.md").read_text()
    assert "It answers with coarse masks" in card and "takes neither clicks" in card
    assert "| coarse mask |" in card and "final mask" not in card
    model = PromptRIS.from_pretrained(out / "model")
    learnt = sum(p.numel() for part in (model.prompting, model.decoder) for p in part.parameters())
    assert f" {learnt:,} parameters were trained" in card
