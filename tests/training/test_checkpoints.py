"""Checkpoints: what is in them, which are kept, and that damage, full disks and kills cost no finished work."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import resource
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from tiny_run import FROZEN, TRAINED, Steps, Tiny, fit

from promptris.errors import InputError
from promptris.training.checkpoints import StepCheckpoint, check_space, read_checkpoint

TOWERS = {
    "clip": {"source": "openai/clip", "format": "transformers", "sha256": "a" * 64},
    "sam": {"source": "facebook/sam", "format": "transformers", "sha256": "b" * 64},
}


def always(folder: Path, **options: Any) -> StepCheckpoint:
    """A checkpoint after every step."""
    return StepCheckpoint(folder / "last.ckpt", 0.0, **options)


def steps_in(folder: Path) -> dict[str, int]:
    """Files of a folder that can be read, with their steps."""
    return {file.name: read_checkpoint(file)["global_step"] for file in folder.iterdir()}


def same_weights(one: Tiny, other: Tiny) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# --------------------------------------------------------------------------------------------- contents and number


def test_a_checkpoint_holds_what_is_trained_and_nothing_of_the_rest(tmp_path: Path):
    facts = {"recipe": "seed: 0\n", "towers": TOWERS}
    fit(2, [always(tmp_path, facts=facts)])
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert set(saved["state_dict"]) == {"layer.weight", "layer.bias"}
    moments = saved["optimizer_states"][0]["state"]
    assert sum(state["exp_avg"].numel() for state in moments.values()) == TRAINED
    assert saved["promptris"] == facts
    assert (tmp_path / "last.ckpt").stat().st_size < FROZEN * 4 / 10


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, {"last.ckpt": 6}),
        (3, {"last.ckpt": 6, "step-00000005.ckpt": 5, "step-00000004.ckpt": 4}),
    ],
)
def test_the_last_ones_are_kept(tmp_path: Path, keep: int, expected: dict[str, int]):
    fit(6, [always(tmp_path, keep_last=keep)])
    assert steps_in(tmp_path) == expected


def test_the_number_kept_may_shrink_in_a_resumed_run(tmp_path: Path):
    fit(4, [always(tmp_path, keep_last=3)])
    checkpoint = always(tmp_path, keep_last=2)
    fit(5, [checkpoint], checkpoint=checkpoint)
    assert steps_in(tmp_path) == {"last.ckpt": 5, "step-00000004.ckpt": 4}


def test_none_to_keep_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="0 checkpoints"):
        always(tmp_path, keep_last=0)


def test_without_second_names_for_files_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fit(3, [always(tmp_path, keep_last=2)])
    assert steps_in(tmp_path) == {"last.ckpt": 3, "step-00000002.ckpt": 2}


def test_time_decides_when_and_the_end_is_saved(tmp_path: Path):
    seen: dict[int, int] = {}
    checkpoint = StepCheckpoint(tmp_path / "last.ckpt", 3600.0)
    fit(3, [checkpoint, Steps(lambda step, _: seen.update({step: len(list(tmp_path.iterdir()))}))])
    assert seen == {1: 0, 2: 0, 3: 0}
    assert steps_in(tmp_path) == {"last.ckpt": 3}


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path):
    fit(3, [always(tmp_path)])
    checkpoint = always(tmp_path)
    assert same_weights(fit(6, [checkpoint], checkpoint=checkpoint), fit(6, []))


class DieError(RuntimeError):
    """Stands for whatever ends a run."""


class DieAt(L.Callback):
    """It is time for a checkpoint in batch 6, and the run ends after another one."""

    def __init__(self, checkpoint: StepCheckpoint, number: int) -> None:
        self.checkpoint, self.number = checkpoint, number

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.checkpoint.every_seconds = 0.0 if batch_idx >= 6 else 3600.0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.number:
            raise DieError


@pytest.mark.parametrize(("number", "expected"), [(7, {}), (8, {"last.ckpt": 3}), (9, {"last.ckpt": 3})])
def test_no_save_in_the_middle_of_a_step_of_three_passes(
    tmp_path: Path, number: int, expected: dict[str, int]
):
    checkpoint = always(tmp_path)
    with pytest.raises(DieError):
        fit(6, [checkpoint, DieAt(checkpoint, number)], accumulate=3)
    assert steps_in(tmp_path) == expected
    resumed = always(tmp_path)
    assert same_weights(fit(5, [resumed], checkpoint=resumed, accumulate=3), fit(5, [], accumulate=3))


def test_weights_alone_can_be_loaded(tmp_path: Path):
    trained = fit(2, [always(tmp_path)])
    module = Tiny()
    always(tmp_path).load_weights(module)
    assert same_weights(module, trained) and not same_weights(module, Tiny())


# ------------------------------------------------------------------------------------------------------------ best


def scored(checkpoint: StepCheckpoint, scores: dict[int, float], told: list[bool]) -> list[L.Callback]:
    """Callbacks that score some steps as a validation would."""

    def score(step: int, trainer: L.Trainer) -> None:
        if step in scores:
            told.append(checkpoint.save_best(trainer, scores[step]))

    return [Steps(score), checkpoint]


def test_the_best_is_kept_and_a_resumed_run_knows_its_score(tmp_path: Path):
    told: list[bool] = []
    checkpoint = StepCheckpoint(tmp_path / "last.ckpt", 3600.0)
    fit(5, scored(checkpoint, {1: 0.2, 3: 0.5, 4: math.nan, 5: 0.4}, told))
    assert told == [True, True, False, False]
    assert steps_in(tmp_path) == {"last.ckpt": 5, "best.ckpt": 3}

    resumed = StepCheckpoint(tmp_path / "last.ckpt", 3600.0)
    fit(7, scored(resumed, {6: 0.45, 7: 0.51}, told), checkpoint=resumed)
    assert told[4:] == [False, True]
    assert steps_in(tmp_path) == {"last.ckpt": 7, "best.ckpt": 7}
    assert read_checkpoint(tmp_path / "best.ckpt")["callbacks"]["StepCheckpoint"]["best_score"] == 0.51


def test_a_missing_best_is_noticed(tmp_path: Path):
    told: list[bool] = []
    checkpoint = always(tmp_path)
    fit(2, scored(checkpoint, {1: 0.5}, told))
    (tmp_path / "best.ckpt").unlink()
    resumed = always(tmp_path)
    with pytest.warns(UserWarning, match=r"best\.ckpt is gone.*0\.5000 at step 1"):
        fit(3, scored(resumed, {3: 0.1}, told), checkpoint=resumed)
    assert told == [True, True]
    assert steps_in(tmp_path)["best.ckpt"] == 3


# ---------------------------------------------------------------------------------------------------------- damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_weight(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
        weights = archive.read(name)
    content = bytearray(file.read_bytes())
    content[content.index(weights)] ^= 1
    file.write_bytes(content)


DAMAGES: list[Callable[[Path], Any]] = [
    cut,
    flip_a_weight,
    lambda file: file.write_bytes(b""),
    lambda file: file.write_text("not a checkpoint"),
    Path.unlink,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "flipped", "empty", "text", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: Callable[[Path], Any]):
    fit(4, [always(tmp_path, keep_last=3)])
    damage(tmp_path / "last.ckpt")
    checkpoint = always(tmp_path, keep_last=3)
    with pytest.warns(UserWarning, match=r"last\.ckpt is .*: going on from step 3 in step-00000003\.ckpt"):
        assert checkpoint.saved_step() == 3
    assert checkpoint.resume_path() == tmp_path / "step-00000003.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*going on from.*")  # it has been said
        module = fit(6, [checkpoint], checkpoint=checkpoint)
    assert same_weights(module, fit(6, []))
    # The damaged one is not among those that are kept.
    assert steps_in(tmp_path) == {"last.ckpt": 6, "step-00000005.ckpt": 5, "step-00000004.ckpt": 4}


def test_when_none_can_be_read_that_is_said(tmp_path: Path):
    fit(3, [always(tmp_path, keep_last=2)])
    for file in tmp_path.iterdir():
        cut(file)
    with pytest.raises(InputError, match=r"no checkpoint is left .*last\.ckpt.*step-00000002\.ckpt"):
        always(tmp_path).saved_step()


def test_no_checkpoint_at_all_is_a_beginning(tmp_path: Path):
    assert always(tmp_path).saved_step() == 0
    assert always(tmp_path).resume_path() is None
    with pytest.raises(InputError, match="there is no checkpoint"):
        always(tmp_path).load_weights(Tiny())


def test_other_towers_are_refused_and_another_recipe_is_not(tmp_path: Path):
    fit(1, [always(tmp_path, facts={"recipe": "one", "towers": TOWERS})])
    assert always(tmp_path, facts={"recipe": "two", "towers": TOWERS}).saved_step() == 1
    moved = {**TOWERS, "clip": {**TOWERS["clip"], "source": "elsewhere"}}
    assert always(tmp_path, facts={"towers": moved}).saved_step() == 1
    other = {**TOWERS, "sam": {**TOWERS["sam"], "sha256": "c" * 64}}
    with pytest.raises(
        InputError, match=r"another SAM .*content hash bbbbbbbbbbbb.*content hash cccccccccccc"
    ):
        always(tmp_path, facts={"towers": other}).saved_step()


# ------------------------------------------------------------------------------------------------------------ disk


def test_room_for_two_checkpoints_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A million float32 with two moments each, twice: 24 MB.
    free = 24_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    check_space(tmp_path, 1_000_000)
    free -= 1
    with pytest.raises(InputError, match=rf"{tmp_path.name} has 24 MB free, too little for the 24 MB"):
        check_space(tmp_path, 1_000_000)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/run"):
        check_space(tmp_path / "file" / "run", 1)


def test_too_little_room_is_found_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The last two, and a third while it is being written.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * TRAINED * 12 - 1))
    steps: list[int] = []
    with pytest.raises(InputError, match="too little"):
        fit(2, [always(tmp_path, keep_last=2), Steps(lambda step, _: steps.append(step))])
    assert steps == []


class FullDisk(L.Callback):
    """No file may grow beyond 4 kB while these steps are saved."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        limit = 4096 if trainer.global_step + 1 in self.steps else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


@contextmanager
def lifted_afterwards() -> Iterator[None]:
    """Lifts the limit at once: what pytest itself prints may go to a file as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("needs to lift the limit on the size of files")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_checkpoint_before_and_training_goes_on(tmp_path: Path):
    seen: dict[int, dict[str, int]] = {}
    look = Steps(lambda step, _: seen.update({step: steps_in(tmp_path)}))
    with pytest.warns(UserWarning, match="File too large") as told, lifted_afterwards():
        fit(6, [FullDisk({3, 4}), always(tmp_path), look])
    assert all(seen[step] == {"last.ckpt": step} for step in (1, 2, 5, 6))
    assert seen[3] == seen[4] == {"last.ckpt": 2}
    sentences = [str(warning.message) for warning in told if "saved" in str(warning.message)]
    assert len(sentences) == 1
    assert "step 3 cannot be saved" in sentences[0] and "step 2 stays the last one" in sentences[0]


def test_a_full_disk_at_the_end_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"step 4 cannot be saved in .*File too large"), lifted_afterwards():
        fit(4, [FullDisk({3, 4}), StepCheckpoint(tmp_path / "last.ckpt", 3600.0)])
    assert not list(tmp_path.iterdir())


def test_a_score_that_cannot_be_saved_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = torch.save
    told: list[bool] = []
    checkpoint = always(tmp_path)

    def save(state: dict[str, Any], file: Any) -> None:
        if state["global_step"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.warns(UserWarning, match="No space left on device"):
        fit(3, scored(checkpoint, {1: 0.1, 2: 0.3, 3: 0.2}, told))
    assert told == [True, False, True]
    assert (checkpoint.best_score, checkpoint.best_step) == (0.2, 3)
    assert steps_in(tmp_path) == {"last.ckpt": 3, "best.ckpt": 3}


# ------------------------------------------------------------------------------------------------------------ kill


def run_and_hang(folder: Path, where: str) -> None:
    """Train, and stop for ever while the fourth step is being saved."""
    save, replace = torch.save, Path.replace

    def hang() -> None:
        (folder / "hanging").touch()
        time.sleep(60)

    def half(state: dict[str, Any], file: Any) -> None:
        if state["global_step"] == 4:
            file.write(b"PK\x03\x04 half of a checkpoint")
            file.flush()
            hang()
        save(state, file)

    def late(source: Path, target: Path) -> Path:
        if target.name == "last.ckpt" and (folder / "step-00000003.ckpt").exists():
            hang()
        return replace(source, target)

    if where == "writing":
        torch.save = half
    else:
        Path.replace = late  # type: ignore[method-assign, assignment]
    fit(9, [always(folder, keep_last=2)])


@pytest.mark.parametrize("where", ["writing", "moving"])
def test_sigkill_during_a_save_leaves_a_whole_checkpoint(tmp_path: Path, where: str):
    process = multiprocessing.get_context("fork").Process(target=run_and_hang, args=(tmp_path, where))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "hanging").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    (tmp_path / "hanging").unlink()
    assert (tmp_path / "last.ckpt.partial").exists()

    checkpoint = always(tmp_path, keep_last=2)
    assert checkpoint.saved_step() == 3
    assert same_weights(fit(5, [checkpoint], checkpoint=checkpoint), fit(5, []))
    assert steps_in(tmp_path) == {"last.ckpt": 5, "step-00000004.ckpt": 4}
