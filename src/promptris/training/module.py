"""One training step of Prompt-RIS, and its optimiser."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from promptris.losses import PromptRISCriterion
from promptris.modeling.prompt_ris import PromptRIS
from promptris.ops.points import gumbel_noise
from promptris.structures import TrainingBatch
from promptris.training.config import TrainConfig
from promptris.training.optimizer import decay_matrices
from promptris.training.schedule import Schedule


class PromptRISTraining(L.LightningModule):
    """Trains the learned parts of a model; the towers stay as they are.

    Args:
        model: the model.
        config: optimisation.
        schedule: stages and learning rates.
    """

    loss_terms = ("coarse_bce", "coarse_dice", "coarse_icl", "final_bce", "final_dice", "final_icl")

    def __init__(self, model: PromptRIS, config: TrainConfig, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.config, self.schedule = model, config, schedule
        self.criterion = PromptRISCriterion(icl_weight=config.icl_weight)

    @property
    def stage_number(self) -> int:
        """Index of the current stage."""
        return self.schedule.stage_number(self.global_step)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> dict[str, Tensor]:
        """Losses of one step, by name."""
        features = self.model.encode_image(batch.images)
        if features.sam_embeddings is None:
            output = self.model(features, batch.expressions)
        else:
            keep, noise = self.draw(batch)
            output = self.model(features, batch.expressions, prompts=keep, sample_point=noise)
        return self.criterion(output, batch.truth, icl_scale=self.icl_scale())

    def draw(self, batch: TrainingBatch) -> tuple[Bool[Tensor, "B 3"], Float[Tensor, "B P"]]:
        """Which prompts each sample keeps, and the Gumbel noise of its point; drawn image by image."""
        per_image = len(batch.expressions.input_ids) // len(batch.seeds)
        positions = self.model.sam.mask_size**2
        kept, noise = [], []
        for seed in batch.seeds:
            chance = torch.Generator(self.device).manual_seed(seed)
            kept.append(kept_prompts(per_image, self.config.prompt_dropout, self.device, chance))
            noise.append(gumbel_noise(per_image, positions, self.device, chance))
        return torch.cat(kept), torch.cat(noise)

    def icl_scale(self) -> float:
        """How far instance contrastive learning has been ramped in, 0 to 1."""
        ramp = self.config.icl_ramp * self.schedule.total
        return min(1.0, (self.global_step + 1) / ramp) if ramp else 1.0

    def configure_optimizers(self) -> Any:
        """AdamW on the trainable parameters only, decay on matrices."""
        towers = {id(p) for tower in self.model.frozen_towers() for p in tower.parameters()}
        learned = (p for p in self.model.parameters() if id(p) not in towers)
        groups = decay_matrices(learned, self.config.weight_decay)
        if not self.model.towers_are_frozen:
            tuned = (p for p in self.model.parameters() if id(p) in towers)
            # Rates are multiples of the schedule's, which the optimiser's own rate of 1 leaves as they are.
            share = self.config.towers_lr
            groups += [{**group, "lr": share} for group in decay_matrices(tuned, self.config.weight_decay)]
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable parameters only; the towers are named by the recipe."""
        wanted = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in wanted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen weights back in, which are in the model already."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


def kept_prompts(
    samples: int, dropout: float, device: torch.device, generator: torch.Generator | None = None
) -> Bool[Tensor, "B 3"]:
    """[B, 3] which of mask, point and text prompt each sample keeps; never none of them."""
    keep = torch.rand(samples, 3, device=device, generator=generator) >= dropout
    last = torch.randint(3, (samples,), device=device, generator=generator)
    spare = torch.nn.functional.one_hot(last, 3).bool()
    return torch.where(keep.any(dim=1, keepdim=True), keep, spare)
