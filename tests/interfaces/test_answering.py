"""Batches of `promptris segment`: what is finished stays finished, and nothing else counts as finished."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptris import finished_items, outputs
from promptris.interfaces import answering
from promptris.modeling.prompt_ris import PromptRIS
from promptris.predictor import Predictor

Command = Callable[..., Any]
INDEX = finished_items.INDEX_FILE
FORMATS = "mask,rle,coco,labelstudio"


class Killed(BaseException):
    """In place of SIGKILL: nothing of the package handles it."""


@pytest.fixture
def photos(tmp_path: Path, save_noise: Callable[..., Path]) -> Path:
    """Three pictures of different content, two of one name."""
    for number, name in enumerate(("one/x.png", "two/x.png", "two/y.png")):
        save_noise(tmp_path / "work" / "photos" / name, size=(20 + 4 * number, 16))
    return Path("photos")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the images that were really encoded."""
    widths: list[int] = []
    encode = Predictor.encode

    def noting(self: Predictor, images: Any) -> Any:
        widths.extend(image.shape[1] for image in images)
        return encode(self, images)

    monkeypatch.setattr(Predictor, "encode", noting)
    return widths


_from_pretrained = PromptRIS.from_pretrained
_read_once = cache(lambda folder, written, *rest: _from_pretrained(folder, *rest))


def _read(folder: Any, *rest: Any) -> PromptRIS:
    """A model is read once, not for every run."""
    return _read_once(folder, Path(folder, "model.safetensors").stat().st_mtime_ns, *rest)


@pytest.fixture
def segment(promptris: Command, photos: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the batch: segment(*options)."""
    monkeypatch.setattr("promptris.predictor.PromptRIS.from_pretrained", _read)

    def run(*options: Any, asked: tuple[str, ...] = ("ring", "left star")) -> Any:
        chosen = options if "--model" in options else (*options, "--model", model_folder)
        chosen = chosen if "--format" in chosen else (*chosen, "--format", FORMATS)
        return promptris("segment", "photos/**/*.png", *asked, *chosen)

    return run


def results(folder: str = "out") -> dict[str, bytes]:
    """The files of a folder but the index."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != INDEX}


def check_complete(folder: str = "out") -> None:
    """Every image and expression once in both files of the run, in order."""
    coco = json.loads(Path(folder, "coco.json").read_text())
    names = ["photos/one/x.png", "photos/two/x.png", "photos/two/y.png"]
    assert [image["file_name"] for image in coco["images"]] == names
    assert [(a["image_id"], a["expression"]) for a in coco["annotations"]] == [
        (number, text) for number in (1, 2, 3) for text in ("ring", "left star")
    ]
    tasks = json.loads(Path(folder, "labelstudio.json").read_text())
    assert [task["data"]["path"] for task in tasks] == names
    assert all(len(task["predictions"][0]["result"]) == 2 for task in tasks)
    assert not list(Path(folder).glob("*.partial"))


def test_the_files_of_a_run(segment: Command) -> None:
    run = segment()
    assert (run.code, len(run.records)) == (0, 6)
    assert "out/coco.json: 3 images" in run.err and "out/labelstudio.json: 3 images" in run.err
    check_complete()
    from pycocotools.coco import COCO

    coco = COCO("out/coco.json")
    for record, annotation in zip(run.records, coco.anns.values(), strict=True):
        with Image.open(record["files"][0]) as mask:
            assert (coco.annToMask(annotation) == np.array(mask)).all()
        assert all(annotation[name] == record[name] for name in ("area", "bbox", "score", "expression"))


def test_a_finished_batch_is_not_done_again(segment: Command, encoded: list[int]) -> None:
    first = segment()
    before = results()
    assert encoded == [20, 24, 28]
    again = segment("--resume")
    assert encoded == [20, 24, 28]
    assert (again.code, again.out) == (0, first.out)
    assert "3 of 3 images were finished before" in again.err
    assert results() == before
    check_complete()


def test_without_resume_everything_is_done_again(segment: Command, encoded: list[int]) -> None:
    first = segment()
    assert segment().out == first.out
    assert len(encoded) == 6
    check_complete()


def test_killed_at_any_step_nothing_is_lost_or_doubled(
    segment: Command, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after every file that is written and every line of the index, half a line included."""
    formats = "mask,coco,labelstudio"
    whole = segment("--format", formats, "--out", "whole")
    expected = results("whole")
    steps = 0
    for step in range(100):
        shutil.rmtree("out", ignore_errors=True)
        left = [step]

        def maybe_die(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(outputs, "write_whole", _dying(outputs.write_whole, maybe_die))
            patch.setattr(answering, "write_run", _dying(answering.write_run, maybe_die))
            patch.setattr(finished_items.FinishedItems, "_append", _dying_append(maybe_die))
            try:
                segment("--format", formats)
            except Killed:
                steps += 1
        files_of_index = (
            len(Path("out", INDEX).read_bytes().split(b"\n")) - 1 if Path("out", INDEX).exists() else 0
        )
        encoded.clear()
        again = segment("--resume", "--format", formats)
        assert len(encoded) == 3 - files_of_index
        assert again.code == 0
        assert again.out == whole.out.replace("whole/", "out/")
        assert results() == expected
        if left[0] >= 0:
            break
    assert steps == step == 3 * (2 * 2 + 2) + 2 * 2


def _dying(function: Callable[..., Any], maybe_die: Callable[[], None]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        maybe_die()
        result = function(*arguments)
        maybe_die()
        return result

    return run


def _dying_append(maybe_die: Callable[[], None]) -> Callable[..., Any]:
    append = finished_items.FinishedItems._append

    def run(self: Any, content: dict[str, Any]) -> Any:
        maybe_die()
        try:
            maybe_die()
        except Killed:
            with self.path.open("ab") as file:
                file.write(json.dumps(content).encode()[:50])
            raise
        return append(self, content)

    return run


def test_a_changed_image_is_done_again_under_its_name(
    segment: Command, encoded: list[int], save_noise: Callable[..., Path]
) -> None:
    segment()
    encoded.clear()
    save_noise(Path("photos/two/x.png"), size=(40, 16))
    run = segment("--resume")
    assert encoded == [40]
    assert "2 of 3 images were finished before" in run.err
    assert run.records[2]["files"][0] == "out/x-2_01_ring_mask.png"
    with Image.open("out/x-2_01_ring_mask.png") as mask:
        assert mask.size == (40, 16)
    check_complete()
    assert json.loads(Path("out/coco.json").read_text())["images"][1]["width"] == 40


def test_an_image_that_came_in_between_leaves_the_others_alone(
    segment: Command, encoded: list[int], save_noise: Callable[..., Path]
) -> None:
    first = segment()
    before = results()
    encoded.clear()
    save_noise(Path("photos/a/x.png"), size=(60, 16))
    run = segment("--resume")
    assert encoded == [60]
    assert run.records[2:] == first.records
    assert {
        name: content for name, content in results().items() if name in before and "json" not in name
    } == {name: content for name, content in before.items() if "json" not in name}


@pytest.mark.parametrize(
    "options",
    [
        ("--threshold", "0.4"),
        ("--prompts", "mask"),
        ("--point", "3,3,1"),
        ("--box", "1,1,9,9"),
        ("--dtype", "bfloat16"),
        ("--format", "mask,coco"),
    ],
)
def test_other_options_are_another_question(
    segment: Command, encoded: list[int], options: tuple[str, str]
) -> None:
    segment()
    encoded.clear()
    segment(*options, "--resume")
    assert len(encoded) == 3
    encoded.clear()
    segment(*options, "--resume")
    assert encoded == []


def test_other_expressions_are_another_question(segment: Command, encoded: list[int]) -> None:
    segment()
    encoded.clear()
    segment("--resume", asked=("ring",))
    assert len(encoded) == 3


def test_another_content_of_the_model_is_another_model(
    segment: Command,
    encoded: list[int],
    small_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from promptris.modeling.build import build_random

    folder = tmp_path / "changing"
    small_model.save_pretrained(folder, full=True)
    segment("--model", folder)
    encoded.clear()
    segment("--model", folder, "--resume")
    assert encoded == []
    build_random("refshapes", seed=1).save_pretrained(folder, full=True)
    segment("--model", folder, "--resume")
    assert len(encoded) == 3


def test_files_that_another_run_has_replaced_are_made_again(segment: Command, encoded: list[int]) -> None:
    first = segment("--format", "mask")
    before = results()
    segment("--format", "mask", "--threshold", "0.9")
    assert results() != before
    encoded.clear()
    assert segment("--format", "mask", "--resume").out == first.out
    assert len(encoded) == 3 and results() == before


def test_a_file_that_a_single_image_has_replaced_is_made_again(
    segment: Command, promptris: Command, model_folder: Path, save_noise: Any, encoded: list[int]
) -> None:
    def answers(run: Any) -> dict[tuple[str, str], bytes]:
        return {(r["image"], r["expression"]): Path(r["files"][0]).read_bytes() for r in run.records}

    before = answers(segment("--format", "mask"))
    save_noise(Path("other/x.png"), size=(40, 30))
    options = ("--model", model_folder, "--format", "mask")
    other = promptris("segment", "other/x.png", "ring", "left star", *options)
    replaced = answers(other)
    encoded.clear()
    assert answers(segment("--format", "mask", "--resume")) == before
    assert len(encoded) == 1 and answers(other) == replaced


def test_a_file_that_was_deleted_is_made_again(segment: Command, encoded: list[int]) -> None:
    segment()
    before = results()
    Path("out/y_01_ring_mask.png").unlink()
    encoded.clear()
    segment("--resume")
    assert encoded == [28] and results() == before


def test_failed_images_are_tried_again(segment: Command, encoded: list[int], save_noise: Any) -> None:
    broken = Path("photos/two/x.png")
    broken.write_bytes(b"not yet a picture")
    run = segment()
    assert (run.code, len(run.records)) == (1, 4)
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 2
    save_noise(broken, size=(24, 16))
    encoded.clear()
    run = segment("--resume")
    assert (run.code, encoded) == (0, [24])
    check_complete()


def test_lines_that_repeat_a_question_are_told_apart(
    promptris: Command, photo: Path, model_folder: Path, encoded: list[int]
) -> None:
    line = json.dumps({"image": str(photo), "expressions": ["ring"]})
    other = json.dumps({"image": str(photo), "expressions": ["a star", "ring"]})
    arguments = ("segment", "-", "--model", model_folder, "--format", "mask,coco")
    first = promptris(*arguments, stdin=f"{line}\n{other}\n{line}\n")
    files = [file for record in first.records for file in record["files"]]
    assert len(set(files)) == len(files) == 4
    again = promptris(*arguments, "--resume", stdin=f"{line}\n{other}\n{line}\n")
    assert again.out == first.out and "3 of 3" in again.err
    coco = json.loads(Path("out/coco.json").read_text())
    assert len(coco["images"]) == 1 and len(coco["annotations"]) == 4
    assert coco["categories"] == [{"id": 1, "name": "referent"}]


def test_a_single_image_leaves_nothing_but_its_results(
    promptris: Command, photo: Path, model_folder: Path
) -> None:
    run = promptris("segment", photo, "ring", "--model", model_folder)
    assert sorted(map(str, Path("out").iterdir())) == sorted(run.records[0]["files"])


def test_stopping_says_how_to_go_on(segment: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Predictor.encode

    def stop_at_the_second(self: Predictor, images: Any) -> Any:
        if images[0].shape[1] == 24:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(Predictor, "encode", stop_at_the_second)
    run = segment()
    assert (run.code, len(run.records)) == (130, 2)
    assert "stopped after 1 images: the same command with --resume goes on" in run.err


def test_explanations_are_pictures_beside_the_others(
    promptris: Command, photo: Path, model_folder: Path
) -> None:
    arguments = ("segment", photo, "ring", "--model", model_folder, "--box", "2,3,30,20")
    plain = promptris(*arguments, "--format", "mask").records[0]
    (record,) = promptris(*arguments, "--format", "explain,mask", "--out", "other").records
    assert record["files"][0] == "other/photo_01_ring_explain.png"
    with Image.open(record["files"][0]) as picture:
        assert picture.width > 3 * 48
    assert (record["area"], record["score"]) == (plain["area"], pytest.approx(plain["score"], abs=1e-5))
    options = ("--method", "proposals", "--format")
    promptris("segment", photo, "ring", *options, "explain").refused(
        "--format explain is for the model's prompts"
    )
    promptris("segment", photo, "ring", "--method", "proposals", "--box", "1,1,9,9").refused("--box is for")


def test_a_photograph_shown_to_the_built_in_model_is_told_once(
    promptris: Command, tmp_path: Path, save_noise
) -> None:
    from promptris.builtin_models import TINY_NOTE

    for name in ("a.jpg", "b.jpg"):
        save_noise(tmp_path / "photos" / name)
    run = promptris("segment", tmp_path / "photos", "ring", "--format", "rle")
    assert run.code == 0 and run.err.count(TINY_NOTE) == 1
    scene = save_noise(tmp_path / "scene" / "refshapes_000000000001.jpg", size=(128, 128))
    assert TINY_NOTE not in promptris("segment", scene, "ring", "--format", "rle").err


def test_the_bar_shows_count_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from promptris.interfaces.terminal import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for total, shown in ((40, "17/40"), (0, "17/?")):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        with progress("segmenting") as advance:
            for done in range(1, 18):
                advance(done, total)
                time.sleep(0.02)
            time.sleep(0.25)
        monkeypatch.undo()
        assert "segmenting" in screen.getvalue() and shown in screen.getvalue()
        assert ("0:00:0" in screen.getvalue()) == bool(total)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.slow
def test_sigkill_in_the_middle_again_and_again(tmp_path: Path, save_noise: Any, small_model: Any) -> None:
    small_model.save_pretrained(tmp_path / "model", full=True)
    for number in range(40):
        save_noise(tmp_path / "photos" / f"{number:02d}.png", size=(60 + number, 50))
    command = [
        sys.executable,
        "-m",
        "promptris",
        "segment",
        "photos",
        "ring",
        "left star",
        "--model",
        "model",
    ]
    command += ["--format", FORMATS]

    def start(*options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def finished() -> int:
        index = tmp_path / "out" / INDEX
        return index.read_bytes().count(b"\n") if index.exists() else 0

    for target in (3, 11, 12, 30):
        process = start("--resume")
        while finished() < target and process.poll() is None:
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 30 <= finished() < 40
    out, err = start("--resume").communicate(timeout=300)
    whole, _ = start("--out", "whole").communicate(timeout=300)
    assert out.replace(b"out/", b"whole/") == whole and len(out.splitlines()) == 80
    assert b"of 40 images were finished before" in err
    got, expected = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("out", "whole"))
    for name in (*got, *expected):
        if name != INDEX and not name.endswith(".partial"):
            assert got[name] == expected[name], name
