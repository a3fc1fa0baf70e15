"""Recomputing layers in the backward pass changes memory and time, and nothing else."""

from __future__ import annotations

import pytest
import torch

from promptris.modeling import recomputation
from promptris.modeling.sam_adapter import SamAdapter
from promptris.structures import ExpressionBatch, ImageBatch, ImageFeatures

LENGTHS = (6, 3, 8, 5)


def features(model):
    generator = torch.Generator().manual_seed(0)
    side, sam_side = model.config.clip_image_size, model.sam.image_size
    pixels = (torch.randn(2, 3, s, s, generator=generator) for s in (side, sam_side))
    return model.encode_image(ImageBatch(*pixels))


def expressions():
    generator = torch.Generator().manual_seed(1)
    return ExpressionBatch(
        torch.randint(1, 598, (4, 8), generator=generator),
        torch.arange(8) < torch.tensor(LENGTHS)[:, None],
        torch.tensor([0, 0, 1, 1]),
    )


def outputs_and_gradients(model, on, autocast=False, with_sam=True):
    """Everything a step computes, after the same draw of the point."""
    model.checkpoint_activations(on)
    model.zero_grad(set_to_none=True)
    model.train()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        given = features(model)
        if not with_sam:
            given = ImageFeatures(given.clip_tokens)
        output = model(given, expressions(), sample_point=with_sam)
    outputs = [output.coarse_logits]
    if with_sam:
        outputs += [output.mask_logits, output.predicted_iou]
    # Unequal weights, so that no two gradients cancel out.
    loss = sum((x.float() * torch.linspace(0.5, 1.5, x.numel()).view_as(x)).sum() for x in outputs)
    loss.backward()
    model.checkpoint_activations(False)
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def assert_same(off, on):
    for mine, theirs in zip(off[0], on[0], strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    assert off[1].keys() == on[1].keys()
    for name, gradient in off[1].items():
        if gradient is None:
            assert on[1][name] is None, name
        else:
            assert torch.equal(gradient, on[1][name]), name


@pytest.mark.parametrize("with_sam", [True, False], ids=["sam", "coarse"])
@pytest.mark.parametrize("direction", ["both", "v2l", "l2v", "none"])
def test_outputs_and_gradients_are_bit_identical(make_model, direction, with_sam):
    model = make_model(prompting={"direction": direction})
    off = outputs_and_gradients(model, on=False, with_sam=with_sam)
    assert_same(off, outputs_and_gradients(model, on=True, with_sam=with_sam))
    used = sum(g is not None and bool(g.abs().max() > 0) for g in off[1].values())
    assert used > 10


def test_towers_of_unequal_depth_are_bit_identical(make_clip, make_model):
    model = make_model(make_clip(image_depth=4, text_depth=2))
    assert_same(outputs_and_gradients(model, on=False), outputs_and_gradients(model, on=True))


def test_mixed_precision_gives_the_same(make_model):
    model = make_model()
    off = outputs_and_gradients(model, on=False, autocast=True)
    assert off[0][1].dtype == torch.bfloat16
    assert_same(off, outputs_and_gradients(model, on=True, autocast=True))
    # And autocast was at work: the numbers are not those of float32.
    assert not torch.equal(off[0][0].float(), outputs_and_gradients(model, on=False)[0][0])


def test_frozen_parameters_get_no_gradient_and_trainable_ones_do(make_model):
    model = make_model()
    _, gradients = outputs_and_gradients(model, on=True)
    for name, parameter in model.named_parameters():
        assert (gradients[name] is not None) == parameter.requires_grad, name
    assert not any(p.requires_grad for tower in model.frozen_towers() for p in tower.parameters())


def calls_per_step(model, on, backward=True):
    """How often each layer is run in a step."""
    counts = {}
    clip, decoder = model.clip.clip, model.sam.sam.mask_decoder
    layers = {
        "image": clip.vision_model.encoder.layers[0].layer_norm2,
        "text": clip.text_model.encoder.layers[1].layer_norm2,
        "V2L": model.prompting.v2l[0],
        "L2V": model.prompting.l2v[1],
        "two-way": decoder.transformer.layers[0].mlp,
        "final attention": decoder.transformer.final_attn_token_to_image.q_proj,
        "upscaling": decoder.upscale_conv2,
        "image encoder": model.sam.sam.vision_encoder.neck,
        "cross-modal decoder": model.decoder,
    }

    def count(name):
        return lambda *_: counts.update({name: counts.get(name, 0) + 1})

    handles = [layer.register_forward_pre_hook(count(name)) for name, layer in layers.items()]
    if backward:
        outputs_and_gradients(model, on)
    else:
        model.checkpoint_activations(on)
        with torch.no_grad():
            model(features(model), expressions())
        model.checkpoint_activations(False)
    for handle in handles:
        handle.remove()
    return counts


def test_layers_are_run_twice_where_gradients_are_needed_and_once_elsewhere(make_model):
    model = make_model()
    names = set(calls_per_step(model, on=False))
    # Two images are encoded one after the other, without gradients; the cross-modal decoder is no frozen tower.
    always = {"image encoder": 2, "cross-modal decoder": 1}
    assert calls_per_step(model, on=False) == dict.fromkeys(names, 1) | always
    assert calls_per_step(model, on=True, backward=False) == dict.fromkeys(names, 1) | always
    assert calls_per_step(model, on=True) == dict.fromkeys(names, 2) | always
    assert len(names) == 9


def test_nothing_is_recomputed_for_a_tower_without_gradients(make_model):
    """Without prompts into the image tower its states need no gradients."""
    model = make_model(prompting={"direction": "v2l"})
    calls = []
    handle = model.clip.clip.vision_model.encoder.layers[0].layer_norm2.register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    outputs_and_gradients(model, on=True)
    handle.remove()
    assert len(calls) == 1


def test_without_gradients_nothing_is_wrapped(make_model, monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("checkpointing where no gradients are wanted")

    monkeypatch.setattr(recomputation, "checkpoint", refuse)
    model = make_model()
    model.checkpoint_activations()
    with torch.no_grad():
        model(features(model), expressions())
    with pytest.raises(AssertionError, match="no gradients"):
        model(features(model), expressions())


def kept_bytes(model, on):
    """Bytes that autograd keeps of a forward pass beside the weights."""
    model.checkpoint_activations(on)
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(features(model), expressions(), sample_point=True)
    model.checkpoint_activations(False)
    assert output.mask_logits.requires_grad
    return sum(kept.values())


def test_less_is_kept(make_model):
    model = make_model()
    assert kept_bytes(model, on=True) < 0.55 * kept_bytes(model, on=False)


def test_sam_encodes_an_image_alike_in_any_company(make_sam):
    """Bit for bit, so that what a cache holds is what a step would have computed."""
    sam = SamAdapter(make_sam(use_rel_pos=True))
    pixels = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = sam.encode_image(pixels)
        assert together.shape == (5, 32, 8, 8)
        assert torch.equal(sam.encode_image(pixels[3:4]), together[3:4])
