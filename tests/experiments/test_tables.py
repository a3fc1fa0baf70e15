"""Tables as data: their variants, their splits, and the paper's numbers found for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.errors import InputError
from promptris.experiments.measurements import METRICS
from promptris.experiments.results import paper_figures, paper_tables
from promptris.experiments.splits import measured_splits
from promptris.experiments.tables import CLIP, CMP_SAM, FULL, TABLES, TUNED, Variant, get_tables
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
            if worse.paper is None:
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
    assert len(labels("refcoco-combined", "all", "--data.root=d")) == 9
    assert labels("own-data", "all", "--data.name=my/desk") == ["desk val"]
    with pytest.raises(InputError, match="no seen and unseen"):
        labels("own-data", "seen and unseen", "--data.name=my/desk")


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
