"""Region-text pretraining of the small CLIP.

Captions alone do not teach a CLIP of this size what a category is; phrases about single objects, compared
with the patch features of that object, do (see docs/log.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from promptris.data.refshapes import render, vocabulary
from promptris.data.refshapes.regions import PROPERTY_VALUES, caption, fits, region_code, region_phrase
from promptris.data.refshapes.scene import REFERENCE_SIZE, stream
from promptris.modeling.base_weights import quiet_transformers
from promptris.modeling.cross_modal_decoder import sine_cosine_code
from promptris.modeling.presets import get_preset
from promptris.modeling.tokenizer import build_word_tokenizer
from promptris.ops.resizing import pool_masks
from promptris.processing import Processor, normalised
from promptris.training.config import PretrainingConfig
from promptris.training.pretraining import (
    HELD_OUT_SEED,
    PRETRAINING_SEED,
    SceneBatches,
    TowerPretraining,
)

PHRASES_PER_OBJECT = 2
_PHRASE_STREAM = 11
"""Purpose number of the random stream that phrases are drawn from."""


@dataclass
class RegionBatch:
    """Scenes with their objects as regions, and phrases about them.

    Attributes:
        pixels: [S, 3, h, w] for CLIP.
        scene_index: [R] scene of each region; the last S regions are the scenes' backgrounds.
        weights: [R, N_C] share of each patch in the region, rows sum to 1.
        codes: [R - S, 6] properties of the objects.
        input_ids, word_mask: [P, T] phrases.
        positive: [P, R] phrase is true of region.
        caption_ids, caption_mask: [S, T] one sentence per scene.
    """

    pixels: Tensor
    scene_index: Tensor
    weights: Tensor
    codes: Tensor
    input_ids: Tensor
    word_mask: Tensor
    positive: Tensor
    caption_ids: Tensor
    caption_mask: Tensor


class RegionBatches(SceneBatches):
    """Region batches by step; in the second half phrases name places too."""

    def __init__(self, config: PretrainingConfig, processor: Processor, grid: int, world_seed: int) -> None:
        super().__init__(config, world_seed, REFERENCE_SIZE)
        self.processor, self.grid = processor, grid

    def __getitem__(self, step: int) -> RegionBatch:
        rng = stream(self.world_seed, step, _PHRASE_STREAM)
        place_share = 0.5 if step >= self.config.steps // 2 else 0.0
        images, masks, scene_index, codes, phrases, captions = [], [], [], [], [], []
        backgrounds = []
        for number, scene in enumerate(self.scenes(step)):
            rendered = render(scene)
            images.append(rendered.image)
            masks.append(torch.from_numpy(rendered.masks))
            backgrounds.append(torch.from_numpy(~rendered.masks.any(axis=0)))
            scene_index += [number] * len(scene.objects)
            codes += [region_code(shape, scene.size) for shape in scene.objects]
            for shape in scene.objects:
                phrases += [
                    region_phrase(shape, scene.size, rng, place_share) for _ in range(PHRASES_PER_OBJECT)
                ]
            captions.append(caption(scene, rng))
        phrases = list({phrase.text: phrase for phrase in phrases}.values())
        regions = np.array(codes, dtype=np.int64)
        positive = fits(np.array([phrase.code for phrase in phrases], dtype=np.int64), regions)
        # No phrase is about a background.
        positive = np.pad(positive, ((0, 0), (0, len(images))))
        shares = pool_masks(torch.cat([*masks, torch.stack(backgrounds)]), (self.grid, self.grid)).flatten(1)
        text = self.processor.expressions([phrase.text for phrase in phrases])
        sentences = self.processor.expressions(captions)
        return RegionBatch(
            pixels=normalised(self.processor.images(images, with_sam=False)).clip_pixels,
            scene_index=torch.tensor(scene_index + list(range(len(images)))),
            weights=shares / shares.sum(dim=1, keepdim=True),
            codes=torch.from_numpy(regions),
            input_ids=text.input_ids,
            word_mask=text.word_mask,
            positive=torch.from_numpy(positive),
            caption_ids=sentences.input_ids,
            caption_mask=sentences.word_mask,
        )


class ClipPretraining(TowerPretraining):
    """A small CLIP learning to match phrases with regions.

    Args:
        config: optimisation.
        preset: name of the tower sizes.
        seed: of the initial weights.
    """

    loss_terms = ("region", "sigmoid", "attribute", "caption", "word")

    def __init__(self, config: PretrainingConfig, preset: str = "refshapes", seed: int = 0) -> None:
        super().__init__(config)
        torch.manual_seed(seed)
        sizes = get_preset(preset)
        clip_config = sizes.clip_config()
        self.tokenizer = build_word_tokenizer(
            vocabulary(), model_max_length=clip_config.text_config.max_position_embeddings
        )
        text = clip_config.text_config
        text.vocab_size = len(self.tokenizer)
        text.bos_token_id = self.tokenizer.bos_token_id
        text.eos_token_id = self.tokenizer.eos_token_id
        text.pad_token_id = self.tokenizer.pad_token_id
        self.clip = CLIPModel(clip_config)
        self.clip.set_attn_implementation("sdpa")
        _strengthen(self.clip)
        vision = clip_config.vision_config
        self.grid = vision.image_size // vision.patch_size
        self.processor = Processor(
            self.tokenizer, vision.image_size, vision.image_size, text.max_position_embeddings
        )
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(clip_config.projection_dim, len(v)) for name, v in PROPERTY_VALUES.items()}
        )
        self.word_head = nn.Linear(text.hidden_size, text.vocab_size)

    def batches(self) -> RegionBatches:
        """Training batches."""
        return RegionBatches(self.config, self.processor, self.grid, PRETRAINING_SEED)

    def region_features(self, pixels: Tensor, scene_index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of regions [R, D] and of whole images [S, D]."""
        vision = self.clip.vision_model
        tokens = vision.post_layernorm(vision(pixels).last_hidden_state)
        projected = self.clip.visual_projection(tokens)
        pooled = torch.einsum("rn,rnd->rd", weights, projected[:, 1:][scene_index])
        return F.normalize(pooled, dim=-1), F.normalize(projected[:, 0], dim=-1)

    def text_features(self, input_ids: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of phrases [P, D], and their words' last hidden states [P, T, D_T]."""
        output = self.clip.text_model(input_ids=input_ids, attention_mask=word_mask.long())
        return F.normalize(self.clip.text_projection(output.pooler_output), dim=-1), output.last_hidden_state

    def word_loss(self, hidden: Tensor, input_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Cross-entropy of telling each word from its last hidden state.

        The prompts and the decoder read every word, also those that tell nothing about a single region ("above",
        "of"), which a contrast of regions alone lets the tower forget.
        """
        return F.cross_entropy(self.word_head(hidden[word_mask]), input_ids[word_mask])

    def losses(self, batch: RegionBatch) -> dict[str, Tensor]:
        regions, images = self.region_features(batch.pixels, batch.scene_index, batch.weights)
        phrases, phrase_words = self.text_features(batch.input_ids, batch.word_mask)
        sentences, sentence_words = self.text_features(batch.caption_ids, batch.caption_mask)
        scale = self.clip.logit_scale.clamp(max=math.log(100.0)).exp()
        logits = scale * phrases @ regions.T
        region = (multi_positive(logits, batch.positive) + multi_positive(logits.T, batch.positive.T)) / 2
        sigmoid = F.binary_cross_entropy_with_logits(
            logits + self.bias, batch.positive.float(), reduction="sum"
        )
        sigmoid = sigmoid / batch.positive.sum()
        objects = regions[: len(batch.codes)] * math.sqrt(regions.shape[1])
        # Category is the hardest property to learn and the one a wrong answer costs most.
        attribute = torch.stack(
            [
                (2.0 if name == "category" else 1.0) * F.cross_entropy(head(objects), batch.codes[:, i])
                for i, (name, head) in enumerate(self.heads.items())
            ]
        ).sum()
        similarity = scale * sentences @ images.T
        target = torch.arange(len(images), device=similarity.device)
        whole = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
        word = (
            self.word_loss(phrase_words, batch.input_ids, batch.word_mask)
            + self.word_loss(sentence_words, batch.caption_ids, batch.caption_mask)
        ) / 2
        terms = {
            "region": region,
            "sigmoid": sigmoid,
            "attribute": attribute,
            "caption": whole,
            "word": word,
        }
        return {"loss": region + sigmoid + attribute + 0.3 * whole + 0.3 * word, **terms}

    def gate(self) -> dict[str, float]:
        """Zero-shot accuracy per property over held-out objects: which of "the red thing", ... fits best."""
        held_out = RegionBatches(self.config, self.processor, self.grid, HELD_OUT_SEED)
        prompts = {
            "category": "the {}",
            "color": "the {} thing",
            "texture": "the {} thing",
            "size": "the {} thing",
        }
        right = dict.fromkeys(prompts, 0)
        total = 0
        for step in range(math.ceil(self.config.gate_scenes / self.config.scenes)):
            batch = held_out[step]
            regions, _ = self.region_features(batch.pixels, batch.scene_index, batch.weights)
            total += len(batch.codes)
            for i, (name, prompt) in enumerate(prompts.items()):
                text = self.processor.expressions([prompt.format(value) for value in PROPERTY_VALUES[name]])
                features, _ = self.text_features(text.input_ids, text.word_mask)
                best = (regions[: len(batch.codes)] @ features.T).argmax(dim=1)
                right[name] += int((best == batch.codes[:, i]).sum())
        return {f"zero_shot_{name}": round(count / total, 4) for name, count in right.items()}

    def save(self, folder: Path) -> None:
        with quiet_transformers(bars=False):
            self.clip.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows of -log of the probability that a row's positives have together.

    Rows without any positive are left out.
    """
    has = positive.any(dim=1)
    log_total = logits[has].logsumexp(dim=1)
    log_right = logits[has].masked_fill(~positive[has], -math.inf).logsumexp(dim=1)
    return (log_total - log_right).mean()


@torch.no_grad()
def _strengthen(clip: CLIPModel) -> None:
    """Larger initial scales than transformers', which are meant for wide models, and positions told apart."""
    embeddings = clip.vision_model.embeddings
    side = math.isqrt(embeddings.num_patches)
    weight: Any = embeddings.position_embedding.weight
    weight[1:] = 0.35 * sine_cosine_code((side, side), weight.shape[1], weight)
    embeddings.patch_embedding.weight.mul_(1.5)
    text = clip.text_model.embeddings
    text.token_embedding.weight.mul_(5.0)
    text.position_embedding.weight.mul_(5.0)
