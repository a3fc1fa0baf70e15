"""The frozen towers of a run: loaded, or pretrained side by side in two processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Literal

import torch

from promptris.errors import PromptRISError
from promptris.training.config import TowersConfig
from promptris.training.pretraining import pretrain

TowerName = Literal["clip", "sam"]


def prepare_towers(config: TowersConfig, folder: Path, seed: int, resume: bool) -> tuple[str, str]:
    """Sources of CLIP and SAM; small ones are pretrained below `folder` unless they are there already."""
    given: dict[TowerName, str | None] = {"clip": config.clip, "sam": config.sam}
    sources = {name: source or str(folder / name) for name, source in given.items()}
    missing = [name for name, source in given.items() if source is None and not (folder / name).is_dir()]
    jobs = [(name, config, folder, seed, resume) for name in missing]
    if len(jobs) == 2 and (os.cpu_count() or 1) > 1:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_pretrain_alone, args=job) for job in jobs]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.terminate()
        failed = [job[0] for job, process in zip(jobs, processes, strict=True) if process.exitcode != 0]
        if failed:
            raise PromptRISError(f"pretraining of the small {' and '.join(failed)} tower failed; see above")
    else:
        for job in jobs:
            pretrain_tower(*job)
    return sources["clip"], sources["sam"]


def pretrain_tower(
    name: TowerName, config: TowersConfig, folder: Path, seed: int, resume: bool
) -> dict[str, float]:
    """Pretrain one small tower; returns its gate's figures."""
    from promptris.training.clip_pretraining import ClipPretraining
    from promptris.training.sam_pretraining import SamPretraining

    module: ClipPretraining | SamPretraining
    if name == "clip":
        module = ClipPretraining(config.clip_pretraining, config.preset, seed)
    else:
        module = SamPretraining(config.sam_pretraining, config.preset, seed)
    return pretrain(module, module.batches(), folder / name, name, seed, resume)


def _pretrain_alone(name: TowerName, config: TowersConfig, folder: Path, seed: int, resume: bool) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Two processes with one thread each beat two threads for towers of this size.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    pretrain_tower(name, config, folder, seed, resume)


def _exit_with_parent() -> None:
    """A run that is killed takes its helpers with it; their checkpoints are there to resume from."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
