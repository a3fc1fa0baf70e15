"""A training of a few numbers around the callbacks that keep its work safe; also a program to be interrupted."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from promptris.errors import InputError
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.guard import BadLossGuard
from promptris.training.stopping import Interrupted, StopOnSignal, ignore_interrupts

FROZEN, TRAINED = 300 * 300 + 300, 3 * 2 + 2


@dataclass
class Numbers:
    """A batch."""

    inputs: Tensor
    factor: float
    image_ids: tuple[int, ...]


class Data(Dataset):
    """Batch m is a function of m; its images are 10 m and 10 m + 1.

    Args:
        factors: of the loss, by batch; 1 unless given.
        seconds: that a batch takes to make.
        offset: of m, so that processes have other batches.
    """

    def __init__(
        self, factors: Mapping[int, float] | None = None, seconds: float = 0.0, offset: int = 0
    ) -> None:
        self.factors, self.seconds, self.offset = dict(factors or {}), seconds, offset

    def __getitem__(self, number: int) -> Numbers:
        time.sleep(self.seconds)
        number += self.offset
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        return Numbers(inputs, self.factors.get(number, 1.0), (10 * number, 10 * number + 1))


class Tiny(L.LightningModule):
    """Eight trained numbers beside ninety thousand frozen ones.

    A batch's factor of nan or inf makes the loss so; 0 makes a loss of 0 with a gradient that is no number.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.frozen = nn.Linear(300, 300).requires_grad_(False)
            self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Numbers, batch_idx: int) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        loss = self.layer(batch.inputs).square().mean()
        return {"loss": loss * batch.factor if batch.factor else (loss * 0).sqrt()}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.layer.parameters(), lr=0.01, weight_decay=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wanted = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in wanted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


class Steps(L.Callback):
    """Calls a function after every step with the number of steps that are done, and the trainer."""

    def __init__(self, function: Callable[[int, L.Trainer], Any]) -> None:
        self.function = function

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.function(trainer.global_step, trainer)


def fit(
    total: int,
    callbacks: Sequence[L.Callback],
    data: Data | None = None,
    checkpoint: StepCheckpoint | None = None,
    seconds: float = 0.0,
    workers: int = 0,
    accumulate: int = 1,
    **options: Any,
) -> Tiny:
    """Train until step `total`, from the checkpoint on if one is given."""
    module = Tiny(seconds)
    start = checkpoint.saved_step() if checkpoint else 0
    loader = DataLoader(
        data or Data(),
        batch_size=None,
        sampler=range(start * accumulate, total * accumulate),
        num_workers=workers,
        worker_init_fn=ignore_interrupts,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for advice in ("in eval mode", "not resumable", "many workers", "LeafSpec"):
            warnings.filterwarnings("ignore", message=f".*{advice}.*")
        trainer = L.Trainer(
            max_steps=total,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            accumulate_grad_batches=accumulate,
            callbacks=list(callbacks),
            **{"devices": 1, **options},
        )
        path = checkpoint.resume_path() if start and checkpoint else None
        trainer.fit(module, loader, ckpt_path=path, weights_only=True)
    return module


def main() -> int:
    """Train for a thousand steps; steps.txt of this process gets the number of each one that is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--long-step", type=int, default=-1, help="a step that takes a minute")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    # The second process is given a batch with a bad loss, 1002.
    data = Data({1002: float("nan")}, 0.01, 1000 * args.rank)
    log = args.folder / f"steps-{args.rank}.txt"

    def note(step: int, trainer: L.Trainer) -> None:
        with log.open("a") as file:
            file.write(f"{step}\n")
        if step == args.long_step:
            time.sleep(60)

    checkpoint = StepCheckpoint(args.folder / "last.ckpt", 0.05)
    stop = StopOnSignal(checkpoint)
    options: dict[str, Any] = {}
    if args.processes > 1:
        options = {"devices": args.processes, "strategy": "ddp"}
    try:
        with stop.as_interruption():
            fit(1000, [BadLossGuard(1), checkpoint, Steps(note), stop], data, workers=args.workers, **options)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return interruption.exit_code
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
