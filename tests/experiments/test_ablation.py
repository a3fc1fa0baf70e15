"""A table from nothing, in processes of its own; going on, and failing, without losing what is there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from promptris.errors import InputError
from promptris.experiments.ablation import Ablation, Plan
from promptris.experiments.report import to_markdown
from promptris.experiments.runner import Runner
from promptris.experiments.splits import MeasuredSplit, make_test_scenes
from promptris.experiments.tables import get_tables
from promptris.experiments.work import Job, Task, Worker
from promptris.training.recipes import load_recipe


@pytest.fixture(scope="module")
def plan(towers: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The ICL paragraph with two models that learn nothing to speak of."""
    folder = tmp_path_factory.mktemp("ablation")
    options = [f"--towers.clip={towers / 'clip'}", f"--towers.sam={towers / 'sam'}"]
    options += ["--data.generate.train=8", "--data.generate.val=1", "--train.images_per_step=4"]
    options += ["--train.stages=[{epochs: 1, sam: false}, {epochs: 1, sam: true}]"]
    recipe = load_recipe("refshapes-smoke", options)
    return Plan(
        tables=tuple(get_tables(["icl"])),
        recipe=recipe,
        recipe_name="refshapes-smoke",
        seeds=(3,),
        out=folder / "out",
        scenes=2,
        device="cpu",
        parallel=2,
    )


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def made(plan: Plan, said: list[str]) -> Path:
    results, failed = Ablation(plan, said.append).run()
    assert not failed and [result.table.name for result in results] == ["icl"]
    return plan.out


def test_a_table_is_written_for_machines_and_people(made: Path):
    report = json.loads((made / "icl.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["without ICL", "with ICL"]
    assert report["rows"][1]["paper"]["standard"] == {"ImgAcc": 79.34, "InstAcc": 77.74}
    facts = report["facts"]
    assert facts["seeds"] == [3] and facts["minutes"] > 0 and facts["commit"] and facts["scenes"] == 2
    assert set(report["baselines"]["standard"]["trivial"]) >= {"all objects", "random object"}
    assert {entry["verdict"] for entry in report["orderings"]} <= {"seen", "not seen", "undecided"}
    text = (made / "icl.md").read_text()
    assert "| with ICL |" in text and "79.34" in text and "oracle on 8 × 8" in text
    assert (made / "icl.png").stat().st_size > 5000


def test_what_is_measured_is_what_the_run_has_measured_itself(made: Path):
    """The same model on the same split by `promptris evaluate`'s code."""
    from promptris.data.readers.refer import read_refer
    from promptris.evaluation.protocol import evaluate
    from promptris.modeling.prompt_ris import PromptRIS
    from promptris.predictor import Predictor

    model = PromptRIS.from_pretrained(made / "runs" / "full-seed3" / "run" / "model")
    dataset = read_refer(made / "tests" / "standard", "refshapes")
    expected = evaluate(Predictor(model), dataset, "test").final
    report = json.loads((made / "icl.json").read_text())
    figures = report["rows"][1]["figures"]["standard"]
    for metric in ("ImgAcc", "InstAcc", "mIoU", "P@0.9"):
        assert figures[metric]["mean"] == pytest.approx(expected[metric], abs=1e-6)


def test_the_variants_were_trained_as_they_say(made: Path):
    full, without = (
        load_recipe(str(made / "runs" / f"{name}-seed3" / "run" / "recipe.yaml"))
        for name in ("full", "cmp-sam")
    )
    assert (full.train.icl_weight, without.train.icl_weight) == (1.0, 0.0)
    assert full.seed == without.seed == 3
    assert full.data == without.data and full.towers == without.towers


def test_what_is_there_is_not_done_again(plan: Plan, made: Path, said: list[str]):
    said.clear()
    stamps = {path: path.stat().st_mtime_ns for path in made.glob("runs/*/measured/*")}
    assert len(stamps) == 2
    Ablation(plan, said.append).run()
    assert said == ["2 of 2 runs are there already"]
    assert stamps == {path: path.stat().st_mtime_ns for path in made.glob("runs/*/measured/*")}


def test_trivial_answers_are_scored_once_for_the_same_data(
    plan: Plan, made: Path, monkeypatch: pytest.MonkeyPatch
):
    before = (made / "icl.json").read_text()
    with monkeypatch.context() as patched:
        patched.setattr("promptris.experiments.ablation.score_baselines", None)
        Ablation(plan, lambda _: None).run()
    assert json.loads((made / "icl.json").read_text())["baselines"] == json.loads(before)["baselines"]
    (stored,) = (made / "baselines").glob("*.json")
    content = stored.read_text()
    stored.write_text(json.dumps(json.loads(content) | {"data": "other", "trivial": {}}))
    Ablation(plan, lambda _: None).run()
    assert stored.read_text() == content


def test_another_recipe_needs_another_folder(plan: Plan, made: Path):
    with pytest.raises(InputError, match="runs of another recipe"):
        Ablation(replace(plan, recipe=replace(plan.recipe, seed=9)), print).run()
    half = replace(plan.recipe, engine=replace(plan.recipe.engine, precision="bf16"))
    with pytest.raises(InputError, match="runs of another recipe"):
        Ablation(replace(plan, recipe=half), print).run()
    with pytest.raises(InputError, match="has 2 scenes, not 3"):
        Ablation(replace(plan, scenes=3), print).run()


def test_it_may_be_computed_otherwise_and_from_elsewhere(
    plan: Plan, made: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(made.parent)
    engine = replace(plan.recipe.engine, workers=1, checkpoint_seconds=9.0)
    said.clear()
    changed = replace(plan, out=Path(made.name), recipe=replace(plan.recipe, engine=engine))
    results, _ = Ablation(changed, said.append).run()
    assert said == ["2 of 2 runs are there already"] and len(results) == 1


def test_two_commands_in_one_folder_are_refused(plan: Plan, made: Path):
    with FileLock(made / ".lock"), pytest.raises(InputError, match="another command is at work"):
        Ablation(plan, print).run()


def test_a_measurement_of_another_model_or_of_other_data_does_not_count(plan: Plan, made: Path):
    recipe = load_recipe(str(made / "recipe.yaml"))
    tasks = {task.name: task for task in Ablation(plan, print).tasks(recipe)}
    task = tasks["full-seed3"]
    assert not task.missing
    (job,) = task.jobs
    assert replace(task, jobs=(replace(job, data="other"),)).missing
    weights = task.folder / "run" / "model" / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert task.missing == [job]
    finally:
        weights.write_bytes(content)
    result = task.folder / "run" / "result.json"
    result.rename(task.folder / "aside.json")
    try:
        assert task.missing == [job]
    finally:
        (task.folder / "aside.json").rename(result)
    assert not task.missing


def test_weights_are_needed_only_while_something_is_not_measured(plan: Plan, made: Path, tmp_path: Path):
    """Of a finished run, what it measured is enough; what is asked for later trains it again."""
    recipe = load_recipe(str(made / "recipe.yaml"))
    tasks = {task.name: task for task in Ablation(plan, print).tasks(recipe)}
    task = tasks["cmp-sam-seed3"]
    folder = tmp_path / "cmp-sam-seed3"
    for name in ("trained.json", "run/result.json", *(job.file_name for job in task.jobs)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(task.folder / name, folder / name)
    moved = replace(task, folder=folder)
    assert not moved.missing and moved.model_stamp() == task.model_stamp()
    (folder / task.jobs[0].file_name).unlink()
    Worker(moved).run()
    assert not moved.missing and (folder / "run" / "model" / "model.safetensors").is_file()
    assert moved.model_stamp() == task.model_stamp()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.prompting.direction=v2l", "direction is not both"),
        ("--model.sam_prompts.enabled=[mask]", "leaves prompts out"),
        ("--train.icl_weight=0", "icl_weight is 0"),
        ("--train.tune_towers=true", "tune_towers is set"),
        ("--train.stages=[{epochs: 1, sam: false}]", "no stage has SAM"),
    ],
)
def test_the_recipe_must_be_of_the_whole_method(plan: Plan, option: str, words: str):
    with pytest.raises(InputError, match=words):
        Ablation(replace(plan, recipe=load_recipe("refshapes-smoke", [option])), print)


def test_a_row_whose_run_failed_is_left_out_and_named(
    plan: Plan, made: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = made / "runs" / "cmp-sam-seed3"
    folder.rename(folder.with_name("aside"))
    monkeypatch.setattr("promptris.experiments.ablation.Runner.run", lambda self, tasks: [])
    try:
        results, _ = Ablation(plan, lambda _: None).run()
    finally:
        folder.with_name("aside").rename(folder)
    assert [row.label for row in results[0].table.rows] == ["with ICL"]
    assert "Not shown, because a run failed: without ICL." in (made / "icl.md").read_text()
    monkeypatch.undo()
    Ablation(plan, lambda _: None).run()
    assert "| without ICL |" in (made / "icl.md").read_text()


def test_a_folder_with_other_things_is_refused(plan: Plan, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds no experiments"):
        Ablation(replace(plan, out=tmp_path), print).run()


def test_runs_are_shared_between_tables(plan: Plan, tmp_path: Path):
    """Eleven models for all tables, and one method without training; on RefShapes, Table 2 needs none of its own."""
    everything = replace(plan, tables=tuple(get_tables(["all"])), seeds=(0, 1), out=tmp_path)
    ablation = Ablation(everything, print)
    for split in ablation._all_splits():
        make_test_scenes(tmp_path / "tests", Path(str(split.root)).name, 1, 128)
    tasks = ablation.tasks(everything.recipe)
    trained = {task.name for task in tasks if task.recipe is not None}
    names = ("clip", "v2l", "l2v", "cmp", "cmp-icl", "cmp-sam", "full", "tuned-towers")
    names += tuple(f"from-{quarter}-quarters" for quarter in (1, 2, 3))
    assert trained == {f"{name}-seed{seed}" for name in names for seed in (0, 1)}
    assert [task.name for task in tasks if task.recipe is None] == ["mask-classification"]
    (full,) = (task for task in tasks if task.name == "full-seed0")
    files = [job.file_name for job in full.jobs]
    assert len(files) == len(set(files)) == 4 + 7  # four sets of scenes, seven other subsets of prompts


def test_a_run_that_fails_is_named_and_does_not_stop_the_others(tmp_path: Path):
    split = MeasuredSplit("val", "refshapes", str(tmp_path / "nowhere"), ("val",))
    tasks = [
        Task(name, tmp_path / name, tmp_path / "missing.yaml", ("c", "s"), "cpu", (Job(split),))
        for name in ("a", "b")
    ]
    said: list[str] = []
    outcomes = Runner(1, said.append).run(tasks)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert sum("failed, see" in sentence for sentence in said) == 2
    assert "cannot read the recipe" in (tmp_path / "a" / "log.txt").read_text()
    assert "Traceback" not in (tmp_path / "a" / "log.txt").read_text()


def test_a_task_survives_its_file(tmp_path: Path):
    split = MeasuredSplit("seen", "refcoco", "data", ("testA", "testB"), "unc", "seen", "refcoco/test/seen")
    task = Task(
        "t", tmp_path, None, ("clip", "sam"), "cpu", (Job(split), Job(split, ("mask",)), Job(split, ()))
    )
    task.save(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == task
    assert len({job.file_name for job in task.jobs}) == 3


def test_test_scenes_are_made_once_and_never_replaced(tmp_path: Path):
    make_test_scenes(tmp_path, "unseen", 2, 128)
    path = tmp_path / "unseen" / "refshapes" / "refs(unc).p"
    stamp = path.stat().st_mtime_ns
    make_test_scenes(tmp_path, "unseen", 2, 128)
    assert path.stat().st_mtime_ns == stamp
    world = json.loads((tmp_path / "unseen" / "refshapes" / "world.json").read_text())
    assert world["options"]["categories"] == "unseen" and world["seed"] == 777


def test_markdown_is_the_same_every_time(plan: Plan, made: Path):
    results, _ = Ablation(plan, lambda _: None).run()
    assert to_markdown(results[0]) == (made / "icl.md").read_text()
