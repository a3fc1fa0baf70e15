"""Steps whose loss or gradient is no number must not reach the weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.utils import get_total_norm

from promptris.errors import InputError
from promptris.team import Team
from promptris.training.checkpoints import highest


class BadLossGuard(L.Callback):
    """Leaves out steps whose loss is NaN or infinite, and stops the run after too many of them.

    Such a step counts, but its gradients are dropped on all processes before the optimiser sees them: neither
    parameters nor moments change. A gradient that is not finite under a loss that is counts the same, except
    with float16's loss scaling, where it is usual and the scaler's business.

    Args:
        allowed: how many steps of a run may be left out.

    Attributes:
        skipped: how many were, in this run and before it was resumed.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.skipped = 0
        self._images: tuple[int, ...] = ()
        self._losses: list[tuple[tuple[int, ...], Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._losses = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._images = tuple(getattr(batch, "image_ids", ()))

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: Tensor) -> None:
        # Divided by the number of passes and scaled by now, which changes nothing about its being a number.
        self._losses.append((self._images, loss.detach().float()))

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        # After all passes of the step are summed up and unscaled, before the gradient is clipped.
        passes, self._losses = self._losses, []
        fine = torch.stack([torch.isfinite(loss) for _, loss in passes]).all()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            norm = get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])
            fine = fine & torch.isfinite(norm).to(fine.device)
        if not highest(trainer, int(not fine.item())):
            return
        for parameter in _parameters(optimizer):
            parameter.grad = None
        self.skipped += 1
        what = self._describe(trainer, passes)
        if self.skipped > self.allowed:
            before = f", after {self.allowed} steps that were left out" if self.allowed else ""
            raise InputError(
                f"{what}{before}: look at these images and their masks, lower train.lr, or raise train.bad_steps"
            )
        rank_zero_warn(
            f"{what}: the step is left out ({self.skipped} of the {self.allowed} that may be)",
            category=UserWarning,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _describe(self, trainer: L.Trainer, passes: list[tuple[tuple[int, ...], Tensor]]) -> str:
        """What is wrong with this step, over all processes."""
        mine = [(images, loss.item() * trainer.accumulate_grad_batches) for images, loss in passes]
        team = Team(trainer.global_rank, trainer.world_size)
        everywhere = [part for parts in team.gather(mine) for part in parts]
        bad = [part for part in everywhere if not torch.isfinite(torch.tensor(part[1]))]
        step = trainer.global_step + 1
        images = ", ".join(str(image) for part in bad or everywhere for image in part[0])
        where = f" (images {images})" if images else ""
        if bad:
            return f"the loss of step {step} is {bad[0][1]}{where}"
        mean = sum(loss for _, loss in everywhere) / len(everywhere)
        return f"the gradient of step {step} is no number, with a loss of {mean:.4g}{where}"


def _parameters(optimizer: Any) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
