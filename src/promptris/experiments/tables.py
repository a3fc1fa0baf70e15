"""The paper's tables as data: which models they need, their rows, and the orderings they claim."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from promptris.config import PROMPT_NAMES, PromptName
from promptris.errors import InputError
from promptris.modeling.presets import get_preset
from promptris.training.config import Recipe

Where = Literal["main", "all", "seen and unseen", "everything"]
PAPER_LAYERS = 12
STRICT = "P@0.9 - P@0.5"
"""How much more is gained at the strict threshold than at the loose one."""


@dataclass(frozen=True)
class Variant:
    """A model to train: what it changes in a recipe.

    Attributes:
        name: short, of its runs' folders.
        direction: of cross-modal prompting (Table 4).
        icl: instance contrastive learning.
        sam: SAM and its prompts; without them all stages train the coarse mask alone.
        tuned_towers: train CLIP and SAM too.
        seen_only: train on referents of seen categories (Table 2); RefShapes has no others to train on.
        unprompted: share of CLIP's layers, from the first on, that run without prompts.
    """

    name: str
    direction: Literal["both", "v2l", "l2v", "none"] = "both"
    icl: bool = True
    sam: bool = True
    tuned_towers: bool = False
    seen_only: bool = False
    unprompted: float = 0.0

    def applied_to(self, recipe: Recipe) -> Recipe:
        """The recipe of this variant; the given one stays as it is."""
        changed = copy.deepcopy(recipe)
        changed.model.prompting.direction = self.direction
        if not self.icl:
            changed.train.icl_weight = 0.0
        if not self.sam:
            # As many steps as with SAM, so that a row is not better for having learnt longer.
            changed.train.stages = tuple(replace(stage, sam=False) for stage in changed.train.stages)
        if self.tuned_towers:
            changed.train.tune_towers = changed.save_full = True
        if self.seen_only:
            changed.data.categories = "seen"
        if self.unprompted:
            layers = get_preset(recipe.towers.preset).text.get("num_hidden_layers", PAPER_LAYERS)
            changed.model.prompting.first_layer = round(self.unprompted * layers)
        return changed


CLIP = Variant("clip", direction="none", icl=False, sam=False)
V2L = Variant("v2l", direction="v2l", icl=False, sam=False)
L2V = Variant("l2v", direction="l2v", icl=False, sam=False)
CMP = Variant("cmp", icl=False, sam=False)
CMP_ICL = Variant("cmp-icl", sam=False)
CMP_SAM = Variant("cmp-sam", icl=False)
FULL = Variant("full")
TUNED = Variant("tuned-towers", tuned_towers=True)
LATE = tuple(Variant(f"from-{quarter}-quarters", unprompted=quarter / 4) for quarter in (1, 2, 3))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: what it is called.
        variant: the model; None for a method that is not trained.
        paper: its key in the paper's table; None where the paper has no such row.
        prompts: SAM prompts used when it is measured; None means all.
        method: "model", or "proposals" for mask classification by the towers alone.
        masks: which of the model's masks count.
    """

    label: str
    variant: Variant | None
    paper: str | None = None
    prompts: tuple[PromptName, ...] | None = None
    method: Literal["model", "proposals"] = "model"
    masks: Literal["final", "coarse"] = "final"


@dataclass(frozen=True)
class Ordering:
    """A claim: the second row is better than the first by a metric. The paper's where both rows are in it."""

    worse: str
    better: str
    metric: str = "mIoU"


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: as on the command line.
        title: what it shows.
        rows: from top to bottom.
        metrics: columns of each split.
        where: the splits: the recipe's main one, all of them, referents of seen and of unseen categories, or all of
            these.
        orderings: what is claimed about the rows.
        notes: about protocols, printed below.
        tags: the mIoU is told by these, too, where the data tell them of expressions (RefShapes).
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    where: Where = "main"
    orderings: tuple[Ordering, ...] = ()
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def claimed_by_paper(self, ordering: Ordering) -> bool:
        """Whether an ordering is the paper's, which it can be only about rows that the paper has."""
        told = {row.label for row in self.rows if row.paper is not None}
        return {ordering.worse, ordering.better} <= told


def _subset(prompts: tuple[PromptName, ...]) -> Row:
    name = " + ".join(prompts) or "no prompt"
    return Row(name, FULL, "+".join(prompts) or "none", prompts)


def _later(share: str, variant: Variant) -> Row:
    return Row(f"prompts from {share} of the layers on", variant)


def _compared(seen_only: bool) -> tuple[Row, ...]:
    clip, full, tuned = (
        replace(variant, name=f"{variant.name}-seen", seen_only=True) if seen_only else variant
        for variant in (CLIP, FULL, TUNED)
    )
    return (
        Row("mask classification", None, method="proposals"),
        Row("CLIP alone", clip),
        Row("Prompt-RIS", full, "Prompt-RIS"),
        Row("Prompt-RIS, towers trained too", tuned),
    )


_REFERENCES = (
    "Of the paper's rows only that of its own method is here; the others are points of reference that the paper does "
    "not have."
)
_COARSE_ROWS = "Rows without SAM show the coarse mask, trained for as many steps as the others."

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "model",
            "The model that a recipe makes",
            (
                Row("final mask", FULL),
                Row("coarse mask", FULL, masks="coarse"),
                Row("mask classification", None, method="proposals"),
            ),
            ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "ImgAcc", "InstAcc"),
            "everything",
            (
                Ordering("coarse mask", "final mask"),
                Ordering("coarse mask", "final mask", STRICT),
                Ordering("mask classification", "final mask"),
            ),
            tags=("kind", "same_category", "size"),
        ),
        Table(
            "table1",
            "Table 1: the data sets",
            _compared(seen_only=False),
            ("oIoU", "mIoU"),
            "all",
            (Ordering("mask classification", "Prompt-RIS"), Ordering("CLIP alone", "Prompt-RIS")),
            (_REFERENCES, _COARSE_ROWS),
        ),
        Table(
            "table2",
            "Table 2: seen and unseen categories",
            _compared(seen_only=True),
            ("mIoU",),
            "seen and unseen",
            (Ordering("mask classification", "Prompt-RIS"), Ordering("CLIP alone", "Prompt-RIS")),
            (
                _REFERENCES,
                "Rows that are trained were shown referents of seen categories only. The towers' pretraining had no "
                "such bound, and mask classification is the towers alone.",
                _COARSE_ROWS,
            ),
        ),
        Table(
            "table3",
            "Table 3: components",
            (
                Row("CLIP", CLIP, "CLIP"),
                Row("CLIP + CMP", CMP, "CLIP+CMP"),
                Row("CLIP + CMP + ICL", CMP_ICL, "CLIP+CMP+ICL"),
                Row("CLIP + CMP + SAM", CMP_SAM, "CLIP+CMP+SAM"),
                Row("CLIP + CMP + ICL + SAM", FULL, "CLIP+CMP+ICL+SAM"),
            ),
            ("P@0.5", "P@0.7", "P@0.9", "oIoU", "mIoU"),
            "main",
            (
                Ordering("CLIP", "CLIP + CMP"),
                Ordering("CLIP + CMP", "CLIP + CMP + ICL"),
                Ordering("CLIP + CMP", "CLIP + CMP + SAM"),
                Ordering("CLIP + CMP", "CLIP + CMP + SAM", STRICT),
                Ordering("CLIP + CMP + ICL", "CLIP + CMP + ICL + SAM"),
                Ordering("CLIP + CMP + ICL", "CLIP + CMP + ICL + SAM", STRICT),
                Ordering("CLIP + CMP + SAM", "CLIP + CMP + ICL + SAM"),
                Ordering("CLIP + CMP + SAM", "CLIP + CMP + ICL + SAM", "P@0.9"),
            ),
            (_COARSE_ROWS,),
        ),
        Table(
            "table4",
            "Table 4: directions of prompting",
            (
                Row("no prompting", CLIP, "baseline"),
                Row("vision to language", V2L, "V2L"),
                Row("language to vision", L2V, "L2V"),
                Row("both (CMP)", CMP, "CMP"),
            ),
            ("P@0.5", "P@0.7", "P@0.9", "oIoU", "mIoU"),
            "main",
            (
                Ordering("no prompting", "vision to language"),
                Ordering("no prompting", "language to vision"),
                Ordering("vision to language", "language to vision"),
                Ordering("vision to language", "both (CMP)"),
                Ordering("language to vision", "both (CMP)"),
                Ordering("no prompting", "both (CMP)"),
            ),
            ("Coarse masks; no SAM and no contrastive learning in any row.",),
        ),
        Table(
            "table5",
            "Table 5: SAM's prompts, one checkpoint",
            tuple(
                _subset(prompts)
                for prompts in (
                    (),
                    ("mask",),
                    ("point",),
                    ("text",),
                    ("mask", "point"),
                    ("mask", "text"),
                    ("point", "text"),
                    PROMPT_NAMES,
                )
            ),
            ("P@0.5", "P@0.7", "P@0.9", "oIoU", "mIoU"),
            "main",
            tuple(
                Ordering(worse, better)
                for worse, better in (
                    ("no prompt", "point"),
                    ("point", "mask"),
                    ("mask", "text"),
                    ("mask", "mask + point"),
                    ("mask", "mask + text"),
                    ("text", "mask + text"),
                    ("text", "point + text"),
                    ("mask + point", "mask + point + text"),
                    ("point + text", "mask + point + text"),
                    ("mask + text", "mask + point + text"),
                )
            ),
            (
                "Every row is the same trained model, asked with other prompts.",
                "The paper's ticks are lost in the text copy that its numbers were taken from; the order of its rows "
                "is inferred.",
            ),
        ),
        Table(
            "icl",
            "Instance contrastive learning",
            (Row("without ICL", CMP_SAM, "without"), Row("with ICL", FULL, "with")),
            ("ImgAcc", "InstAcc", "mIoU", "P@0.9"),
            "main",
            tuple(
                Ordering("without ICL", "with ICL", metric)
                for metric in ("ImgAcc", "InstAcc", "mIoU", "P@0.9")
            ),
        ),
        Table(
            "start",
            "Prompting that starts later",
            (
                Row("prompts from the first layer on", FULL),
                *(_later(share, variant) for share, variant in zip(("1/4", "1/2", "3/4"), LATE, strict=True)),
            ),
            ("oIoU", "mIoU", "P@0.5", "P@0.9"),
            "main",
            tuple(
                Ordering(f"prompts from {share} of the layers on", "prompts from the first layer on")
                for share in ("1/4", "1/2", "3/4")
            ),
            (
                "Not in the paper: layers of the image tower that are not prompted run once per image, not once per "
                "expression.",
            ),
        ),
    )
}


def get_tables(names: Sequence[str]) -> list[Table]:
    """Tables by name; "all" stands for every one.

    Raises:
        InputError: naming one that does not exist.
    """
    for name in names:
        if name not in TABLES and name != "all":
            raise InputError(f"there is no table {name!r}: choose from {', '.join(TABLES)}, or all")
    return [TABLES[name] for name in (TABLES if "all" in names else dict.fromkeys(names))]
