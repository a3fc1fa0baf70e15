"""Whole batches on a local Ray of two workers, some of which do not live to see the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from promptris.distributed import segment_dataset
from promptris.distributed.parts import RUN_FILE
from promptris.errors import InputError
from promptris.ops.run_lengths import rle_to_mask

Lines = Callable[[Path, list[Any]], Path]
OPTIONS: dict[str, Any] = {"concurrency": 2, "batch_size": 3}


def read(out: Path) -> list[dict[str, Any]]:
    """The results by row and item."""
    return sorted(pq.read_table(out).to_pylist(), key=lambda answer: (answer["row"], answer["item"]))


def check(out: Path, rows: list[dict[str, Any]], expected: dict[tuple[str, str], Any]) -> None:
    """Every question of the rows has one answer, and it is the one of the predictor of this process."""
    answers = read(out)
    asked = [
        (row, item, image_row["image"], text)
        for row, image_row in enumerate(rows)
        for item, text in enumerate(image_row["expressions"])
    ]
    assert [(a["row"], a["item"], a["image"], a["expression"]) for a in answers] == asked
    for answer, (_, _, image, text) in zip(answers, asked, strict=True):
        assert answer["error"] is None
        prediction = expected[str((out.parent / image).resolve()), text]
        mask = rle_to_mask({"size": answer["size"], "counts": answer["counts"]})
        assert (mask != prediction.mask).sum() <= 2 and answer["point"] == list(prediction.point)
    assert {path.name[0] for path in out.iterdir()} <= {"p", "_"}


def times(out: Path) -> dict[str, int]:
    """When each part was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}


@pytest.fixture
def asked(tmp_path: Path, scenes: Any, write_lines: Lines) -> tuple[Path, list[dict[str, Any]]]:
    """JSON lines beside links to the scenes, by relative paths; and their rows."""
    (tmp_path / "images").mkdir()
    rows = []
    for image, texts in scenes.items():
        (tmp_path / "images" / Path(image).name).symlink_to(image)
        rows.append({"image": f"images/{Path(image).name}", "expressions": texts})
    return write_lines(tmp_path / "questions.jsonl", rows), rows


@contextmanager
def hole(path: Path) -> Iterator[Callable[[], int]]:
    """A pipe in an image's place: whoever reads it waits. Calling tells the process that does; at the end the image
    is back."""
    target = path.readlink()
    path.unlink()
    os.mkfifo(path)

    def reader() -> int:
        deadline = time.monotonic() + 240
        while True:
            try:
                writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:  # nobody reads yet
                assert time.monotonic() < deadline
                time.sleep(0.02)
        while True:
            for process in Path("/proc").iterdir():
                if process.name.isdigit() and int(process.name) != os.getpid() and _has_open(process, path):
                    os.set_inheritable(writing, False)
                    held.append(writing)
                    return int(process.name)
            assert time.monotonic() < deadline
            time.sleep(0.02)

    held: list[int] = []
    try:
        yield reader
    finally:
        link = path.with_name(".link")
        link.symlink_to(target)
        link.replace(path)
        for writing in held:
            os.close(writing)


def _has_open(process: Path, path: Path) -> bool:
    try:
        return any(os.path.samestat(file.stat(), path.stat()) for file in (process / "fd").iterdir())
    except OSError:  # gone, or somebody else's
        return False


def in_background(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_a_worker_killed_in_the_middle(
    local_ray: None, asked: tuple[Path, list[dict[str, Any]]], expected: Any
) -> None:
    source, rows = asked
    out = source.parent / "out"
    with hole(source.parent / rows[5]["image"]) as reader:
        thread, results = in_background(lambda: segment_dataset(source, out, **OPTIONS))
        os.kill(reader(), signal.SIGKILL)
    thread.join(240)
    (summary,) = results
    check(out, rows, expected)
    assert (summary.images, summary.expressions, summary.answered) == (12, 36, 36)
    assert (summary.errors, summary.unfinished, summary.resumed) == (0, {}, 0)
    assert summary.workers >= 2
    assert summary.core_seconds > 0 and 0 < summary.worker_seconds < 2 * summary.seconds

    # All is there: nothing is done again, whichever way it is asked for.
    before = times(out)
    again = segment_dataset(str(source), str(out), **OPTIONS)
    assert (again.resumed, again.answered, again.seconds) == (12, 0, 0) and times(out) == before
    with pytest.raises(InputError, match="has results of this run"):
        segment_dataset(source, out, resume=False, **OPTIONS)
    with pytest.raises(InputError, match=r"differs in threshold \(threshold 0.5 there, 0.4 here\)"):
        segment_dataset(source, out, threshold=0.4, **OPTIONS)
    source.write_text(source.read_text() + json.dumps(rows[0]) + "\n")
    with pytest.raises(InputError, match=r"differs in input .* give another --out"):
        segment_dataset(source, out, **OPTIONS)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_what_kills_every_worker_is_left_out_and_taken_up_again(
    local_ray: None, asked: tuple[Path, list[dict[str, Any]]], expected: Any
) -> None:
    source, rows = asked
    out = source.parent / "out"
    with hole(source.parent / rows[11]["image"]) as reader:
        run = lambda: segment_dataset(source, out, max_retries=0, **OPTIONS)  # noqa: E731
        thread, results = in_background(run)
        os.kill(reader(), signal.SIGKILL)
        thread.join(240)
        (summary,) = results
    assert summary.unfinished[11] == "every worker that took it was lost"
    assert summary.expressions == 36 - 3 * len(summary.unfinished) and len(summary.unfinished) <= 2
    before = times(out)
    summary = segment_dataset(source, out, **OPTIONS)
    check(out, rows, expected)
    assert summary.unfinished == {} and summary.resumed == len(before)
    assert before.items() <= times(out).items()


def test_bad_rows_stop_nothing(
    local_ray: None, tmp_path: Path, scenes: Any, write_lines: Lines, expected: Any, capfd: Any
) -> None:
    from promptris.interfaces.cli import main

    image, texts = next(iter(scenes.items()))
    cut, words = tmp_path / "cut.png", tmp_path / "words.png"
    cut.write_bytes(Path(image).read_bytes()[:300])
    words.write_text("no picture")
    rows = [
        {"image": "cut.png", "expressions": ["the star", "the circle"]},
        {"image": "words.png", "expressions": "the star"},
        {"image": "gone.png", "expressions": ["the star"]},
        "{",
        {"image": image, "expressions": [texts[0], " "]},
    ]
    out = tmp_path / "out"
    source = write_lines(tmp_path / "q.jsonl", rows)
    assert main(["batch", str(source), "--out", str(out), "--concurrency", "1"]) == 1
    printed = capfd.readouterr()
    summary = json.loads(printed.out)
    assert (summary["expressions"], summary["errors"], summary["unfinished"]) == (7, 6, {})
    said = printed.err.splitlines()
    assert all(line.startswith("promptris: ") for line in said)
    # An image each, the row without one, and the sum.
    assert len(said) == 6 and sum(str(cut) in line for line in said) == 1
    assert "6 of 7 expressions have no answer" in said[-1]
    answers = read(out)
    assert [(a["row"], a["item"]) for a in answers] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (4, 1),
    ]
    errors = [answer["error"] for answer in answers]
    assert errors[0] == errors[1] and str(cut) in errors[0] and "damaged" in errors[0]
    assert str(words) in errors[2] and "there is no image" in errors[3] and "not JSON" in errors[4]
    assert errors[5] is None and "is empty" in errors[6]
    mask = rle_to_mask({"size": answers[5]["size"], "counts": answers[5]["counts"]})
    assert (mask != expected[image, texts[0]].mask).sum() <= 2


@pytest.mark.slow
def test_a_device_that_the_workers_do_not_have(local_ray: None, tmp_path: Path, write_lines: Lines) -> None:
    source = write_lines(tmp_path / "q.jsonl", [{"image": "a.png", "expression": "the star"}])
    with pytest.raises(InputError, match="the device 'cuda:7' is not there"):
        segment_dataset(source, tmp_path / "out", device="cuda:7", concurrency=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RUN_FILE]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency 0"),
        ({"concurrency": (3, 2)}, "concurrency"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_cpus": 0}, "num_cpus must be more than 0"),
        ({"max_retries": -1}, "max_retries"),
        ({"threshold": 1}, "threshold"),
        ({"model": "no/such-model"}, "no/such-model"),
    ],
)
def test_refused_before_anything_starts(
    options: dict[str, Any], words: str, tmp_path: Path, write_lines: Lines
) -> None:
    source = write_lines(tmp_path / "q.jsonl", [{"image": "a.png", "expression": "the star"}])
    with pytest.raises(InputError, match=words):
        segment_dataset(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_the_driver_killed_in_the_middle(asked: tuple[Path, list[dict[str, Any]]], expected: Any) -> None:
    source, rows = asked
    out = source.parent / "out"
    command = [sys.executable, "-m", "promptris", "batch", source, "--out", out]
    command += ["--concurrency", "2", "--batch-size", "3"]
    with hole(source.parent / rows[7]["image"]) as reader:
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        worker = reader()
        deadline = time.monotonic() + 240
        while len(times(out)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        while Path(f"/proc/{worker}").exists():  # its workers do not outlive it for long
            assert time.monotonic() < deadline + 240
            time.sleep(0.1)
    before = times(out)
    assert 4 <= len(before) < 12
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads(done.stdout)
    check(out, rows, expected)
    assert summary["resumed"] == len(before) and summary["expressions"] == 36
    assert before.items() <= times(out).items()
