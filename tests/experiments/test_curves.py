"""Curves of training: what is read, how it is smoothed, and what is drawn where."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from promptris.errors import InputError, MissingExtraError
from promptris.experiments.curves import (
    default_window,
    draw_curves,
    read_run,
    read_runs,
    run_labels,
    short_step,
    smooth,
    write_curves,
)
from promptris.interfaces.pictures import curves_command
from promptris.training.callbacks import MetricsFile, StepRecord
from promptris.training.step_table import StepTable
from promptris.training.validation import COLUMNS

NAN = float("nan")


def write_run(
    folder: Path, steps: int = 6, second_stage: int = 4, scale: float = 1.0, validation: bool = True
) -> Path:
    """A run as training writes it: a term that falls from `scale`, another one from `second_stage` on."""
    folder.mkdir(parents=True)
    table = MetricsFile(folder / "metrics.csv", ("coarse_bce", "final_bce"))
    for step in range(1, steps + 1):
        stage = int(step >= second_stage)
        losses = {"coarse_bce": scale / step} | ({"final_bce": 2.0} if stage else {})
        losses["loss"] = sum(losses.values())
        table(StepRecord(step, steps, stage, losses, 0.01 * step, 0.1, 4, 2**20))
    if validation:
        scores = StepTable(folder / "validation.csv", [*COLUMNS, *(f"coarse_{n}" for n in COLUMNS[1:])])
        for step, value in ((2, 0.25), (4, 0.75), (6, 0.5)):
            row = dict.fromkeys(COLUMNS, f"{value}") | {f"coarse_{n}": f"{value / 2}" for n in COLUMNS[1:]}
            scores.append(row | {"step": step})
    return folder


# ---------------------------------------------------------------------------------------------------- reading


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), "mine")
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.terms == ["coarse_bce", "final_bce"]
    np.testing.assert_allclose(run.series["lr"], [0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    np.testing.assert_allclose(run.series["coarse_bce"], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6], rtol=1e-5)
    np.testing.assert_array_equal(run.series["final_bce"], [NAN, NAN, NAN, 2, 2, 2])
    assert run.boundaries == [(3.5, 1)]
    assert run.validation_steps.tolist() == [2, 4, 6]
    assert run.validation["final"].tolist() == [0.25, 0.75, 0.5]
    assert run.validation["coarse"].tolist() == [0.125, 0.375, 0.25]
    assert run.best_validation == (4, 0.75)


def test_a_run_without_validation_or_stages(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,3\n2,inf\n")
    run = read_run(tmp_path, "x")
    assert (run.boundaries, run.best_validation, run.terms) == ([], None, [])
    assert list(run.series) == ["loss"]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,stage,loss\n1,0,3\n2,0")
    assert read_run(tmp_path, "x").steps.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("step,stage,loss\n", "no step yet"),
        ("step,loss\n1", "no step yet"),
        ("", "no column 'step'"),
        ("step,stage\n1,0\n", "no column 'loss'"),
        ("step,loss\n1,2\n2,many\n3,4\n", r"line 3 of .*metrics\.csv is not 2 numbers"),
        ("step,loss\n1,2,3\n", "line 2"),
        ("step,loss\n,2\n", "without a step"),
        ("step,loss\n1,\udcff\n", r"cannot read .*metrics\.csv"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "metrics.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=words):
        read_run(tmp_path, "x")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} has no metrics\.csv"):
        read_runs([tmp_path])
    with pytest.raises(InputError, match="nowhere is no folder"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no run"):
        read_runs([])


def test_labels_are_as_long_as_needed() -> None:
    paths = [Path("/runs/quick/towers/clip"), Path("/runs/tiny/towers/clip")]
    assert run_labels(paths) == ["quick/towers/clip", "tiny/towers/clip"]
    assert run_labels([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert run_labels([Path("/")]) == ["/"]


def test_a_run_named_twice_is_drawn_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert [run.label for run in read_runs([folder, tmp_path / "run" / ".." / "run"])] == ["run"]


# -------------------------------------------------------------------------------------------------- smoothing


def test_smoothing_by_hand() -> None:
    values, stages = np.array([0.0, 3, 6, 9, 100, 200]), np.array([0, 0, 0, 0, 1, 1])
    # Three steps around each, cut off at the ends of a stage; the stages do not mix.
    assert smooth(values, stages, 3).tolist() == [1.5, 3, 6, 7.5, 150, 150]
    assert smooth(values, stages, 2).tolist() == [0, 1.5, 4.5, 7.5, 100, 150]
    assert smooth(values, stages, 1).tolist() == values.tolist()
    assert smooth(values, stages, 1000).tolist() == [4.5] * 4 + [150] * 2


def test_smoothing_passes_over_what_is_no_number() -> None:
    values, stages = np.array([NAN, 2, float("inf"), 4, NAN, NAN]), np.zeros(6, int)
    np.testing.assert_array_equal(smooth(values, stages, 3), [2, 2, 3, 4, 4, NAN])


def test_the_usual_window_is_a_fiftieth(tmp_path: Path) -> None:
    write_run(tmp_path / "long", steps=200)
    write_run(tmp_path / "short", steps=5)
    assert default_window(read_runs([tmp_path / "short", tmp_path / "long"])) == 4
    assert default_window(read_runs([tmp_path / "short"])) == 1


# ---------------------------------------------------------------------------------------------------- drawing


def axes_of(figure: Any) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines(axes: Any, color: str) -> list[Any]:
    return [line for line in axes.lines if line.get_color() == color and len(line.get_xdata()) > 2]


BLUE, VERMILION = "#0072b2", "#d55e00"


def test_every_quantity_has_its_panel(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", scale=2.0)])
    panels = axes_of(draw_curves(runs, window=3))
    assert list(panels) == ["loss", "learning rate", "validation mIoU, %", "coarse_bce", "final_bce"]
    raw, means = lines(panels["coarse_bce"], BLUE)
    np.testing.assert_array_equal(raw.get_ydata(), runs[0].series["coarse_bce"])
    assert raw.get_alpha() < 0.5 and raw.get_rasterized()
    expected = smooth(runs[0].series["coarse_bce"], runs[0].stages, 3)
    # The line is broken between the stages.
    np.testing.assert_allclose(means.get_ydata(), [*expected[:3], NAN, *expected[3:]])
    assert len(lines(panels["coarse_bce"], VERMILION)) == 2
    (rate,) = lines(panels["learning rate"], BLUE)
    np.testing.assert_allclose(rate.get_ydata(), runs[0].series["lr"])
    coarse, final = lines(panels["validation mIoU, %"], BLUE)
    assert coarse.get_ydata().tolist() == [12.5, 37.5, 25]
    assert final.get_ydata().tolist() == [25, 75, 50]
    assert "75.0" in [text.get_text() for text in panels["validation mIoU, %"].texts]
    assert {axes.get_xlim() for axes in panels.values()} == {(0, 6)}


def test_without_smoothing_there_is_one_line(tmp_path: Path) -> None:
    panels = axes_of(draw_curves(read_runs([write_run(tmp_path / "a")]), window=1))
    assert len(lines(panels["loss"], BLUE)) == 1


def stage_lines(axes: Any) -> list[tuple[float, str]]:
    return [(line.get_xdata()[0], line.get_color()) for line in axes.lines if len(line.get_xdata()) == 2]


def test_stages_are_marked(tmp_path: Path) -> None:
    same = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b")])
    panels = axes_of(draw_curves(same, 1))
    for axes in panels.values():
        ((step, color),) = stage_lines(axes)
        assert step == 3.5 and color not in (BLUE, VERMILION)
    assert [text.get_text() for text in panels["loss"].texts] == ["stage 2"]
    other = [*same[:1], *read_runs([write_run(tmp_path / "c", second_stage=3)])]
    assert stage_lines(axes_of(draw_curves(other, 1))["loss"]) == [(3.5, BLUE), (2.5, VERMILION)]


def test_runs_are_named_as_they_are(tmp_path: Path) -> None:
    names = ["_hidden", "cost$5_$6", "plain"]
    runs = read_runs([write_run(tmp_path / name, validation=False) for name in names])
    figure = draw_curves(runs, 1)
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())
    assert "validation mIoU, %" not in axes_of(figure)
    write_curves(runs, tmp_path / "curves.png")


def test_runs_with_other_terms_share_what_they_share(tmp_path: Path) -> None:
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam" / "metrics.csv").write_text(
        "step,stage,loss,lr,dice\n1,0,2,0.1,1\n2,0,1,0.1,0.5\n3,0,1,0.1,0\n"
    )
    runs = read_runs([write_run(tmp_path / "ris"), tmp_path / "sam"])
    panels = axes_of(draw_curves(runs, 1))
    assert list(panels)[3:] == ["coarse_bce", "final_bce", "dice"]
    assert (len(lines(panels["dice"], BLUE)), len(lines(panels["dice"], VERMILION))) == (0, 1)


def test_a_single_peak_does_not_flatten_the_curve(tmp_path: Path) -> None:
    rows = [f"{step},{1000 if step == 50 else 1}" for step in range(1, 1001)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,loss", *rows]))
    axes = axes_of(draw_curves(read_runs([tmp_path]), 20))["loss"]
    low, high = axes.get_ylim()
    assert low == 0 and 50 < high < 100  # the mean over 20 steps reaches 51


def test_a_loss_without_numbers_still_draws(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,stage,loss,lr,bce\n1,0,nan,0.1,\n")
    write_curves(read_runs([tmp_path]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_more_runs_than_colours_differ_in_their_lines(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / f"r{n}", validation=False) for n in range(9)])
    (legend,) = draw_curves(runs, 1).legends
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == 9


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_every_format_repeats_its_bytes(tmp_path: Path, ending: str, start: bytes) -> None:
    runs = read_runs([write_run(tmp_path / "run")])
    for name in ("a", "b"):
        write_curves(runs, tmp_path / "plots" / f"{name}.{ending}")
    content = (tmp_path / "plots" / f"a.{ending}").read_bytes()
    assert content.startswith(start)
    assert content == (tmp_path / "plots" / f"b.{ending}").read_bytes()
    if ending == "png":
        with Image.open(tmp_path / "plots" / "a.png") as picture:
            assert picture.width == round(11.5 * 160)
            assert len(picture.convert("RGB").getcolors(2**24) or ()) > 20


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read_runs([write_run(tmp_path / "run")])
    with pytest.raises(InputError, match=r"curves\.gif has no ending.*\.svg"):
        write_curves(runs, tmp_path / "curves.gif")
    with pytest.raises(InputError, match="0 steps"):
        write_curves(runs, tmp_path / "curves.png", 0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed.*promptris\[experiments\]"):
        write_curves(runs, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_drawing_touches_neither_pyplot_nor_the_settings(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    write_curves(read_runs([write_run(tmp_path / "run")]), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_steps_are_written_short() -> None:
    assert [short_step(step) for step in (0, 500, 2000, 12000, 1.5e6)] == ["0", "500", "2000", "12k", "1.5M"]


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command("curves")(curves_command)
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", validation=False)]
    result = CliRunner().invoke(app, [*map(str, folders), "--out", str(tmp_path / "c.svg"), "--smooth", "1"])
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["a"] == ["6", "2.167", "75.0", "4"]  # 1/6 + 2
    assert rows["b"] == ["6", "2.167", "-", "-"]
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = CliRunner().invoke(app, [str(empty), "--out", str(tmp_path / "d.png")])
    assert isinstance(refused.exception, InputError) and not (tmp_path / "d.png").exists()
