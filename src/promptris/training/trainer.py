"""The Lightning trainer that every run here uses: counted in steps, one metrics file, one checkpoint."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch.utils.data import Dataset

from promptris.training.callbacks import MetricsFile, ProgressLines, SeedSteps
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.steps import step_loader

METRICS_FILE = "metrics.csv"


def fit_steps(
    module: L.LightningModule,
    batches: Dataset,
    total: int,
    folder: Path,
    name: str,
    seed: int,
    checkpoint: StepCheckpoint,
    resume: bool,
    gradient_clip: float = 0.0,
    workers: int = 0,
    accelerator: str = "cpu",
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Run the steps that are not done yet; afterwards the module holds the weights of the last one.

    Args:
        module: gives the loss of a batch, and `loss_terms`, the names of its parts.
        batches: item k is the batch of step k.
        total: steps of the whole run.
        folder: where `metrics.csv` goes.
        name: shown in the progress lines.
        seed: everything random in a step is a function of it and the step's number.
        checkpoint: where the state is saved, and found again.
        resume: go on from the checkpoint if there is one.
        gradient_clip: largest norm of the gradient; 0 leaves it alone.
        workers: processes that prepare batches.
        accelerator: "auto", "cpu", "cuda" or "mps".
        callbacks: others than the usual ones.
    """
    start = checkpoint.saved_step() if resume else 0
    if start >= total:
        checkpoint.load_weights(module)
        return
    with warnings.catch_warnings():
        # Lightning's advice for other setups: frozen towers are meant to be in evaluation mode, small batches
        # need no worker processes, and our loader starts at the right step by itself.
        warnings.filterwarnings("ignore", message=r".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=r".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = L.Trainer(
            max_steps=total,
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=gradient_clip or None,
            default_root_dir=folder,
            callbacks=[
                SeedSteps(seed),
                MetricsFile(folder / METRICS_FILE, module.loss_terms),
                ProgressLines(name, total),
                *callbacks,
                checkpoint,
            ],
        )
        loader = step_loader(batches, total, start, workers)
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint.path if start else None, weights_only=True)
        except SystemExit as stop:
            # Lightning answers Ctrl-C with an exit of its own.
            raise KeyboardInterrupt from stop
