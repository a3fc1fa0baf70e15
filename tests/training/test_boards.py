"""Event files read back, services played by fakes, and boards that fail."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptris.data.records import Expression, ImageRecord, Referent
from promptris.errors import InputError, MissingExtraError
from promptris.evaluation.protocol import Scored
from promptris.prediction import Prediction
from promptris.training.boards import Boards, example_places, examples_of, open_boards, panels_of
from promptris.training.callbacks import StepRecord
from promptris.visualize import COARSE_COLOR, MASK_COLOR, TRUTH_COLOR

CONFIG = {"seed": 3, "train": {"lr": 1e-4, "stages": ({"epochs": 2, "sam": False},)}, "root": Path("data")}
RED = ("the red circle", np.full((8, 12, 3), (200, 10, 10), np.uint8))


def record(step: int, loss: float | None = None) -> StepRecord:
    losses = {"loss": 1 / step if loss is None else loss, "coarse_bce": 0.5}
    return StepRecord(step, 10, 1, losses, lr=1e-3, seconds=0.5, images=4, peak_memory=3 * 2**30)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()


def curve(found: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 4)) for event in found.Scalars(name)]


# ------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_holds_curves_pictures_and_recipe(tmp_path: Path) -> None:
    with open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 0) as boards:
        boards(record(1))
        boards(record(2))
        boards.scalars(2, {"val": {"mIoU": 0.25, "T-acc": None, "by_kind": {"location": {"count": 7}}}})
        boards.pictures(2, [RED, RED])
    found = events(tmp_path)
    assert curve(found, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert curve(found, "train/coarse_bce") == [(1, 0.5), (2, 0.5)]
    assert curve(found, "train/lr") == [(1, 0.001), (2, 0.001)]
    assert curve(found, "machine/images_per_second") == [(1, 8), (2, 8)]
    assert curve(found, "machine/seconds_per_step") == [(1, 0.5), (2, 0.5)]
    assert curve(found, "machine/peak_memory_gib") == [(1, 3), (2, 3)]
    assert curve(found, "val/mIoU") == [(2, 0.25)]
    assert curve(found, "val/by_kind/location/count") == [(2, 7)]
    assert "val/T-acc" not in found.Tags()["scalars"]
    assert found.Tags()["images"] == ["examples/1", "examples/2"]
    picture = found.Images("examples/1")[0]
    assert (picture.step, picture.height, picture.width) == (2, 8, 12)
    assert Image.open(io.BytesIO(picture.encoded_image_string)).getpixel((5, 5)) == (200, 10, 10)
    text = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    lines = text.splitlines()
    assert all(line.startswith("    ") for line in lines)
    assert json.loads(text) == {
        "seed": 3,
        "train": {"lr": 1e-4, "stages": [{"epochs": 2, "sam": False}]},
        "root": "data",
    }


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    killed = open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 0)
    for step in range(1, 7):
        killed(record(step, loss=1.0))
        killed.pictures(step, [RED])
    killed._boards["tensorboard"]._writer.flush()  # as far as the process got; it is not closed
    with open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 4) as boards:
        for step in range(5, 9):
            boards(record(step, loss=2.0))
        boards.pictures(8, [RED])
    found = events(tmp_path)
    assert curve(found, "train/loss") == [(s, 1.0) for s in (1, 2, 3, 4)] + [(s, 2.0) for s in (5, 6, 7, 8)]
    assert [event.step for event in found.Images("examples/1")] == [1, 2, 3, 4, 8]
    assert len(found.Tensors("recipe/text_summary")) == 1


def test_a_run_killed_before_its_first_checkpoint_starts_its_curves_anew(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        boards = open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 0)
        for step in (1, 2):
            boards(record(step, loss=loss))
        boards._boards["tensorboard"]._writer.flush()
    assert curve(events(tmp_path), "train/loss") == [(1, 2.0), (2, 2.0)]


# ----------------------------------------------------------------------------------------------- opening them


def test_no_board_is_a_sink_that_does_nothing(tmp_path: Path) -> None:
    with open_boards([], tmp_path, "tiny", CONFIG, 0) as boards:
        boards(record(1))
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'tensorbord': choose from tensorboard, wandb, mlflow, trackio"):
        open_boards(["tensorboard", "tensorbord"], tmp_path, "tiny", CONFIG, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_service_names_its_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=rf"^engine.log names {name}, .*: pip install {name}, or leave it out$"
    ):
        open_boards([name], tmp_path, "tiny", CONFIG, 5)


def test_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'promptris\[train\]'"):
        open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 0)


def test_a_board_that_cannot_be_opened_stops_a_new_run_only(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(InputError, match=r"^tensorboard cannot be opened \(.*leave it out of engine.log$"):
        open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 0)
    with pytest.warns(UserWarning, match="tensorboard cannot be opened"):
        boards = open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 5)
    boards(record(6))


# ------------------------------------------------------------------------------------------------ their failures


class Recorder:
    """A board that remembers, and fails while told so."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.fails = False
        self.attempts = 0
        self.closed: bool | None = None

    def scalars(self, step: int, values: Any) -> None:
        self.attempts += 1
        if self.fails:
            raise ConnectionError("no route\nto host")
        self.steps.append(step)

    def pictures(self, step: int, panels: Any) -> None:
        self.scalars(step, {})

    def close(self, is_done: bool) -> None:
        self.closed = is_done
        if self.fails:
            raise ConnectionError


def test_a_failing_board_warns_once_and_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("promptris.training.boards.monotonic", lambda: now)
    broken, sound = Recorder(), Recorder()
    broken.fails = True
    boards = Boards({"broken": broken, "sound": sound})
    with pytest.warns(
        UserWarning, match=r"^broken cannot be written to \(ConnectionError: no route\)"
    ) as caught:
        boards(record(1))
        boards.pictures(1, [RED])
        now = 59.0
        boards(record(2))
        assert broken.attempts == 1  # a server that cannot be reached shall not cost time at every step
        now = 60.0
        boards(record(3))
        now = 60.0 + 239
        boards(record(4))
        assert broken.attempts == 2
        now = 60.0 + 240
        broken.fails = False
        boards(record(5))
        boards(record(6))
        broken.fails = True
        boards(record(7))
        boards.close()
    assert len(caught) == 1
    assert broken.steps == [5, 6] and broken.closed is True
    assert sound.steps == [1, 1, 2, 3, 4, 5, 6, 7] and sound.closed is True


def test_interrupting_is_no_failure_of_a_board() -> None:
    class Interrupted(Recorder):
        def scalars(self, step: int, values: Any) -> None:
            raise KeyboardInterrupt

    board = Interrupted()
    with pytest.raises(KeyboardInterrupt), Boards({"board": board}) as boards:
        boards(record(1))
    assert board.closed is False


# ------------------------------------------------------------------------------------------------------ services


class FakeRun:
    def __init__(self, first: int = 0) -> None:
        self.starting_step = first
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int | None = None) -> None:
        self.exit_code = exit_code
        print("finished")


def fake_service(monkeypatch: pytest.MonkeyPatch, name: str, run: FakeRun) -> list[dict[str, Any]]:
    """Put a fake of wandb or trackio in place; returns what it is opened with."""
    opened: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        print("hello")
        opened.append(options)
        return run

    module = ModuleType(name)
    module.init = init
    module.Image = lambda picture, caption: (caption, picture.shape)
    monkeypatch.setitem(sys.modules, name, module)
    return opened


def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = FakeRun()
    opened = fake_service(monkeypatch, "wandb", run)
    boards = open_boards(["wandb"], tmp_path, "tiny", CONFIG, 0)
    boards(record(1))
    boards.pictures(1, [RED])
    boards.close()
    step, values = run.logged[0]
    assert step == 1 and values["train/loss"] == 1.0 and values["machine/peak_memory_gib"] == 3.0
    assert run.logged[1] == (1, {"examples/1": ("the red circle", (8, 12, 3))})
    assert run.exit_code == 0
    first = opened[0]
    assert (first["project"], first["name"], first["resume"]) == ("promptris", "tiny", "allow")
    assert first["config"]["train"]["stages"] == [{"epochs": 2, "sam": False}]

    resumed = FakeRun(first=4)  # the service knows steps up to 3
    opened = fake_service(monkeypatch, "wandb", resumed)
    with pytest.raises(RuntimeError), open_boards(["wandb"], tmp_path, "tiny", CONFIG, 2) as boards:
        for step in (3, 4, 5):
            boards(record(step))
        raise RuntimeError
    assert opened[0]["id"] == first["id"] and len(first["id"]) == 8
    assert [step for step, _ in resumed.logged] == [4, 5] and resumed.exit_code == 1


def test_trackio_finds_its_run_again_and_leaves_stdout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun()
    opened = fake_service(monkeypatch, "trackio", run)
    for done in (0, 1):
        with open_boards(["trackio"], tmp_path, "tiny", CONFIG, done) as boards:
            boards(record(done + 1))
            boards.pictures(done + 1, [RED])
    assert [step for step, _ in run.logged] == [1, 1, 2, 2]
    assert run.logged[3][1] == {"examples/1": ("the red circle", (8, 12, 3))}
    assert opened[0]["name"] == opened[1]["name"] and opened[0]["name"].startswith("tiny-")
    assert opened[1]["resume"] == "allow"
    assert capsys.readouterr().out == ""


class FakeClient:
    """What is used of MlflowClient; metrics and parameters are (name, value, ...)."""

    def __init__(self) -> None:
        self.metrics: list[tuple[Any, ...]] = []
        self.params: list[tuple[Any, ...]] = []
        self.images: list[tuple[str, int]] = []
        self.batches: list[int] = []
        self.states: list[tuple[str, str]] = []
        self.runs = 0

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        self.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment_id}:{run_name}"))

    def update_run(self, run_id: str, status: str) -> None:
        self.states.append((run_id, status))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.states.append((run_id, status))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.batches.append(len(metrics) + len(params))
        self.metrics += metrics
        self.params += params

    def log_image(self, run_id: str, picture: Any, key: str, step: int, synchronous: bool) -> None:
        self.images.append((key, step))


def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    module = ModuleType("mlflow")
    module.MlflowClient = lambda: client
    module.set_experiment = lambda name: SimpleNamespace(experiment_id=name)
    module.entities = SimpleNamespace(Metric=lambda *a: a, Param=lambda *a: a)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return client


def test_mlflow_is_sent_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("promptris.training.boards.monotonic", lambda: now)
    client = fake_mlflow(monkeypatch)
    with open_boards(["mlflow"], tmp_path, "tiny", CONFIG, 0) as boards:
        assert ("train/lr", "0.0001") in client.params and ("seed", "3") in client.params
        client.batches.clear()
        for step in range(1, 5):
            now = float(step)
            boards(record(step))
        assert client.batches == []
        now = 5.0
        boards(record(5))
        assert client.batches == [5 * 7]  # loss, coarse_bce, lr, stage; speed, seconds, memory
        boards.scalars(5, {"val": {"P@0.5": 0.75}})
        boards.pictures(5, [RED])
    assert [m[::3] for m in client.metrics if m[0] == "train/loss"] == [
        ("train/loss", s) for s in range(1, 6)
    ]
    name, value, _, step = client.metrics[-1]
    assert (name, value, step) == ("val/P_0.5", 0.75, 5)  # MLflow refuses "@"
    assert client.images == [("examples/1", 5)]
    assert client.states == [("promptris:tiny", "RUNNING"), ("promptris:tiny", "FINISHED")]

    client.params.clear()
    open_boards(["mlflow"], tmp_path, "tiny", {**CONFIG, "seed": 4}, 5).close(is_done=False)
    assert client.runs == 1 and client.params == []
    assert client.states[-1] == ("promptris:tiny", "KILLED")


def test_mlflow_takes_no_more_than_1000_metrics_and_100_parameters_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = fake_mlflow(monkeypatch)
    with open_boards(["mlflow"], tmp_path, "tiny", {f"p{i}": i for i in range(250)}, 0) as boards:
        assert client.batches == [100, 100, 50]
        client.batches.clear()
        boards.scalars(1, {f"m{i}": i for i in range(1200)})
    assert client.batches == [1000, 200]


def test_a_second_board_that_cannot_be_opened_closes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    fake_service(monkeypatch, "wandb", run)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="mlflow"):
        open_boards(["wandb", "mlflow"], tmp_path, "tiny", CONFIG, 0)
    assert run.exit_code == 1


# ------------------------------------------------------------------------------------------------------ pictures


def test_examples_are_spread_evenly() -> None:
    assert example_places(10, 4) == [0, 2, 5, 7]
    assert example_places(3, 8) == [0, 1, 2]
    assert example_places(0, 4) == example_places(5, 0) == []


def test_examples_of_a_split_are_a_small_data_set() -> None:
    class Rows:
        def __init__(self, rows: Any) -> None:
            self.rows = rows

        def with_rows(self, rows: Any) -> Rows:
            return Rows(rows)

    rows = np.array([3, 5, 7, 9, 11])
    few = examples_of(Rows({"val": rows, "train": rows}), "val", 2)
    assert {split: found.tolist() for split, found in few.rows.items()} == {"val": [3, 7]}


def test_panels_show_image_masks_and_truth(tmp_path: Path) -> None:
    Image.new("RGB", (60, 60), (90, 90, 90)).save(tmp_path / "grey.png")
    images = {7: ImageRecord(7, tmp_path / "grey.png", 60, 60)}

    def square(at: int) -> np.ndarray:
        mask = np.zeros((60, 60), bool)
        mask[at : at + 20, at : at + 20] = True
        return mask

    def scored(number: int, text: str) -> Scored:
        expression = Expression(number, text)
        referent = Referent(number, number, 7, 1, "val", (expression,), (number,))
        prediction = Prediction(text, square(20), 0.9, square(5), (30, 30))
        return Scored(referent, expression, prediction, square(30))

    texts = ["the square", "another square", "a third one", "the last"]
    panels = panels_of([scored(n, text) for n, text in enumerate(texts)], images, 2, tile_size=240)
    assert [caption for caption, _ in panels] == ["the square", "a third one"]
    picture = panels[0][1]
    # Margins of 240 / 12, gaps of 240 / 20.
    assert picture.dtype == np.uint8 and picture.shape[1:] == (2 * 20 + 4 * 240 + 3 * 12, 3)
    starts = [20 + tile * (240 + 12) for tile in range(4)]
    for color, tile, at in ((COARSE_COLOR, 1, 5), (MASK_COLOR, 2, 20), (TRUTH_COLOR, 3, 30)):
        columns = np.nonzero((picture == color).all(-1).any(0))[0]  # of the outline
        found = columns.min() - starts[tile], columns.max() - starts[tile]
        assert found == pytest.approx((4 * at, 4 * (at + 20)), abs=4)
    assert not np.array_equal(panels[0][1][:60], panels[1][1][:60])  # each has its expression above it


def test_pictures_of_panels_reach_the_board_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_boards(["tensorboard"], tmp_path, "tiny", CONFIG, 0) as boards:
            boards.pictures(1, [("caption", np.asarray(Image.new("RGB", (5, 4))))])
    assert [event.step for event in events(tmp_path).Images("examples/1")] == [1]
