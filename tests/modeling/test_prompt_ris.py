"""The whole forward pass: what it equals, what must not change it, where its gradients go."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, SamConfig, SamModel

from promptris.config import DecoderConfig, PromptingConfig, PromptRISConfig, SamPromptConfig
from promptris.data.refshapes import WorldOptions, make_example
from promptris.errors import InputError
from promptris.losses import PromptRISCriterion
from promptris.modeling.build import build_model
from promptris.modeling.sam_prompts import Corrections
from promptris.modeling.tokenizer import byte_tokenizer
from promptris.ops.masks import mask_iou
from promptris.ops.resizing import pool_masks
from promptris.predictor import Predictor
from promptris.processing import normalised
from promptris.structures import ExpressionBatch, ImageBatch, ImageFeatures, SegmentationTargets

MASK = 32
ALL = ("mask", "point", "text")
SUBSETS = [names for count in range(4) for names in itertools.combinations(ALL, count)]
IDS = torch.tensor(
    [
        [598, 5, 6, 599, 599, 599],
        [598, 7, 8, 9, 10, 599],
        [598, 11, 599, 599, 599, 599],
        [598, 12, 13, 14, 599, 599],
    ]
)
LENGTHS = torch.tensor([4, 6, 3, 5])


def make_images(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ImageBatch(
        torch.randn(count, 3, 48, 48, generator=generator), torch.randn(count, 3, 64, 64, generator=generator)
    )


def make_expressions(index=(1, 0, 1, 2)):
    return ExpressionBatch(IDS, torch.arange(6) < LENGTHS[:, None], torch.tensor(index))


def pick(expressions, rows, length=None):
    """Some rows of a batch, cut to `length` tokens."""
    return ExpressionBatch(
        expressions.input_ids[rows, :length],
        expressions.word_mask[rows, :length],
        expressions.image_index[rows],
    )


def make_truth(seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(4, 4, 4, generator=generator) > 0.6).float()
    return SegmentationTargets(
        masks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2), torch.tensor([1, 2, 3, 4])
    )


@pytest.fixture(scope="module")
def model(make_clip, make_model):
    """Towers of different depths, prompts in both directions; do not change it."""
    return make_model(make_clip(image_depth=4, text_depth=2), decoder={"dim": 16, "self_attention": True})


@pytest.fixture(scope="module")
def features(model):
    return model.encode_image(make_images())


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def same_output(a, b, rows=slice(None)):
    """`a` equals rows of `b` in everything that is predicted."""
    close(a.coarse_logits, b.coarse_logits[rows])
    close(a.coarse_logits_hr, b.coarse_logits_hr[rows])
    close(a.mask_logits, b.mask_logits[rows])
    close(a.predicted_iou, b.predicted_iou[rows])
    assert torch.equal(a.point_index, b.point_index[rows])


def sams_answer(model, images, output, names, clicks=None):
    """transformers' SamModel under the model's own mask and point, one expression at a time."""
    masks, ious = [], []
    for row, image in enumerate(output.image_index):
        points, labels = [], []
        if "point" in names:
            index = int(output.point_index[row])
            # Cells are 2 x 2 pixels of SAM's 64 px image; SAM adds half a pixel itself.
            points.append([2 * (index % MASK) + 0.5, 2 * (index // MASK) + 0.5])
            labels.append(1)
        for point, label in (
            [] if clicks is None else zip(clicks.points[row], clicks.labels[row], strict=True)
        ):
            points.append((point * 64 - 0.5).tolist())
            labels.append(int(label))
        boxes = None if clicks is None or clicks.boxes is None else clicks.boxes[row]
        answer = model.sam.sam(
            pixel_values=images.sam_pixels[image : image + 1],
            input_masks=output.coarse_logits_hr[row][None, None] if "mask" in names else None,
            input_points=torch.tensor([[points]]) if points else None,
            input_labels=torch.tensor([[labels]]) if points else None,
            input_boxes=None if boxes is None else (boxes * 64 - 0.5).flatten()[None, None],
            multimask_output=False,
        )
        masks.append(answer.pred_masks[0, 0, 0])
        ious.append(answer.iou_scores[0, 0, 0])
    return torch.stack(masks), torch.stack(ious)


# ----------------------------------------------------------------------------------------- what it is equal to


@torch.no_grad()
def test_output_shapes(model, features):
    output = model(features, make_expressions())
    assert output.coarse_logits.shape == (4, 6, 6)
    assert output.coarse_logits_hr.shape == output.mask_logits.shape == (4, MASK, MASK)
    assert output.predicted_iou.shape == output.point_index.shape == (4,)
    assert output.image_index.tolist() == [1, 0, 1, 2]
    assert output.mask_logits.std() > 1e-2 and output.coarse_logits.std() > 1e-2


@pytest.mark.parametrize("names", [names for names in SUBSETS if "text" not in names])
@torch.no_grad()
def test_without_text_the_model_is_sam_under_its_own_mask_and_click(model, features, names):
    output = model(features, make_expressions(), prompts=names)
    masks, iou = sams_answer(model, make_images(), output, names)
    close(output.mask_logits, masks)
    close(output.predicted_iou, iou)


@pytest.mark.parametrize("names", [("mask",), ("mask", "point")])
@torch.no_grad()
def test_clicks_join_the_automatic_point_as_sam_takes_them(model, features, names):
    clicks = Corrections(torch.rand(4, 2, 2), torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]))
    output = model(features, make_expressions(), prompts=names, corrections=clicks)
    masks, iou = sams_answer(model, make_images(), output, names, clicks)
    close(output.mask_logits, masks)
    close(output.predicted_iou, iou)


@pytest.mark.parametrize("clicks", [0, 2])
@pytest.mark.parametrize("names", [("mask",), ("mask", "point")])
@torch.no_grad()
def test_a_box_joins_them_as_sam_takes_it(model, features, names, clicks):
    """SAM appends no padding point where there is a box."""
    start, size = torch.rand(4, 2) * 0.5, torch.rand(4, 2) * 0.4 + 0.1
    boxes = torch.stack([start, start + size], dim=1)
    corrections = Corrections(torch.rand(4, clicks, 2), torch.ones(4, clicks, dtype=torch.long), boxes)
    output = model(features, make_expressions(), prompts=names, corrections=corrections)
    masks, iou = sams_answer(model, make_images(), output, names, corrections)
    close(output.mask_logits, masks)
    close(output.predicted_iou, iou)


@torch.no_grad()
def test_a_box_may_be_two_points_and_a_point_may_be_absent(model, features):
    """So that one batch holds any mixture of clicks and boxes."""
    draw = torch.Generator().manual_seed(5)
    click, corners = torch.rand(4, 1, 2, generator=draw), torch.rand(4, 2, 2, generator=draw)
    ones = torch.ones(4, 1, dtype=torch.long)
    expected = [
        model(features, make_expressions(), corrections=Corrections(click, ones, corners)),
        model(features, make_expressions(), corrections=Corrections(click, ones)),
        model(features, make_expressions(), corrections=Corrections(corners[:, :0], ones[:, :0], corners)),
        model(features, make_expressions()),
    ]
    labels = torch.tensor([[1, 2, 3], [1, -1, -1], [-1, 2, 3], [-1, -1, -1]])
    mixed = model(
        features, make_expressions(), corrections=Corrections(torch.cat([click, corners], dim=1), labels)
    )
    for row, output in enumerate(expected):
        close(mixed.mask_logits[row], output.mask_logits[row])
        close(mixed.predicted_iou[row], output.predicted_iou[row])


@pytest.mark.parametrize("sample", [False, True])
@torch.no_grad()
def test_equation_4_with_text_through_transformers_mask_decoder(model, features, sample):
    """[T_iou; T_out; P_point; P_text] over P_mask + F_IS, each expression with its own words only."""
    expressions, sam = make_expressions(), model.sam.sam
    torch.manual_seed(0)
    output = model(features, expressions, sample_point=sample)
    _, words = model.encode_expressions(features.clip_tokens, expressions)
    for row, image in enumerate(expressions.image_index):
        length, index = LENGTHS[row], int(output.point_index[row])
        click = torch.tensor([[[[2 * (index % MASK) + 0.5, 2 * (index // MASK) + 0.5]]]])
        points, dense = sam.prompt_encoder(
            click, torch.ones(1, 1, 1), None, output.coarse_logits_hr[row][None, None]
        )
        embedding = features.sam_embeddings[image][None]
        text = model.text_prompter(
            words[row : row + 1, :length],
            expressions.word_mask[row : row + 1, :length],
            embedding,
            sam.get_image_wide_positional_embeddings(),
        )
        masks, iou = sam.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=torch.cat([points, text[:, None]], dim=2),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        close(output.mask_logits[row], masks[0, 0, 0])
        close(output.predicted_iou[row], iou[0, 0, 0])


@torch.no_grad()
def test_mask_prompt_is_the_coarse_map_upsampled_bilinearly_as_logits(model, features):
    output = model(features, make_expressions())
    expected = F.interpolate(
        output.coarse_logits[:, None], size=(MASK, MASK), mode="bilinear", align_corners=False
    )
    close(output.coarse_logits_hr, expected[:, 0])
    flat = output.coarse_logits_hr.flatten(1)
    close(flat.gather(1, output.point_index[:, None])[:, 0], flat.amax(dim=1))


@torch.no_grad()
def test_coarse_map_is_the_decoder_on_the_prompted_towers(model, features):
    expressions = make_expressions()
    patches, words = model.encode_expressions(features.clip_tokens, expressions)
    expected = model.decoder(patches, words, expressions.word_mask, (6, 6))
    close(model(features, expressions).coarse_logits, expected)


@torch.no_grad()
def test_coarse_only_mode_runs_no_sam(model):
    images = make_images()
    whole = model(model.encode_image(images), make_expressions())
    touched = []
    hooks = [
        module.register_forward_pre_hook(lambda *_: touched.append(1))
        for module in model.sam.sam.modules()
        if module is not model.sam.sam
    ]
    features = model.encode_image(replace(images, sam_pixels=None))
    coarse = model(features, make_expressions())
    for hook in hooks:
        hook.remove()
    assert not touched
    assert features.sam_embeddings is None
    assert coarse.mask_logits is None and coarse.predicted_iou is None and coarse.point_index is None
    close(coarse.coarse_logits, whole.coarse_logits)
    close(coarse.coarse_logits_hr, whole.coarse_logits_hr)


@torch.no_grad()
def test_sams_image_encoder_runs_once_per_image(model):
    rows = []
    hook = model.sam.sam.vision_encoder.neck.register_forward_hook(
        lambda m, i, output: rows.append(len(output))
    )
    features = model.encode_image(make_images())
    model(features, make_expressions())
    model(features, make_expressions((0, 0, 0, 0)))
    hook.remove()
    assert sum(rows) == 3


# ------------------------------------------------------------------------------------ what must not change it


@pytest.mark.parametrize("names", [ALL, ("text",), ("mask", "text"), ("point", "text")])
@torch.no_grad()
def test_padding_words_change_nothing(model, features, names):
    expressions = make_expressions()
    plain = model(features, expressions, prompts=names)
    more = torch.full((4, 5), 599)
    longer = ExpressionBatch(
        torch.cat([IDS, more], dim=1),
        torch.cat([expressions.word_mask, torch.zeros_like(more, dtype=torch.bool)], dim=1),
        expressions.image_index,
    )
    same_output(model(features, longer, prompts=names), plain)
    other_ids = torch.where(longer.word_mask, longer.input_ids, 42)
    same_output(model(features, replace(longer, input_ids=other_ids), prompts=names), plain)


@pytest.mark.parametrize("direction", ["both", "none", "v2l", "l2v"])
@torch.no_grad()
def test_batch_equals_singles(make_model, direction):
    """Ragged lengths, several images, also without any padding left."""
    model = make_model(prompting={"direction": direction})
    features, expressions = model.encode_image(make_images()), make_expressions()
    together = model(features, expressions)
    for row in range(4):
        rows = slice(row, row + 1)
        same_output(model(features, pick(expressions, rows)), together, rows)
        same_output(model(features, pick(expressions, rows, int(LENGTHS[row]))), together, rows)


@torch.no_grad()
def test_padding_expressions_change_nothing(model, features):
    expressions = make_expressions()
    plain = model(features, expressions)
    rows = torch.tensor([0, 1, 2, 3, 3, 0, 0])
    same_output(model(features, pick(expressions, rows)), plain, rows)


@torch.no_grad()
def test_order_of_expressions_and_images_is_free(model):
    images, expressions = make_images(), make_expressions()
    plain = model(model.encode_image(images), expressions)
    order = torch.tensor([2, 0, 3, 1])
    same_output(model(model.encode_image(images), pick(expressions, order)), plain, order)
    images_reversed = ImageBatch(images.clip_pixels.flip(0), images.sam_pixels.flip(0))
    moved = replace(expressions, image_index=2 - expressions.image_index)
    same_output(model(model.encode_image(images_reversed), moved), plain)


@torch.no_grad()
def test_each_expression_sees_its_own_image_only(model):
    images = make_images()
    plain = model(model.encode_image(images), make_expressions())
    images.clip_pixels[0] += torch.randn(3, 48, 48)
    images.sam_pixels[0] += torch.randn(3, 64, 64)
    changed = model(model.encode_image(images), make_expressions())
    rows = torch.tensor([0, 2, 3])
    close(changed.mask_logits[rows], plain.mask_logits[rows])
    assert (changed.mask_logits[1] - plain.mask_logits[1]).abs().max() > 1e-2
    assert (changed.coarse_logits[1] - plain.coarse_logits[1]).abs().max() > 1e-3


@torch.no_grad()
def test_each_expression_is_read(model, features):
    """Another word changes the coarse map and, through the text prompt alone, the final mask."""
    plain = model(features, make_expressions(), prompts=("text",))
    ids = IDS.clone()
    ids[0, 1] = 300
    changed = model(features, replace(make_expressions(), input_ids=ids), prompts=("text",))
    assert (changed.coarse_logits[0] - plain.coarse_logits[0]).abs().max() > 1e-3
    assert (changed.mask_logits[0] - plain.mask_logits[0]).abs().max() > 1e-3
    close(changed.mask_logits[1:], plain.mask_logits[1:])


@torch.no_grad()
def test_outputs_do_not_depend_on_training_mode(make_clip, make_model):
    clip = make_clip()
    for module in clip.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5  # a CLIP that was trained with attention dropout
    model = make_model(clip)
    images, expressions = make_images(), make_expressions()
    evaluated = model(model.encode_image(images), expressions)
    model.train()
    same_output(model(model.encode_image(images), expressions), evaluated)


# ----------------------------------------------------------------------------------------- choice of prompts


@torch.no_grad()
def test_prompt_subsets_by_name_and_by_mask_agree(model, features):
    """Table 5: all eight subsets; a [B, 3] mask that gives every sample its own equals the calls by name."""
    expressions = make_expressions()
    by_name = {names: model(features, expressions, prompts=names) for names in SUBSETS}
    for names, output in by_name.items():
        keep = torch.tensor([name in names for name in ALL]).expand(4, 3)
        same_output(model(features, expressions, prompts=keep), output)
    for offset in (0, 4):
        chosen = SUBSETS[offset : offset + 4]
        keep = torch.tensor([[name in names for name in ALL] for names in chosen])
        mixed = model(features, expressions, prompts=keep)
        for row, names in enumerate(chosen):
            close(mixed.mask_logits[row], by_name[names].mask_logits[row])
            close(mixed.predicted_iou[row], by_name[names].predicted_iou[row])
    answers = torch.stack([output.mask_logits for output in by_name.values()]).flatten(1)
    assert (torch.cdist(answers, answers) + 1e3 * torch.eye(8)).min() > 1e-2


@torch.no_grad()
def test_enabled_prompts_of_the_configuration_are_the_default(make_model):
    model = make_model(sam_prompts={"enabled": ("mask", "text")})
    features, expressions = model.encode_image(make_images()), make_expressions()
    same_output(model(features, expressions), model(features, expressions, prompts=("text", "mask")))
    everything = model(features, expressions, prompts=ALL)
    assert (everything.mask_logits - model(features, expressions).mask_logits).abs().max() > 1e-2


@torch.no_grad()
def test_unknown_prompt_is_named(model, features, unchecked):
    with pytest.raises(InputError, match="box"):
        model(features, make_expressions(), prompts=("mask", "box"))


@torch.no_grad()
def test_sampled_points_follow_the_global_seed(model, features):
    def points(seed, sample):
        torch.manual_seed(seed)
        return model(features, make_expressions(), sample_point=sample).point_index.tolist()

    assert points(1, True) == points(1, True)
    assert points(1, True) != points(2, True)
    assert points(1, False) == points(2, False)


@torch.no_grad()
def test_half_precision_models_run(model):
    half = copy.deepcopy(model).to(torch.bfloat16)
    images = make_images()
    images = ImageBatch(images.clip_pixels.bfloat16(), images.sam_pixels.bfloat16())
    clicks = Corrections(torch.rand(4, 1, 2), torch.ones(4, 1, dtype=torch.long))
    for sample in (False, True):
        output = half(half.encode_image(images), make_expressions(), sample_point=sample, corrections=clicks)
        assert output.mask_logits.dtype == torch.bfloat16
        assert output.mask_logits.isfinite().all()


# -------------------------------------------------------------------------------- gradients and frozen towers


def gradients(model, prompts=None, coarse=True, sample_point=True, final=True):
    """Largest gradient of every trainable parameter by name; None where there is none."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    output = model(model.encode_image(make_images()), make_expressions(), prompts, sample_point)
    losses = PromptRISCriterion()(output, make_truth())
    parts = (["coarse_bce", "coarse_dice"] if coarse else []) + (["final_bce", "final_dice"] if final else [])
    sum(losses[name] for name in parts).backward()
    assert all(p.grad is None for tower in model.frozen_towers() for p in tower.parameters())
    return {
        name: None if p.grad is None else p.grad.abs().max().item()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def without_shift_invariant(found):
    """A key's bias shifts all scores of a softmax alike: its gradient is 0 by construction."""
    return {name: g for name, g in found.items() if not name.endswith("k_proj.bias")}


def test_gradients_reach_every_trainable_parameter(model):
    found = gradients(model)
    assert all(g is not None for g in found.values())
    silent = [name for name, g in without_shift_invariant(found).items() if g < 1e-8]
    assert not silent


def test_coarse_stage_trains_prompting_and_decoder_only(model):
    found = without_shift_invariant(gradients(model, final=False))
    reached = {name for name, g in found.items() if g}
    assert reached == {name for name in found if name.startswith(("prompting.", "decoder."))}


@pytest.mark.parametrize("names", [("point",), ("mask",)])
def test_final_loss_reaches_the_coarse_decoder_through_one_prompt(model, names):
    found = without_shift_invariant(gradients(model, names, coarse=False))
    if names == ("point",):
        assert found.pop("decoder.bias") < 1e-6  # a softmax over positions does not feel it
    reached = {name for name, g in found.items() if g}
    assert reached == {name for name in found if name.startswith(("prompting.", "decoder."))}


def test_without_sampling_the_point_passes_no_gradient(model):
    model = copy.deepcopy(model).train()
    output = model(model.encode_image(make_images()), make_expressions(), ("point",))
    output.mask_logits.sum().backward()
    assert not any(p.grad is not None and p.grad.abs().max() > 0 for p in model.decoder.parameters())


def test_text_prompt_alone_trains_prompter_and_prompting(model):
    found = without_shift_invariant(gradients(model, ("text",), coarse=False))
    assert all(g > 0 for name, g in found.items() if name.startswith(("text_prompter.", "prompting.v2l")))
    assert not any(g for name, g in found.items() if name.startswith("decoder."))


def test_every_dropped_prompt_still_leaves_a_usable_step(model):
    """Prompt dropout, each sample with its own prompts: finite losses and gradients."""
    keep = torch.tensor(
        [[True, False, False], [False, True, False], [False, False, True], [True, True, False]]
    )
    found = gradients(model, keep)
    assert all(g is not None and g == g for g in found.values())


def test_frozen_weights_are_bit_identical_after_training_steps(make_model):
    model = make_model().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        output = model(model.encode_image(make_images()), make_expressions(), sample_point=True)
        loss = PromptRISCriterion()(output, make_truth())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    learned = {name for name in before if name.startswith(("prompting.", "decoder.", "text_prompter."))}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learned
    assert changed == learned


def test_towers_stay_in_evaluation_mode(make_model):
    model = make_model()
    assert not any(module.training for module in model.modules())
    nn.Sequential(model).train()
    assert not any(module.training for tower in model.frozen_towers() for module in tower.modules())
    for part in (model, model.prompting, model.decoder, model.text_prompter):
        assert all(m.training for m in part.modules() if m is not model) or part is model
    assert model.training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_no_part_of_sam_or_clip_is_trainable(model):
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not [name for name in trainable if name.startswith(("clip.", "sam."))]
    shared = model.sam.sam.shared_image_embedding.positional_embedding
    assert shared is model.sam.sam.prompt_encoder.shared_embedding.positional_embedding
    assert not shared.requires_grad


def test_training_works_after_predicting_in_inference_mode(make_model):
    model = make_model()
    with torch.inference_mode():
        model(model.encode_image(make_images()), make_expressions(), sample_point=True)
    output = model(model.encode_image(make_images()), make_expressions(), ("point",), sample_point=True)
    output.mask_logits.sum().backward()
    assert model.decoder.image_proj.weight.grad.abs().max() > 0


def test_mixed_precision_step(make_model):
    model = make_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(model.encode_image(make_images()), make_expressions(), sample_point=True)
        loss = PromptRISCriterion()(output, make_truth())["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_features_move_together(features):
    moved = features.to("meta")
    assert moved.clip_tokens.is_meta and moved.sam_embeddings.is_meta
    assert ImageFeatures(features.clip_tokens).to("meta").sam_embeddings is None


# ---------------------------------------------------------------------------------------------- it can learn

SIDE = 96  # of the scenes and of both towers' images


def overfitting_towers():
    """A random CLIP with a 16 x 16 grid and a random SAM with a 64 x 64 mask."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"max_position_embeddings": 64, "vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
    joint = {"projection_dim": 32}
    clip = CLIPModel(
        CLIPConfig(
            text_config=sizes | text | joint,
            vision_config=sizes | {"image_size": SIDE, "patch_size": 6} | joint,
            **joint,
        )
    )
    sam = SamModel(
        SamConfig(
            vision_config={
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": SIDE,
                "patch_size": 6,
                "window_size": 4,
                "global_attn_indexes": [1],
                "use_rel_pos": False,
                "output_channels": 64,
                "num_pos_feats": 32,
                "initializer_range": 0.02,
            },
            prompt_encoder_config={"hidden_size": 64, "image_size": SIDE, "patch_size": 6},
            mask_decoder_config={
                "hidden_size": 64,
                "mlp_dim": 128,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": 64,
            },
        )
    )
    with torch.no_grad():
        for parameter in (*clip.parameters(), *sam.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
        sam.shared_image_embedding.positional_embedding.normal_()
    return clip, sam


def test_overfits_four_images(teach_prompts):
    """Four scenes, two expressions each: with towers frozen, the final masks reach a mean IoU of 0.9.

    CLIP is random. SAM is fitted to prompts first, since a random mask decoder cannot draw any mask.
    """
    examples = [make_example(0, index, WorldOptions(size=SIDE, level="easy")) for index in range(4)]
    texts, image_index, masks, everything = [], [], [], []
    for number, example in enumerate(examples):
        everything += [(number, mask) for mask in example.masks]
        first = {}
        for description in example.descriptions:
            first.setdefault(description.target, description.text)
        for target, text in list(first.items())[:2]:
            texts.append(text)
            image_index.append(number)
            masks.append(example.masks[target])

    settings = PromptRISConfig(
        clip_image_size=SIDE,
        prompting=PromptingConfig(num_prompts=4, heads=4),
        decoder=DecoderConfig(dim=64, heads=4, position_signal=True, initial_bias=-2.0),
        sam_prompts=SamPromptConfig(text_heads=4),
    )
    model = build_model(*overfitting_towers(), settings, byte_tokenizer(600, 64), seed=0)
    processor, size = model.processor(), (model.sam.mask_size,) * 2
    images = normalised(processor.images([example.image for example in examples]))

    def at_mask_size(stack):
        return pool_masks(torch.stack([torch.from_numpy(mask) for mask in stack]), size)

    owners = torch.tensor([number for number, _ in everything])
    teach_prompts(model.sam, images.sam_pixels, owners, at_mask_size([mask for _, mask in everything]))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}

    expressions = processor.expressions(texts, image_index)
    truth = SegmentationTargets(at_mask_size(masks), torch.arange(len(masks)))
    features = model.encode_image(images)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    steps, criterion = 80, PromptRISCriterion()
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / steps) ** 0.9
    )
    model.train()
    for _ in range(steps):
        losses = criterion(model(features, expressions, sample_point=True), truth)
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()

    answers = Predictor(model).answer(features, [(SIDE, SIDE)] * 4, texts, image_index)
    final = [mask_iou(answer.mask, mask) for answer, mask in zip(answers, masks, strict=True)]
    coarse = [mask_iou(answer.coarse_mask, mask) for answer, mask in zip(answers, masks, strict=True)]
    assert sum(final) / len(final) > 0.9, final
    assert sum(coarse) / len(coarse) > 0.75, coarse
    assert all(mask[y, x] for answer, mask in zip(answers, masks, strict=True) for x, y in [answer.point])
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
