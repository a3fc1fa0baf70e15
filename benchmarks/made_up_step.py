"""A training step on made-up data, as `promptris train` does it, for the benchmarks to measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from promptris.losses import PromptRISCriterion
from promptris.modeling.cost import StepShape
from promptris.modeling.prompt_ris import PromptRIS
from promptris.processing import SAM_MEAN, SAM_STD, normalise
from promptris.structures import (
    ExpressionBatch,
    ImageBatch,
    ImageFeatures,
    SegmentationTargets,
    TrainingBatch,
)
from promptris.training.optimizer import decay_matrices


def made_up_batch(model: PromptRIS, shape: StepShape, with_sam: bool, seed: int = 0) -> TrainingBatch:
    """Noise as images, random words, half of each mask foreground; nothing of it changes what a step costs.

    Args:
        model: whose sizes the batch gets; it is made on the model's device.
        shape: size of the step; the longest expression has `shape.tokens`, the others at least half of it.
        with_sam: whether SAM's pixels are there.
        seed: of all of it.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def pixels(side: int) -> Tensor:
        # As the processor makes them: uint8, channels last in memory.
        rows = torch.randint(256, (shape.images, side, side, 3), dtype=torch.uint8, generator=generator)
        return rows.permute(0, 3, 1, 2)

    batch = shape.images * shape.expressions_per_image
    lengths = torch.randint(shape.tokens // 2, shape.tokens + 1, (batch,), generator=generator)
    lengths[0] = shape.tokens
    vocabulary = model.clip.clip.config.text_config.vocab_size
    size = model.sam.mask_size
    return TrainingBatch(
        images=ImageBatch(
            pixels(model.config.clip_image_size), pixels(model.sam.image_size) if with_sam else None
        ),
        expressions=ExpressionBatch(
            input_ids=torch.randint(vocabulary, (batch, shape.tokens), generator=generator),
            word_mask=torch.arange(shape.tokens) < lengths[:, None],
            image_index=torch.arange(shape.images).repeat_interleave(shape.expressions_per_image),
        ),
        truth=SegmentationTargets(
            (torch.rand(batch, size, size, generator=generator) < 0.5).float(), torch.arange(batch)
        ),
        image_ids=tuple(range(shape.images)),
    ).to(device)


@dataclass
class TrainingStep:
    """Forward pass, losses, backward pass and optimiser of one step.

    Args:
        model: in training mode; `checkpoint_activations` and compilation are the caller's.
        precision: "32" or "bf16" (mixed).
    """

    model: PromptRIS
    precision: str = "32"

    def __post_init__(self) -> None:
        groups = decay_matrices(self.model.parameters(), weight_decay=0.01)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        self.criterion = PromptRISCriterion()

    def __call__(self, batch: TrainingBatch, embeddings: Tensor | None = None, share: bool = True) -> Tensor:
        """The loss, after the parameters were changed.

        Args:
            batch: without SAM's pixels and `embeddings` the step is one of the first stage.
            embeddings: [I, D_S, H_S, W_S] SAM's image embeddings, when they come from a cache.
            share: encode each image once for SAM, as promptris does, and not once per expression.
        """
        index = batch.expressions.image_index
        with torch.autocast(index.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if share:
                features, expressions = self.model.encode_image(batch.images), batch.expressions
                if embeddings is not None:
                    features = ImageFeatures(features.clip_tokens, embeddings)
            else:
                features, expressions = self._encode_per_expression(batch)
            output = self.model(features, expressions, sample_point=features.sam_embeddings is not None)
            output.image_index = index
            loss = self.criterion(output, batch.truth)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _encode_per_expression(self, batch: TrainingBatch) -> tuple[ImageFeatures, ExpressionBatch]:
        """Features in which every expression has an image of its own for SAM."""
        index, words, sam_pixels = batch.expressions.image_index, batch.expressions, batch.images.sam_pixels
        assert sam_pixels is not None
        features = self.model.encode_image(ImageBatch(batch.images.clip_pixels))
        # One after the other: several at once are slower on a CPU.
        with torch.no_grad():
            ready = normalise(sam_pixels, SAM_MEAN, SAM_STD)
            embeddings = torch.cat([self.model.sam.encode_image(ready[i : i + 1]) for i in index.tolist()])
        own = torch.arange(len(index), device=index.device)
        return (
            ImageFeatures(features.clip_tokens[index], embeddings),
            ExpressionBatch(words.input_ids, words.word_mask, own),
        )
