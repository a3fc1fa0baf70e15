"""`promptris ablate`: what is asked for reaches the plan, and what cannot be is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promptris.experiments.ablation import Plan


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Plans that commands asked for; nothing is done about them."""
    asked: list[Plan] = []

    class Recorded:
        def __init__(self, plan: Plan, notify: Any) -> None:
            asked.append(plan)

        def run(self) -> tuple[list[Any], list[Any]]:
            return [], []

    monkeypatch.setattr("promptris.experiments.ablation.Ablation", Recorded)
    return asked


def test_options_reach_the_plan(promptris: Any, plans: list[Plan]) -> None:
    run = promptris(
        *("ablate", "icl", "table4", "--recipe", "refshapes-smoke", "--seeds", "3,1", "--scenes", "7"),
        *("--out", "x", "--train.lr", "2e-4", "--parallel", "2"),
    )
    assert run.code == 0
    (plan,) = plans
    assert [table.name for table in plan.tables] == ["icl", "table4"]
    assert (plan.seeds, plan.scenes, plan.parallel, plan.out) == ((3, 1), 7, 2, Path("x"))
    assert plan.recipe.train.lr == 2e-4
    assert plan.command("icl") == (
        "promptris ablate icl --recipe refshapes-smoke --seeds 3,1 --train.lr 2e-4"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.lr", "1", "--out", "x"], "no table is named"),
        (["table9", "--out", "x"], "'table9'"),
        (["table3", "--train.lr", "2e-4", "table4", "--out", "x"], "table4 stands after other options"),
        (["table3", "--seed", "1", "--out", "x"], "--seeds gives"),
        (["table3", "--seeds", "0,a", "--out", "x"], "'a' is no whole number"),
        (["table3", "--seeds", "1,1", "--out", "x"], "names a seed twice"),
        (["table3", "--device", "abacus", "--out", "x"], "abacus"),
        (["table3", "--recipe", "refshapes-quik", "--out", "x"], "did you mean refshapes-quick"),
        (["table3", "--train.lrr", "1", "--out", "x"], "'train.lr'"),
    ],
)
def test_refusals(promptris: Any, plans: list[Plan], arguments: list[str], words: str) -> None:
    promptris("ablate", *arguments).refused(words)
    assert plans == []
