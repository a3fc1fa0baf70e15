"""Promptable, class-agnostic pretraining of the small SAM: point, box, mask, and point with mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SamModel

from promptris.data.refshapes import render
from promptris.data.refshapes.scene import stream
from promptris.losses import dice_loss, mask_bce
from promptris.modeling.base_weights import quiet_transformers
from promptris.modeling.presets import get_preset
from promptris.modeling.sam_adapter import FOREGROUND, SamAdapter
from promptris.ops.resizing import pool_masks, resize_logits
from promptris.processing import SAM_MEAN, SAM_STD, load_image, normalise
from promptris.training.config import PretrainingConfig
from promptris.training.pretraining import (
    HELD_OUT_SEED,
    PRETRAINING_SEED,
    SceneBatches,
    TowerPretraining,
)

PROMPT_KINDS = ("point", "box", "mask", "point+mask")
_PROMPT_SHARES = (0.3, 0.15, 0.25, 0.3)
_PROMPT_STREAM = 12
"""Purpose number of the random stream that prompts are drawn from."""
OBJECTS_PER_SCENE = 2
"""Objects that are prompted in a scene; more of them cost decoder time and teach the encoder little."""
COARSE_GRIDS = (6, 8, 12)
"""Mask prompts are blurred to one of these grids, as a coarse mask is."""


@dataclass
class PromptBatch:
    """Scenes with one prompt for each of some objects.

    Attributes:
        pixels: [S, 3, s, s] for SAM.
        image_index: [R] scene of each object.
        truth: [R, 4H, 4W] share of each cell covered.
        kind: [R] index into PROMPT_KINDS.
        points: [R, 2] a pixel of the object, (x, y) fractions of the image.
        boxes: [R, 2, 2] corners, (x, y) fractions.
        mask_logits: [R, 4H, 4W] the object as a coarse, noisy response map.
    """

    pixels: Tensor
    image_index: Tensor
    truth: Tensor
    kind: Tensor
    points: Tensor
    boxes: Tensor
    mask_logits: Tensor


class PromptBatches(SceneBatches):
    """Prompt batches by step.

    Args:
        config: optimisation.
        image_size: SAM's square.
        mask_size: side of mask prompts.
        world_seed: which world.
        kind: the one kind of prompt to draw; None mixes them.
    """

    def __init__(
        self,
        config: PretrainingConfig,
        image_size: int,
        mask_size: int,
        world_seed: int,
        kind: str | None = None,
    ) -> None:
        super().__init__(config, world_seed, image_size)
        self.image_size, self.mask_size, self.kind = image_size, mask_size, kind

    def __getitem__(self, step: int) -> PromptBatch:
        rng = stream(self.world_seed, step, _PROMPT_STREAM)
        images, masks, index = [], [], []
        for number, scene in enumerate(self.scenes(step)):
            rendered = render(scene)
            images.append(torch.from_numpy(load_image(rendered.image)))
            chosen = rendered.masks[rng.permutation(len(rendered.masks))[:OBJECTS_PER_SCENE]]
            masks += list(chosen)
            index += [number] * len(chosen)
        count = len(masks)
        kind = rng.choice(len(PROMPT_KINDS), size=count, p=_PROMPT_SHARES)
        if self.kind is not None:
            kind = np.full(count, PROMPT_KINDS.index(self.kind))
        points, boxes = np.empty((count, 2)), np.empty((count, 2, 2))
        for row, mask in enumerate(masks):
            ys, xs = np.nonzero(mask)
            pick = int(rng.integers(len(ys)))
            points[row] = xs[pick] + 0.5, ys[pick] + 0.5
            jitter = rng.uniform(-3, 3, size=(2, 2))
            boxes[row] = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.max() + 1]]) + jitter
        stacked = torch.from_numpy(np.stack(masks))
        return PromptBatch(
            pixels=normalise(torch.stack(images).permute(0, 3, 1, 2), SAM_MEAN, SAM_STD),
            image_index=torch.tensor(index),
            truth=pool_masks(stacked, (self.mask_size, self.mask_size)),
            kind=torch.from_numpy(kind),
            points=torch.from_numpy(points / self.image_size).float(),
            boxes=torch.from_numpy((boxes / self.image_size).clip(0, 1)).float(),
            mask_logits=coarse_response(stacked, self.mask_size, rng),
        )


def coarse_response(masks: Tensor, mask_size: int, rng: np.random.Generator) -> Tensor:
    """Masks [R, H, W] as logits [R, h, w] that a coarse decoder might give: blurred to a small grid, noisy."""
    grid = COARSE_GRIDS[int(rng.integers(len(COARSE_GRIDS)))]
    shares = pool_masks(masks, (grid, grid))
    strength = torch.from_numpy(rng.uniform(4, 14, size=(len(masks), 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(0.25, 0.5, size=(len(masks), 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0, 0.8, size=shares.shape)).float()
    return resize_logits((shares - offset) * strength + noise, (mask_size, mask_size))


class SamPretraining(TowerPretraining):
    """A small SAM learning to segment what a prompt points at.

    Args:
        config: optimisation.
        preset: name of the tower sizes.
        seed: of the initial weights.
    """

    loss_terms = ("bce", "dice", "iou")

    def __init__(self, config: PretrainingConfig, preset: str = "refshapes", seed: int = 0) -> None:
        super().__init__(config)
        torch.manual_seed(seed)
        sam = SamModel(get_preset(preset).sam_config())
        _strengthen(sam)
        self.sam = SamAdapter(sam)
        # SAM's random position matrix is a constant, also while SAM itself is trained.
        sam.shared_image_embedding.requires_grad_(False)
        sam.prompt_encoder.shared_embedding.requires_grad_(False)

    def batches(self, world_seed: int = PRETRAINING_SEED, kind: str | None = None) -> PromptBatches:
        """Training batches, or held-out ones of one kind of prompt."""
        return PromptBatches(self.config, self.sam.image_size, self.sam.mask_size, world_seed, kind)

    def segment(self, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """Mask logits [R, 4H, 4W] and predicted IoU [R]."""
        sam, rows = self.sam, len(batch.kind)
        embeddings = sam.encode_image(batch.pixels)[batch.image_index]
        point, box, mask, both = (batch.kind == i for i in range(len(PROMPT_KINDS)))
        has_point, has_mask = point | both, mask | both
        label = torch.full((rows, 1), FOREGROUND)
        clicks = sam.click_embeddings(sam.embed_position(batch.points)[:, None], label)
        tokens = torch.cat(
            [clicks, sam.padding_point().expand(rows, 1, -1), sam.box_embeddings(batch.boxes)], dim=1
        )
        present = torch.stack([has_point, has_point, box, box], dim=1)
        dense = torch.where(has_mask[:, None, None, None], sam.embed_mask(batch.mask_logits), sam.no_mask())
        return sam.decode(embeddings, dense, tokens, present)

    def losses(self, batch: PromptBatch) -> dict[str, Tensor]:
        logits, predicted_iou = self.segment(batch)
        bce, dice = mask_bce(logits, batch.truth), dice_loss(logits, batch.truth)
        iou = F.mse_loss(predicted_iou, hard_iou(logits.detach(), batch.truth))
        return {"loss": 2 * bce + dice + iou, "bce": bce, "dice": dice, "iou": iou}

    def gate(self) -> dict[str, float]:
        """mIoU over held-out objects for each kind of prompt."""
        figures = {}
        for kind in PROMPT_KINDS:
            held_out = self.batches(HELD_OUT_SEED, kind)
            steps = range(math.ceil(self.config.gate_scenes / self.config.scenes))
            batches = (held_out[step] for step in steps)
            ious = torch.cat([hard_iou(self.segment(batch)[0], batch.truth) for batch in batches])
            figures[f"miou_{kind}"] = round(float(ious.mean()), 4)
        return figures

    def save(self, folder: Path) -> None:
        with quiet_transformers(bars=False):
            self.sam.sam.save_pretrained(folder)


def hard_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """[R] IoU of thresholded masks with thresholded truth, at the logits' resolution."""
    predicted, actual = (logits > 0).flatten(1), (truth > 0.5).flatten(1)
    intersection = (predicted & actual).sum(1).float()
    return intersection / (predicted | actual).sum(1).clamp(min=1)


@torch.no_grad()
def _strengthen(sam: SamModel) -> None:
    """Position matrix of unit scale and visible position embeddings, as a narrow SAM needs."""
    matrix = sam.shared_image_embedding.positional_embedding
    matrix.normal_(std=1.0)
    sam.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    sam.vision_encoder.pos_embed.normal_(std=0.3)
