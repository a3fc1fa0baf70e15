"""The Lightning trainer that every run here uses: counted in steps, on one process or many."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment

from promptris.errors import InputError
from promptris.ops.onednn import OneDnnLinears
from promptris.team import launched_rank
from promptris.training.callbacks import MetricsFile, SeedSteps, Sink, StepFigures
from promptris.training.checkpoints import StepCheckpoint
from promptris.training.config import EngineConfig
from promptris.training.progress import TrainingProgress
from promptris.training.steps import MakeBatches, StepData
from promptris.training.stopping import StopOnSignal, ignore_interrupts

METRICS_FILE = "metrics.csv"
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
AUTOCAST: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STRATEGIES = ("auto", "ddp", "fsdp")


def fit_steps(
    module: L.LightningModule,
    make_batches: MakeBatches,
    total: int,
    folder: Path,
    name: str,
    seed: int,
    checkpoint: StepCheckpoint,
    resume: bool,
    *,
    gradient_clip: float = 0.0,
    accumulate: int = 1,
    engine: EngineConfig | None = None,
    accelerator: str = "cpu",
    callbacks: Sequence[L.Callback] = (),
    sinks: Sequence[Sink] = (),
    stages: int = 1,
) -> torch.device:
    """Run the steps that are not done yet; afterwards the module holds the weights of the last one.

    Args:
        module: gives the loss of a batch, and `loss_terms`, the names of its parts.
        make_batches: the data; item m is the m-th backward pass, `accumulate` of which make a step.
        total: steps of the optimiser in the whole run.
        folder: where `metrics.csv` goes.
        name: shown in the progress lines.
        seed: everything random in a step is a function of it and the step's number.
        checkpoint: where the state is saved, and found again.
        resume: go on from the checkpoint if there is one.
        gradient_clip: largest norm of the gradient; 0 leaves it alone.
        accumulate: backward passes per step.
        engine: devices, precision and the like; None is one process in float32.
        accelerator: "auto", "cpu", "cuda" or "mps".
        callbacks: others than the usual ones.
        sinks: others than `metrics.csv` and the progress bar that take the figures of every step.
        stages: how many stages the steps are divided into.

    Returns:
        the device that this process has trained on, where the module still is.

    Raises:
        Interrupted: a signal ended the run, which is saved.
    """
    engine = engine or EngineConfig()
    start = checkpoint.saved_step() if resume else 0
    if start >= total:
        checkpoint.load_weights(module)
        return module.device
    first = launched_rank() == 0
    data = StepData(make_batches, total * accumulate, start * accumulate, engine.workers, ignore_interrupts)
    stop = StopOnSignal(checkpoint)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if engine.onednn and not engine.compile:
            stack.enter_context(OneDnnLinears())
        usual: list[Sink] = []
        if first:
            progress = stack.enter_context(TrainingProgress(name, stages=stages))
            usual = [MetricsFile(folder / METRICS_FILE, module.loss_terms, start), progress]
        stack.enter_context(stop.as_interruption())
        trainer = L.Trainer(
            max_steps=total,
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=engine.devices,
            num_nodes=engine.nodes,
            strategy=_strategy(engine),
            precision=PRECISIONS[engine.precision],
            accumulate_grad_batches=accumulate,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=gradient_clip or None,
            default_root_dir=folder,
            # By itself Lightning would save and queue the job again from inside a signal's handler.
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            # A step is written down before it is saved, and saved before the run ends over a signal.
            callbacks=[
                SeedSteps(seed),
                StepFigures(total, [*usual, *sinks]),
                *callbacks,
                checkpoint,
                stop,
            ],
        )
        resume_path = checkpoint.resume_path() if start else None
        trainer.fit(module, datamodule=data, ckpt_path=resume_path, weights_only=True)
    device = trainer.strategy.root_device
    module.to(device)
    return device


def check_engine(engine: EngineConfig, accelerator: str = "auto") -> None:
    """InputError naming a field of the engine that is none of its values, or does not go with the machine."""
    if engine.strategy == "fsdp" and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise InputError("engine.strategy fsdp needs GPUs: take ddp, which trains on the CPU too")
    if engine.precision not in PRECISIONS:
        raise InputError(f"engine.precision is {engine.precision!r}: choose from {', '.join(PRECISIONS)}")
    if engine.strategy not in STRATEGIES:
        raise InputError(f"engine.strategy is {engine.strategy!r}: choose from {', '.join(STRATEGIES)}")
    if engine.devices == 0 or engine.devices < -1 or engine.nodes < 1:
        raise InputError(
            f"engine.devices is {engine.devices} and engine.nodes {engine.nodes}: both count from 1, or give -1 "
            "devices for all GPUs"
        )


def world_size(engine: EngineConfig) -> int:
    """How many processes a run will have."""
    devices = max(torch.cuda.device_count(), 1) if engine.devices == -1 else engine.devices
    return devices * engine.nodes


def _strategy(engine: EngineConfig) -> Any:
    if world_size(engine) == 1:
        return "auto"
    if engine.strategy == "fsdp":
        from lightning.pytorch.strategies import FSDPStrategy

        return FSDPStrategy(state_dict_type="full", use_orig_params=True)
    from lightning.pytorch.strategies import DDPStrategy

    # The first stage leaves SAM's side of the model out of the loss.
    return DDPStrategy(find_unused_parameters=True)


@contextmanager
def _quiet() -> Any:
    """Without Lightning's advice for other setups."""
    with warnings.catch_warnings():
        # Frozen towers are meant to be in evaluation mode, small batches need no worker processes, and our
        # loader starts at the right step by itself.
        warnings.filterwarnings("ignore", message=r".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=r".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        yield
