"""Tables as data: their variants, their splits, and the paper's numbers found for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptris.errors import InputError
from promptris.experiments.measurements import METRICS
from promptris.experiments.results import paper_figures, paper_tables
from promptris.experiments.splits import MeasuredSplit, measured_splits
from promptris.experiments.tables import CLIP, CMP_SAM, FULL, TABLES, TUNED, Variant, get_tables
from promptris.training.data import prepare_data
from promptris.training.recipes import dump_recipe, load_recipe


def test_variants_change_what_they_say_and_leave_the_recipe_alone():
    recipe = load_recipe("refshapes-ablation")
    before = dump_recipe(recipe)
    clip, full, sam = (variant.applied_to(recipe) for variant in (CLIP, FULL, CMP_SAM))
    assert dump_recipe(recipe) == before == dump_recipe(full)
    assert clip.model.prompting.direction == "none" and clip.train.icl_weight == 0
    assert [stage.sam for stage in clip.train.stages] == [False, False]
    assert [stage.epochs for stage in clip.train.stages] == [stage.epochs for stage in recipe.train.stages]
    assert sam.train.icl_weight == 0 and [stage.sam for stage in sam.train.stages] == [False, True]
    tuned = TUNED.applied_to(recipe)
    assert tuned.train.tune_towers and tuned.save_full
    assert Variant("x", seen_only=True).applied_to(recipe).data.categories == "seen"


def test_orderings_are_about_rows_that_are_there_and_the_paper_agrees_with_them():
    """A claim is only a claim of the paper if its own numbers say so."""
    recipe = load_recipe("refcoco-combined", ["--data.root=nowhere"])
    for table in TABLES.values():
        labels = {row.label: row for row in table.rows}
        assert len(labels) == len(table.rows)
        assert set(table.metrics) <= set(METRICS)
        for ordering in table.orderings:
            worse, better = labels[ordering.worse], labels[ordering.better]
            if not table.claimed_by_paper(ordering):
                assert worse.paper is None or better.paper is None
                continue
            for split in measured_splits(recipe, table.where, Path("tests")):
                first, second = paper_figures(table, worse, split), paper_figures(table, better, split)
                gain = 0.0
                for sign, metric in zip((1, -1), ordering.metric.split(" - "), strict=False):
                    if metric in first:
                        gain += sign * (second[metric] - first[metric])
                    else:
                        assert table.name == "icl"
                        gain = 1.0
                assert gain > 0, (table.name, ordering)


def test_the_papers_own_row_is_found_on_every_split():
    recipe = load_recipe("refcoco-combined", ["--data.root=nowhere"])
    table1, table2 = get_tables(["table1", "table2"])
    ours = {row.label: row for row in table1.rows}["Prompt-RIS"]
    splits = measured_splits(recipe, table1.where, Path("tests"))
    assert [split.paper for split in splits] == paper_tables()["table1"]["columns"]
    assert paper_figures(table1, ours, splits[1]) == {"oIoU": 80.37, "mIoU": 81.21}
    ours = {row.label: row for row in table2.rows}["Prompt-RIS"]
    splits = measured_splits(recipe, table2.where, Path("tests"))
    assert [split.paper for split in splits] == paper_tables()["table2"]["columns"]
    assert paper_figures(table2, ours, splits[3]) == {"mIoU": 62.02}
    assert splits[3].splits == ("testA", "testB") and splits[3].categories == "unseen"


def test_table_5_has_all_eight_subsets_of_one_model():
    (table,) = get_tables(["table5"])
    assert {row.prompts for row in table.rows} == {
        (),
        ("mask",),
        ("point",),
        ("text",),
        ("mask", "point"),
        ("mask", "text"),
        ("point", "text"),
        ("mask", "point", "text"),
    }
    assert {row.variant for row in table.rows} == {FULL}


def test_splits_follow_the_recipe():
    def labels(recipe: str, where, *options: str) -> list[str]:
        return [s.label for s in measured_splits(load_recipe(recipe, options), where, Path("t"))]

    assert labels("refshapes-ablation", "main") == ["standard"]
    assert labels("refshapes-ablation", "all") == ["easy", "standard", "hard"]
    assert labels("refshapes-ablation", "seen and unseen") == ["seen", "unseen"]
    assert labels("refcoco", "main", "--data.root=d") == ["refcoco val"]
    assert labels("refcocog", "all", "--data.root=d") == ["refcocog val", "refcocog test"]
    google = "--data.split_by=google"
    assert labels("refcocog", "all", "--data.root=d", google) == ["refcocog google val"]
    assert len(labels("refcoco-combined", "all", "--data.root=d")) == 9
    assert labels("own-data", "all", "--data.name=my/desk") == ["desk val"]
    with pytest.raises(InputError, match="seen and unseen categories are told, not for my/desk"):
        labels("own-data", "seen and unseen", "--data.name=my/desk")


def test_a_data_set_without_a_partition_is_measured_in_the_one_that_is_trained_on():
    """Training reads umd then; google's val lies in umd's train split."""
    recipe = load_recipe("refcocog", ["--data.root=d", "--data.split_by=null"])
    assert recipe.data.split_by is None
    for where in ("main", "all", "seen and unseen"):
        found = measured_splits(recipe, where, Path("t"))
        assert {split.split_by for split in found} == {"umd"}, where
    everything = measured_splits(load_recipe("refcoco-combined", ["--data.root=d"]), "all", Path("t"))
    assert [s.label for s in everything if s.name == "refcocog"] == [
        *("refcocog google val", "refcocog val", "refcocog test")
    ]


def test_table_2_says_which_partition_it_needs():
    """The recipe `seen` names RefCOCO's partition, which RefCOCOg does not have; its categories are not to blame."""
    recipe = load_recipe("seen", ["--data.root=d", "--data.name=refcocog"])
    with pytest.raises(InputError, match=r"partition google or umd.*'unc'.*--data\.split_by=umd"):
        measured_splits(recipe, "seen and unseen", Path("t"))


def test_the_main_split_is_the_recipes_validation_split():
    def main(*options: str) -> tuple[str, str | None, str | None]:
        (found,) = measured_splits(
            load_recipe("refcoco-combined", ["--data.root=d", *options]), "main", Path("t")
        )
        return found.label, found.split_by, found.paper

    assert main() == ("refcoco val", "unc", "refcoco/val")
    assert main("--data.val_name=null") == ("refcoco val", "unc", "refcoco/val")
    chosen = ("--data.val_name=refcocog", "--data.val_split=test")
    assert main(*chosen) == ("refcocog test", "umd", "refcocog/test_umd")
    assert main("--data.val_split=testA") == ("refcoco testA", "unc", "refcoco/testA")
    assert main("--data.val_name=my/desk") == ("desk val", None, None)
    # It is the same measurement as that of Table 1.
    recipe = load_recipe("refcoco-combined", ["--data.root=d", "--data.val_split=testA"])
    assert measured_splits(recipe, "main", Path("t"))[0] in measured_splits(recipe, "all", Path("t"))


def test_the_papers_figures_stand_beside_the_split_that_they_are_of():
    tables = get_tables(["table3", "table4", "table5", "icl"])
    on_val = MeasuredSplit("refcoco val", "refcoco", "d", ("val",), "unc", paper="refcoco/val")
    elsewhere = (
        MeasuredSplit("refcocog val", "refcocog", "d", ("val",), "umd", paper="refcocog/val_umd"),
        MeasuredSplit("refcoco testA", "refcoco", "d", ("testA",), "unc", paper="refcoco/testA"),
        MeasuredSplit("desk val", "my/desk", None, ("val",)),
    )
    scenes = MeasuredSplit("standard", "refshapes", "t/standard", ("test",))
    for table in tables:
        row = table.rows[-1]
        assert paper_figures(table, row, on_val) == paper_figures(table, row, scenes) != {}
        assert [paper_figures(table, row, split) for split in elsewhere] == [{}, {}, {}]


def test_another_training_set_than_the_papers_is_told():
    def told(recipe: str, where, *options: str) -> set[str]:
        found = measured_splits(load_recipe(recipe, ["--data.root=d", *options]), where, Path("t"))
        return {split.other_training for split in found}

    assert told("refcoco-combined", "all") == {""}
    assert told("refcoco-combined", "all", "--data.categories=seen") == {
        "refcoco-combined, seen categories only"
    }
    assert told("refcoco-combined", "seen and unseen", "--data.categories=seen") == {""}
    assert told("refcoco", "main") == told("seen", "seen and unseen") == {"refcoco"}
    assert told("seen", "main") == {"refcoco, seen categories only"}
    assert told("own-data", "main", "--data.name=my/desk") == {""}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Own data: twenty photos of a mug, without splits."""
    folder = tmp_path / "desk"
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for number in range(20):
        Image.new("RGB", (12, 8), (90, 10 * number, 30)).save(folder / f"{number}.png")
        mask = np.zeros((8, 12), dtype=np.uint8)
        mask[2:5, 3:9] = 255
        Image.fromarray(mask).save(folder / f"mask{number}.png")
        lines.append({"image": f"{number}.png", "mask": f"mask{number}.png", "expression": "the mug"})
    (folder / "expressions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("broken", [False, True])
def test_what_training_held_out_is_what_is_measured(desk: Path, tmp_path: Path, broken: bool):
    if broken:  # which images are drawn depends on what is left out
        (desk / "mask3.png").write_bytes(b"")
    recipe = load_recipe(
        "own-data",
        [f"--data.name={desk}", "--data.val_share=0.2", f"--data.skip_broken={str(broken).lower()}"],
    )
    training, validation = prepare_data(recipe.data, tmp_path / "out")
    (split,) = measured_splits(recipe, "main", tmp_path)
    split = MeasuredSplit.from_dict(json.loads(json.dumps(split.to_dict())))
    dataset, name = split.open()
    assert dataset.image_ids(name) == validation.image_ids(recipe.data.val_split)
    assert len(dataset.image_ids(name)) == 4
    assert not set(dataset.image_ids(name)) & set(training.image_ids(recipe.data.train_split))
    other = load_recipe("own-data", [f"--data.name={desk}", "--data.val_share=0.3"])
    assert measured_splits(other, "main", tmp_path)[0].key != split.key


def test_generalised_data_are_refused(tmp_path: Path):
    folder = tmp_path / "grefcoco"
    folder.mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.jpg")
    square = {"image_id": 7, "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    instances = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [square | {"id": 10}, square | {"id": 11}],
        "categories": [{"id": 3, "name": "boat"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))

    def ref(number: int, split: str, ann_ids: list[int]) -> dict[str, Any]:
        sentence = {"sent_id": number, "sent": "boats", "raw": "boats", "tokens": ["boats"]}
        return {
            "ref_id": number,
            "ann_id": ann_ids,
            "category_id": [3] * len(ann_ids),
            "image_id": 7,
            "split": split,
            "no_target": not ann_ids,
            "sent_ids": [number],
            "sentences": [sentence],
        }

    refs = [ref(1, "train", [10, 11]), ref(2, "val", [10]), ref(3, "testA", [10, 11]), ref(4, "testB", [-1])]
    refs[3]["no_target"] = True
    (folder / "grefs(unc).json").write_text(json.dumps(refs))

    def opened(split: str) -> int:
        return len(MeasuredSplit(split, "grefcoco", str(tmp_path), (split,)).open()[0].samples(split))

    assert opened("val") == 1
    for split in ("testA", "testB"):
        with pytest.raises(InputError, match=f"grefcoco {split} has expressions that mean several"):
            opened(split)


def test_tables_are_asked_for_by_name():
    assert [table.name for table in get_tables(["all"])] == list(TABLES)
    assert [table.name for table in get_tables(["icl", "table3", "icl"])] == ["icl", "table3"]
    with pytest.raises(InputError, match=r"'table9'.*table1"):
        get_tables(["table9"])


def test_every_measured_split_of_refshapes_is_another_set_of_scenes():
    recipe = load_recipe("refshapes-ablation")
    everything = measured_splits(recipe, "everything", Path("tests"))
    assert [split.label for split in everything] == ["standard", "easy", "hard", "unseen"]
    assert len({split.key for split in everything}) == 4
    # The standard scenes are the seen ones of Table 2, under either name.
    seen, unseen = measured_splits(recipe, "seen and unseen", Path("tests"))
    assert (seen.key, unseen.key) == (everything[0].key, everything[3].key)


@pytest.mark.parametrize(
    ("recipe", "layers"), [("refshapes-ablation", [1, 2, 3]), ("refcoco-combined", [3, 6, 9])]
)
def test_prompting_starts_later_in_proportion_to_the_towers(recipe, layers):
    start = TABLES["start"]
    found = [
        row.variant.applied_to(load_recipe(recipe)).model.prompting.first_layer for row in start.rows[1:]
    ]
    assert found == layers and start.rows[0].variant is FULL
