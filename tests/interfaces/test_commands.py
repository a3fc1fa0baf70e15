"""`refshapes`, `train`, `evaluate`, `info`, `doctor` and `demo`."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptris.data.refshapes import Description
from promptris.evaluation.protocol import Evaluation
from promptris.interfaces import demo, options

Command = Callable[..., Any]


# --------------------------------------------------------------------------------------------------- refshapes


def test_refshapes_writes_what_it_says(promptris: Command) -> None:
    run = promptris("refshapes", "data", "--splits", "val:2, test:1", "--seed", "5", "--size", "64")
    assert run.code == 0
    rows = {row[0]: row[1:] for line in run.out.splitlines() if len(row := line.split()) == 4}
    refs = pickle.loads(Path("data/refshapes/refs(unc).p").read_bytes())
    for split, images in (("val", 2), ("test", 1)):
        own = [ref for ref in refs if ref["split"] == split]
        sentences = sum(len(ref["sentences"]) for ref in own)
        assert rows[split] == [str(images), str(len(own)), str(sentences)]
    with Image.open("data/images/refshapes_000000000001.jpg") as image:
        assert image.size == (64, 64)
    assert run.err == "promptris: written to data\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--splits", "train"], "'train' is not NAME:SCENES"),
        (["--splits", "train:-1"], "'train:-1'"),
        (["--splits", "train:2,,val:1"], "'' is not NAME:SCENES"),
        (["--splits", "val:1,val:2"], "names 'val' twice"),
        (["--splits", "../x:1"], "../x"),
        (["--splits", "val:0"], "no scene to write"),
        (["--size", "12"], "size 12"),
        (["--seed", "-3"], "seed -3"),
        (["--level", "brutal"], "'brutal'"),
        (["--categories", "cats"], "'cats'"),
    ],
)
def test_refshapes_refuses(promptris: Command, arguments: list[str], words: str) -> None:
    given = arguments if "--splits" in arguments else [*arguments, "--splits", "val:1"]
    promptris("refshapes", "data", *given).refused(words)
    assert not Path("data").exists()


def test_refshapes_leaves_strange_folders_alone(promptris: Command) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    promptris("refshapes", "mine", "--splits", "val:1").refused("mine is not empty")
    assert Path("mine/thesis.txt").read_text() == "years of work"
    promptris("refshapes", "mine/thesis.txt", "--splits", "val:1").refused("thesis.txt is a file")


# ---------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_what_it_writes(promptris: Command, shapes_root: Path, model_folder: Path) -> None:
    where = ("--dataset", "refshapes", "--split", "val", "--data-root", shapes_root, "--out", "res")
    run = promptris("evaluate", "--model", model_folder, *where)
    assert run.code == 0
    metrics = json.loads(Path("res/metrics.json").read_text())
    predictions = [json.loads(line) for line in Path("res/predictions.jsonl").read_text().splitlines()]
    assert metrics["count"] == len(predictions) > 5
    assert metrics["mIoU"] == pytest.approx(sum(p["iou"] for p in predictions) / len(predictions), abs=1e-5)
    rows = {line.split("  ")[0]: line.split() for line in run.out.splitlines()[2:]}
    assert rows["final"][-1] == str(len(predictions))
    assert rows["final"][2] == f"{100 * metrics['mIoU']:.1f}"
    assert rows["coarse"][1] == f"{100 * metrics['coarse']['oIoU']:.1f}"
    assert {"final, attribute", "final, location", "final, relation"} <= set(rows)

    assert "objects: all that are annotated in an image" in run.out
    assert metrics["baselines"]["objects"] == "annotations"

    other = promptris("evaluate", "--model", model_folder, *where, "--prompts", "point")
    assert other.code == 0
    assert json.loads(Path("res/metrics.json").read_text()) != metrics


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--split": "testA"}, "no split 'testA'; it has train, val"),
        ({"--dataset": "refcoco"}, "'refcoco'"),
        ({"--dataset": "../x"}, "'../x'"),
        ({"--data-root": "nowhere"}, "nowhere"),
        ({"--split-by": "google"}, "'google'"),
        ({"--prompts": "box"}, "'box'"),
        ({"--threshold": "2"}, "--threshold 2"),
        ({"--model": "nosuchmodel"}, "nosuchmodel"),
        ({"--device": "gpu9"}, "gpu9"),
        ({"--out": "FILE"}, "a file is in its place"),
    ],
)
def test_evaluate_refuses(
    promptris: Command, shapes_root: Path, model_folder: Path, changes: dict[str, str], words: str
) -> None:
    Path("FILE").write_text("mine")
    values = {
        "--model": model_folder,
        "--dataset": "refshapes",
        "--split": "val",
        "--data-root": shapes_root,
        "--out": "res",
    }
    arguments = [part for pair in {**values, **changes}.items() for part in pair]
    promptris("evaluate", *arguments).refused(words)
    assert not Path("res/metrics.json").exists()
    assert Path("FILE").read_text() == "mine"


def test_evaluate_tells_no_trivial_answers_to_sentences_about_several_things(
    promptris: Command, model_folder: Path
) -> None:
    Path("desk").mkdir()
    Image.new("RGB", (40, 30)).save("desk/a.png")
    Image.new("L", (40, 30), 255).save("desk/m.png")
    Path("desk/expressions.csv").write_text(
        "image,mask,expression,split\na.png,m.png,the desk,val\na.png,,a dog,val"
    )
    where = ("--dataset", "desk", "--split", "val", "--out", "res")
    run = promptris("evaluate", "--model", model_folder, *where)
    assert run.code == 0 and "gIoU" in run.out and "objects:" not in run.out
    assert "baselines" not in json.loads(Path("res/metrics.json").read_text())


def test_evaluate_names_a_missing_image(
    promptris: Command, shapes_root: Path, model_folder: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(shapes_root, tmp_path / "copy")
    (root / "images" / "refshapes_000000000002.jpg").unlink()
    where = ("--dataset", "refshapes", "--split", "val", "--data-root", root, "--out", "res")
    promptris("evaluate", "--model", model_folder, *where).refused("refshapes_000000000002.jpg")


# ------------------------------------------------------------------------------------------------ info, doctor


def test_info_counts_the_papers_model(promptris: Command) -> None:
    run = promptris("info", "--preset", "vit-b", "--json")
    assert (run.code, run.err) == (0, "")
    facts = json.loads(run.out)
    counts = {row["part"]: row for row in facts["parameters"]}
    # CLIP ViT-B/16 has 149,620,737 parameters, SAM ViT-B 93.7 million.
    frozen = {part: row["frozen"] for part, row in counts.items() if part != "total"}
    assert sum(value for part, value in frozen.items() if part.startswith("CLIP")) == 149_620_737
    assert sum(value for part, value in frozen.items() if part.startswith("SAM")) == pytest.approx(
        93.7e6, rel=1e-3
    )
    assert counts["total"]["frozen"] == sum(frozen.values())
    assert counts["total"]["trainable"] > 0
    assert (facts["input"]["clip_image_size"], facts["input"]["clip_grid"]) == (480, 30)
    assert (facts["input"]["sam_image_size"], facts["input"]["mask_size"]) == (1024, 256)


def test_info_of_a_model_folder(promptris: Command, model_folder: Path, small_model: Any) -> None:
    run = promptris("info", "--model", model_folder)
    assert run.code == 0
    trainable = sum(p.numel() for p in small_model.parameters() if p.requires_grad)
    (total,) = [line.split() for line in run.out.splitlines() if line.startswith("total")]
    assert total[1] == f"{trainable:,}"
    assert "in the model's own folder" in run.out
    same_size = json.loads(promptris("info", "--preset", "refshapes", "--json").out)
    assert same_size["parameters"][-1]["trainable"] == trainable


def test_info_of_a_model_that_answers_without_sam(promptris: Command, small_model: Any) -> None:
    model = copy.copy(small_model)
    model.config = replace(model.config, sam_prompts=replace(model.config.sam_prompts, refine=False))
    model.save_pretrained("coarse", full=True)
    facts = json.loads(promptris("info", "--model", "coarse", "--json").out)
    assert facts["input"]["sam_prompts"] == "none: the coarse mask is the answer"


def test_info_refuses(promptris: Command, model_folder: Path) -> None:
    promptris("info", "--preset", "vit-x").refused("vit-x", "vit-b")
    promptris("info", "--model", "nosuchmodel").refused("nosuchmodel")
    promptris("info", "--model", model_folder, "--preset", "vit-b").refused("name one of them")


def test_doctor_always_answers(promptris: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    run = promptris("doctor")
    assert (run.code, run.err) == (0, "")
    rows = {line.split("  ")[0]: line for line in run.out.splitlines()}
    assert torch.__version__ in rows["torch"]
    assert {"extra train", "extra serve", "extra export", "model tiny", "devices"} <= set(rows)
    known = options.installed_version
    monkeypatch.setattr(
        options, "installed_version", lambda name: None if name == "lightning" else known(name)
    )
    assert "needs lightning: pip install 'promptris[train]'" in promptris("doctor").out


# -------------------------------------------------------------------------------------------------------- demo


def test_demo_shows_every_kind(promptris: Command, model_folder: Path) -> None:
    run = promptris("demo", "--model", model_folder, "--scenes", "2", "--out", "shown")
    assert run.code == 0
    index = json.loads(Path("shown/index.json").read_text())
    answers = [answer for scene in index["scenes"] for answer in scene["answers"]]
    assert {answer["kind"] for answer in answers} == {"attribute", "location", "relation"}
    for name in ("coarse_iou", "final_iou"):
        mean = sum(answer[name] for answer in answers) / len(answers)
        assert index["mean"][name] == pytest.approx(mean, abs=1e-5)
    for scene in index["scenes"]:
        with Image.open(Path("shown") / scene["file"]) as figure:
            assert figure.width > 4 * 192
    assert sorted(path.name for path in Path("shown").iterdir()) == [
        "index.json",
        "scene_01.png",
        "scene_02.png",
    ]
    for answer in answers:
        assert answer["expression"] in run.out
    (mean_row,) = [line.split() for line in run.out.splitlines() if line.split()[:1] == ["mean"]]
    assert mean_row[-1] == f"{100 * index['mean']['final_iou']:.1f}"
    assert "seed 12345" in run.err and "no recipe trains on" in run.err and "in shown" in run.err


def test_demo_is_repeatable_and_follows_the_seed(promptris: Command, model_folder: Path) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        promptris("demo", "--model", model_folder, "--scenes", 1, "--seed", seed, "--out", out)
    first, again, other = (json.loads(Path(out, "index.json").read_text()) for out in "abc")
    assert first == again
    assert first["scenes"] != other["scenes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenes", "0"], "--scenes 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--model", "nosuchmodel"], "nosuchmodel"),
        (["--out", "FILE"], "a file is in its place"),
        (["--device", "gpu9"], "gpu9"),
    ],
)
def test_demo_refuses(promptris: Command, model_folder: Path, arguments: list[str], words: str) -> None:
    Path("FILE").write_text("mine")
    model = [] if "--model" in arguments else ["--model", model_folder]
    promptris("demo", *model, *arguments).refused(words)


def test_demo_chooses_different_objects() -> None:
    descriptions = [
        Description("red one", "attribute", 0),
        Description("left one", "location", 0),
        Description("right one", "location", 1),
        Description("one beside the red one", "relation", 1),
    ]
    chosen = demo.choose(descriptions)
    assert [description.text for description in chosen] == ["red one", "right one", "one beside the red one"]


# ------------------------------------------------------------------------------------------------------- train


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run_recipe` would have been called with."""
    calls: list[dict[str, Any]] = []

    def record(recipe: Any, out: Path, resume: bool, device: str, notify: Any) -> Evaluation:
        calls.append({"recipe": recipe, "out": out, "resume": resume, "device": device})
        names = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc")
        final = {**{name: 0.125 * k for k, name in enumerate(names, start=1)}, "count": 7}
        return Evaluation(final, {**final, "oIoU": 0.0625}, {})

    monkeypatch.setattr("promptris.training.run.run_recipe", record)
    return calls


def test_train_changes_the_recipe(promptris: Command, runs: list[dict[str, Any]]) -> None:
    changes = ["--train.lr", "3e-3", "--seed=4", "--data.generate.train", "50", "--device", "cpu", "--resume"]
    run = promptris("train", "refshapes-quick", *changes, "--out", "runs/x")
    assert run.code == 0
    (call,) = runs
    recipe = call["recipe"]
    assert (recipe.train.lr, recipe.seed, recipe.data.generate.train) == (3e-3, 4, 50)
    assert (call["out"], call["resume"], call["device"]) == (Path("runs/x"), True, "cpu")
    final, coarse = (line.split() for line in run.out.splitlines()[3:5])
    assert final == ["final", "12.5", "25.0", "37.5", "50.0", "62.5", "75.0", "87.5", "7"]
    assert coarse[:2] == ["coarse", "6.2"]
    assert run.err == "promptris: the model is in runs/x/model\n"


def test_train_lists_what_it_went_on_without(promptris: Command, runs: list[dict[str, Any]]) -> None:
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/skipped.txt").write_text("images/7.jpg is damaged\nannotation 9 has 2 points\n")
    run = promptris("train", "refshapes-quick", "--skip-broken", "--out", "runs/x")
    assert run.code == 0
    assert runs[0]["recipe"].data.skip_broken
    assert run.err.splitlines()[:3] == [
        "promptris: images/7.jpg is damaged",
        "promptris: annotation 9 has 2 points",
        "promptris: 2 items were left out of training, each named above and in runs/x/skipped.txt",
    ]


def test_train_prints_the_recipe_without_running(promptris: Command, runs: list[dict[str, Any]]) -> None:
    run = promptris("train", "refshapes-quick", "--seed", "9", "--print-config")
    assert (run.code, runs) == (0, [])
    Path("own.yaml").write_text(run.out)
    assert promptris("train", "own.yaml", "--print-config").out == run.out
    assert "seed: 9\n" in run.out


def test_train_lists_the_recipes(promptris: Command) -> None:
    run = promptris("train", "--list")
    assert run.code == 0
    assert "refshapes-quick\n    promptris train refshapes-quick" in run.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], "no recipe"),
        (["--train.lr", "1", "refshapes-quick", "--out", "x"], "no recipe"),
        (["refshapes-quik", "--out", "x"], "did you mean refshapes-quick"),
        (["missing.yaml", "--out", "x"], "missing.yaml"),
        (["refshapes-quick", "--train.lrr", "1", "--out", "x"], "'train.lr'"),
        (["refshapes-quick", "--train.lr", "fast", "--out", "x"], "fast"),
        (["refshapes-quick", "stray", "--out", "x"], "stray"),
        (["refshapes-quick"], "--out is missing"),
        (["refshapes-quick", "--out", "x", "--device", "abacus"], "abacus"),
    ],
)
def test_train_refuses(
    promptris: Command, runs: list[dict[str, Any]], arguments: list[str], words: str
) -> None:
    promptris("train", *arguments).refused(words)
    assert runs == []


def test_train_says_which_extra_is_missing(promptris: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    known = options.installed_version
    monkeypatch.setattr(
        options, "installed_version", lambda name: None if name == "lightning" else known(name)
    )
    promptris("train", "refshapes-quick", "--out", "x").refused("lightning", "pip install 'promptris[train]'")
