"""What a step is said to cost against hand-computed figures and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from promptris.losses import PromptRISCriterion
from promptris.modeling.build import build_random
from promptris.modeling.cost import PARTS, StepShape, _Meter, count_step
from promptris.structures import ExpressionBatch, ImageBatch, SegmentationTargets

SMALL = StepShape(images=2, expressions_per_image=3, tokens=7)
PAPER = StepShape(images=2, expressions_per_image=4, tokens=20)


def small():
    return build_random("refshapes")


def paper():
    return build_random("vit-b")


@pytest.fixture(scope="module")
def paper_cost():
    return count_step(paper, PAPER)


def test_clip_image_tower_of_the_paper_by_hand(paper_cost):
    """12 layers of 16 prompts, [CLS] and 30 x 30 patches at width 768, for 8 expressions of 2 images."""
    tokens, prompts, width, batch, images = 1 + 900, 16, 768, 8, 2
    square = 2 * width * width
    # Prompts give keys and values only.
    linear = tokens * (4 + 8) * square + prompts * 2 * square
    attention = 2 * 2 * tokens * (prompts + tokens) * width
    patches = 2 * images * 900 * width * 3 * 16 * 16
    # Before the first layer the tokens are the same for all expressions of an image.
    shared = (batch - images) * tokens * 3 * square
    assert paper_cost.forward["CLIP image tower"] == 12 * batch * (linear + attention) + patches - shared
    # Frozen weights: one product back through each linear layer, four for attention's two. Nothing flows back into
    # the image's own tokens.
    start = batch * tokens * 3 * square
    assert paper_cost.backward["CLIP image tower"] == 12 * batch * (linear + 2 * attention) - start


def test_prompt_generators_of_the_paper_by_hand(paper_cost):
    """Per step and direction: queries folded with the keys' weights, attention to the context itself, values of what
    it pools, output; all with trained weights."""
    n, heads, inner, patches, words, images, batch = 16, 8, 512, 900, 20, 2, 8

    def generator(context, context_dim, out_dim, rows):
        folded = n * context_dim * inner + n * inner * context_dim
        pooled = 2 * heads * n * context * context_dim
        return 2 * (folded + rows * (pooled + n * context_dim * inner + n * inner * out_dim))

    # The first step reads the image before the expressions have touched it.
    to_text = generator(patches, 768, 512, images) + 11 * generator(patches, 768, 512, batch)
    forward = to_text + 12 * generator(words, 512, 768, batch)
    assert paper_cost.forward["cross-modal prompting"] == forward
    assert paper_cost.backward["cross-modal prompting"] <= 2 * forward


def test_sam_is_encoded_once_per_image_and_without_gradients(paper_cost):
    assert paper_cost.backward["SAM image encoder"] == 0
    # Patches, 8 layers in windows of 14 x 14, 4 global ones on 64 x 64, and a neck. Windows that stick out have all
    # their keys, but no queries outside.
    width, side = 768, 64
    patches = 2 * side**2 * width * 3 * 16 * 16
    neck = 2 * side**2 * 256 * (width + 9 * 256)

    def layer(window):
        linear = 2 * side**2 * (4 + 8) * width * width
        relative = 2 * 2 * side**2 * window * width
        return linear + 2 * 2 * side**2 * window**2 * width + relative

    # Within windows a query's bias with each row and column is among its channels, as a key's row and column are.
    places = 2 * side**2 * 14**2 * (14 + 14) * 12
    expected = patches + neck + 8 * (layer(14) + places) + 4 * layer(side)
    assert paper_cost.forward["SAM image encoder"] == 2 * expected


def test_stages_cache_and_recomputation(paper_cost):
    coarse, cached = count_step(paper, PAPER, sam=False), count_step(paper, PAPER, cached=True)
    without_sam = {"SAM image encoder", "text prompter", "SAM mask decoder"}
    assert {part for part in PARTS if coarse.forward[part] == 0} == without_sam
    assert cached.forward == paper_cost.forward | {"SAM image encoder": 0}
    assert cached.backward == paper_cost.backward
    again = count_step(paper, PAPER, cached=True, recompute=True)
    assert again.forward == cached.forward
    extra = {part: again.backward[part] - paper_cost.backward[part] for part in PARTS}
    # All of a layer up to the last thing that is needed; embeddings and what comes after the last layer stay.
    assert 0.6 < extra["CLIP image tower"] / paper_cost.forward["CLIP image tower"] <= 1
    assert extra["SAM mask decoder"] > 0 and extra["cross-modal prompting"] > 0
    assert extra["cross-modal decoder"] == extra["text prompter"] == extra["SAM image encoder"] == 0
    assert again.peak_bytes < 0.3 * cached.peak_bytes


def test_mixed_precision_takes_less_memory_and_the_same_operations():
    full, half = count_step(small, SMALL), count_step(small, SMALL, precision="bf16")
    assert half.flops == full.flops
    assert 0.5 < half.peak_bytes / full.peak_bytes < 0.85


def test_the_total_is_what_torch_counts_on_a_real_step():
    """torch's counter sees attention as plain matrix products here."""
    model = small().train()
    images, batch = SMALL.images, SMALL.images * SMALL.expressions_per_image
    pixels = (torch.randn(images, 3, s, s) for s in (model.config.clip_image_size, model.sam.image_size))
    words = ExpressionBatch(
        torch.randint(1000, (batch, SMALL.tokens)),
        torch.ones(batch, SMALL.tokens, dtype=torch.bool),
        torch.arange(images).repeat_interleave(SMALL.expressions_per_image),
    )
    size = model.sam.mask_size
    truth = SegmentationTargets(torch.zeros(batch, size, size), torch.arange(batch))
    model.sam.position_grid()
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        output = model(model.encode_image(ImageBatch(*pixels)), words, sample_point=True)
        PromptRISCriterion()(output, truth)["loss"].backward()
    # The fused kernel makes every gradient, those of the queries in each tower's first layer too, which plain
    # products leave out: nothing learned is behind them.
    patches, prompts, words, width = 1 + 8 * 8, 4, SMALL.tokens, 96
    unneeded = 2 * batch * width * (patches * (prompts + patches) + words * (prompts + words))
    assert count_step(small, SMALL).flops == counter.get_total_flops() + unneeded


def test_the_meter_knows_what_is_alive():
    weight = torch.zeros(1000)
    meter = _Meter()
    meter.ignore([weight])
    with meter:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1  # 800
        view = b[10:]
        del a, b  # the view keeps 400
        assert meter.alive == 400
        c = torch.zeros(25, dtype=torch.float16)  # 450
        weight.add_(1)
        del view
        assert meter.alive == 50
        del c
    assert (meter.alive, meter.peak) == (0, 800)


def test_a_model_is_left_as_it_was():
    models = []

    def build():
        models.append(small())
        return models[0]

    count_step(build, SMALL, recompute=True)
    assert "forward" not in vars(models[0].decoder) and "decode" not in vars(models[0].sam)
