"""Pretraining of the small towers: batches, losses, gates, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, SamModel

from promptris.data.refshapes import CATEGORIES, COLORS, WorldOptions, sample_scene, vocabulary
from promptris.data.refshapes.regions import ANY, caption, fits, region_code, region_phrase
from promptris.modeling.tokenizer import load_tokenizer
from promptris.training.clip_pretraining import ClipPretraining, multi_positive
from promptris.training.config import PretrainingConfig, TowersConfig
from promptris.training.pretraining import PRETRAINING_SEED, SceneBatches
from promptris.training.sam_pretraining import PROMPT_KINDS, SamPretraining, coarse_response, hard_iou
from promptris.training.towers import prepare_towers, pretrain_tower

SMALL = PretrainingConfig(steps=40, scenes=4, warmup=5, gate_scenes=4)


def test_phrases_fit_the_object_they_were_made_for():
    rng = np.random.default_rng(0)
    for index in range(60):
        scene = sample_scene(5, index, WorldOptions(categories="all"))
        for shape in scene.objects:
            phrase = region_phrase(shape, scene.size, rng, place_share=0.7)
            own = np.array([region_code(shape, scene.size)])
            assert fits(np.array([phrase.code]), own).all(), phrase.text


def test_phrases_say_what_their_code_asks():
    rng = np.random.default_rng(1)
    for index in range(60):
        scene = sample_scene(6, index, WorldOptions(categories="all"))
        for shape in scene.objects:
            phrase = region_phrase(shape, scene.size, rng)
            words = phrase.text.split()
            asked_category, asked_color = phrase.code[:2]
            category = {CATEGORIES[asked_category]} if asked_category != ANY else set()
            color = {COLORS[asked_color]} if asked_color != ANY else set()
            assert set(words) & set(CATEGORIES) == category
            assert set(words) & set(COLORS) == color


def test_phrases_and_captions_use_known_words_only():
    rng, known = np.random.default_rng(2), set(vocabulary())
    for index in range(80):
        scene = sample_scene(7, index, WorldOptions(categories="all"))
        texts = [region_phrase(shape, scene.size, rng, place_share=1.0).text for shape in scene.objects]
        assert set(" ".join([*texts, caption(scene, rng)]).split()) <= known


def test_fits_by_hand():
    regions = np.array([[0, 1, 0, 0, 0, 0], [0, 2, 0, 1, 2, 2]])
    phrases = np.array([[0, ANY, ANY, ANY, ANY, ANY], [0, 2, ANY, ANY, ANY, ANY], [ANY, ANY, ANY, ANY, 0, 2]])
    assert fits(phrases, regions).tolist() == [[True, True], [False, True], [False, False]]


def test_multi_positive_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 1.0, 1.0, 1.0]])
    positive = torch.tensor([[True, True, False, False], [False, False, False, False]])
    # Two of four equal chances: -log(1/2). The second row has no positive and is left out.
    assert multi_positive(logits, positive).item() == pytest.approx(0.6931472)


@pytest.fixture(scope="module")
def clip_module() -> ClipPretraining:
    return ClipPretraining(SMALL)


@pytest.fixture(scope="module")
def sam_module() -> SamPretraining:
    return SamPretraining(SMALL)


def test_region_batches_are_a_function_of_the_step(clip_module: ClipPretraining):
    first, again, other = clip_module.batches()[3], clip_module.batches()[3], clip_module.batches()[4]
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.pixels, other.pixels)


def test_region_batches_hold_together(clip_module: ClipPretraining):
    batch = clip_module.batches()[0]
    regions = len(batch.codes)
    assert batch.weights.shape == (regions + SMALL.scenes, clip_module.grid**2)
    assert torch.allclose(batch.weights.sum(dim=1), torch.ones(regions + SMALL.scenes))
    assert batch.positive[:, :regions].any(dim=1).all()
    assert not batch.positive[:, regions:].any()
    # Objects and background of a scene cover it together.
    assert batch.scene_index.tolist()[-SMALL.scenes :] == list(range(SMALL.scenes))


def test_places_come_in_the_second_half_only(clip_module: ClipPretraining):
    batches = clip_module.batches()
    words = {"left", "right", "top", "bottom", "upper", "lower", "middle", "corner"}

    def named(step: int) -> bool:
        texts = clip_module.tokenizer.batch_decode(batches[step].input_ids, skip_special_tokens=True)
        return bool(words & set(" ".join(texts).split()))

    assert not any(named(step) for step in range(0, 20, 4))
    assert all(named(step) for step in range(20, 40, 4))


def test_prompts_lie_in_their_objects(sam_module: SamPretraining):
    batch = sam_module.batches()[0]
    size = sam_module.sam.mask_size
    for point, box, truth in zip(batch.points, batch.boxes, batch.truth, strict=True):
        x, y = (point * size).long().tolist()
        assert truth[y, x] > 0
        # Boxes are jittered by at most 3 pixels of 128, and a cell is 2 wide.
        ys, xs = torch.nonzero(truth > 0, as_tuple=True)
        corners = (
            torch.stack([torch.stack([xs.min(), ys.min()]), torch.stack([xs.max(), ys.max()]) + 1]) / size
        )
        assert (box - corners).abs().max() < 5.1 / 128


def test_every_kind_of_prompt_is_drawn_and_one_kind_can_be_asked_for(sam_module: SamPretraining):
    kinds = torch.cat([sam_module.batches()[step].kind for step in range(20)])
    assert set(kinds.tolist()) == set(range(len(PROMPT_KINDS)))
    assert set(sam_module.batches(PRETRAINING_SEED, "mask")[0].kind.tolist()) == {2}


def test_coarse_responses_are_positive_inside_and_negative_outside():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:48, 16:48] = True
    response = coarse_response(mask, 64, np.random.default_rng(0))
    assert response[:, 28:36, 28:36].min() > 0
    assert response[:, :4, :4].max() < 0


def test_hard_iou_by_hand():
    logits, truth = torch.full((1, 2, 2), -1.0), torch.zeros(1, 2, 2)
    logits[0, 0] = 1.0
    truth[0, :, 0] = 0.9
    # One cell shared, three covered.
    assert hard_iou(logits, truth).tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("kind", ["clip", "sam"])
def test_the_loss_falls(kind: str, clip_module: ClipPretraining, sam_module: SamPretraining):
    module = ClipPretraining(SMALL) if kind == "clip" else SamPretraining(SMALL)
    batch = module.batches()[0]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(30):
        loss = module.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_sams_position_matrix_is_never_trained(sam_module: SamPretraining):
    trainable = {name for name, p in sam_module.named_parameters() if p.requires_grad}
    assert trainable and not any("shared" in name for name in trainable)


def test_towers_are_saved_as_transformers_folders(towers: Path):
    clip, sam = CLIPModel.from_pretrained(towers / "clip"), SamModel.from_pretrained(towers / "sam")
    tokenizer = load_tokenizer(towers / "clip")
    assert clip.config.text_config.vocab_size == len(tokenizer)
    assert clip.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    assert sam.config.vision_config.image_size == 128
    for tower, figure in (("clip", "zero_shot_category"), ("sam", "miou_point+mask")):
        report = json.loads((towers / tower / "pretraining.json").read_text())
        assert 0 <= report["gate"][figure] <= 1
        assert (towers / tower / "metrics.csv").read_text().count("\n") == 4
    assert not list(towers.glob("*.partial"))


def test_pretraining_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from promptris.training import pretraining
    from promptris.training.callbacks import SeedSteps
    from promptris.training.checkpoints import StepCheckpoint

    config = TowersConfig(sam_pretraining=PretrainingConfig(steps=4, scenes=2, warmup=1, gate_scenes=2))
    monkeypatch.setattr(pretraining, "StepCheckpoint", lambda path, every_seconds: StepCheckpoint(path, 0.0))
    pretrain_tower("sam", config, tmp_path / "whole", seed=0, resume=False)
    original = SeedSteps.on_train_batch_start

    def die(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2:
            raise RuntimeError("killed")
        original(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(SeedSteps, "on_train_batch_start", die)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain_tower("sam", config, tmp_path / "cut", seed=0, resume=False)
    assert not (tmp_path / "cut" / "sam").exists()
    monkeypatch.setattr(SeedSteps, "on_train_batch_start", original)
    pretrain_tower("sam", config, tmp_path / "cut", seed=0, resume=True)
    whole, cut = (SamModel.from_pretrained(tmp_path / name / "sam").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_both_towers_can_be_pretrained_side_by_side(tmp_path: Path):
    few = PretrainingConfig(steps=1, scenes=2, warmup=1, gate_scenes=2)
    clip, sam = prepare_towers(
        TowersConfig(clip_pretraining=few, sam_pretraining=few), tmp_path, seed=0, resume=False
    )
    assert Path(clip, "model.safetensors").is_file() and Path(sam, "model.safetensors").is_file()


def test_given_towers_are_not_pretrained(tmp_path: Path):
    config = TowersConfig(clip="openai/some", sam="facebook/other")
    assert prepare_towers(config, tmp_path, 0, False) == ("openai/some", "facebook/other")
    assert not list(tmp_path.iterdir())


def test_a_tower_killed_after_its_last_step_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While the gate is measured, training is done but the tower's folder is not there yet."""
    config = TowersConfig(sam_pretraining=PretrainingConfig(steps=2, scenes=2, warmup=1, gate_scenes=2))
    pretrain_tower("sam", config, tmp_path / "whole", seed=0, resume=False)
    original = SamPretraining.gate

    def die(self):
        raise RuntimeError("killed")

    monkeypatch.setattr(SamPretraining, "gate", die)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain_tower("sam", config, tmp_path / "cut", seed=0, resume=False)
    monkeypatch.setattr(SamPretraining, "gate", original)
    # The resumed process starts from other initial weights, so only loaded ones can agree.
    pretrain_tower("sam", config, tmp_path / "cut", seed=1, resume=True)
    whole, cut = (SamModel.from_pretrained(tmp_path / name / "sam").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "cut" / "sam" / "metrics.csv").read_text().count("\n") == 3
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["sam"]


def test_levels_are_taken_in_turn():
    config = PretrainingConfig(scenes=6, levels=("easy", "hard", "standard"))
    scenes = [scene for step in range(2) for scene in SceneBatches(config, 3, 128).scenes(step)]
    assert [scene.options.level for scene in scenes] == ["easy", "hard", "standard"] * 4
    assert all(scene.options.categories == "all" for scene in scenes)
    assert len({scene.background_seed for scene in scenes}) == 12
