"""Mask classification from image and expression to prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import promptris
from promptris.data.refshapes import make_example
from promptris.errors import InputError
from promptris.mask_classification.proposals import SINGLE_MASK, ProposalConfig
from promptris.mask_classification.scoring import embed_expressions
from promptris.mask_classification.segmenter import MaskClassifier, load_classifier
from promptris.mask_classification.towers import FrozenTowers
from promptris.modeling.sam_adapter import SamAdapter
from promptris.modeling.tokenizer import byte_tokenizer
from promptris.ops.masks import mask_iou

HEIGHT, WIDTH = 50, 70
TEXTS = ["a b", "c", "dd e fff", "g", "hh"]
LENIENT = ProposalConfig(3, multimask=True, min_predicted_iou=0.0, min_stability=0.0, nms_iou=1.0)
NOTHING = ProposalConfig(3, max_area=0.0)


@pytest.fixture(scope="module")
def model(make_model):
    """A model whose SAM predicts IoUs around one half; do not change it."""
    model = make_model(seed=7)
    head = model.sam.sam.mask_decoder.iou_prediction_head.proj_out
    head.weight.data *= 0.05
    head.bias.data.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def classifier(model):
    return MaskClassifier(model, proposals=LENIENT)


@pytest.fixture(scope="module")
def with_image(classifier, pixels):
    return classifier.set_image(pixels)


def same(a, b):
    assert (a.expression, a.point) == (b.expression, b.point)
    assert np.array_equal(a.mask, b.mask) and a.score == pytest.approx(b.score, abs=1e-5)


# ------------------------------------------------------------------------------------------------- what it says


def test_the_answer_is_the_most_similar_proposal(model, classifier, with_image):
    clip, proposals = model.clip.clip, with_image.proposals
    answers = with_image.predict(TEXTS)
    text = embed_expressions(clip, classifier.processor, TEXTS)
    similarity = text @ with_image.features.T
    assert len(proposals) > 9
    for answer, row in zip(answers, similarity, strict=True):
        best = int(row.argmax())
        logits = proposals.logits[best][None, None]
        resized = F.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
        assert np.array_equal(answer.mask, (resized[0, 0].sigmoid() > 0.5).numpy())
        assert np.array_equal(answer.coarse_mask, answer.mask)
        x, y = proposals.points[best].tolist()
        assert answer.point == (int(x * WIDTH), int(y * HEIGHT))
        expected = (row * clip.logit_scale.exp()).softmax(0)[best]
        assert 1 / len(proposals) < answer.score < 1 and answer.score == pytest.approx(float(expected))
    assert len({answer.point for answer in answers}) > 1  # they do not all mean the same


def test_points_lie_on_the_grid_of_the_images_own_pixels(with_image):
    # Thirds of 70 and of 50, their middles rounded down.
    allowed = {(x, y) for x in (11, 35, 58) for y in (8, 25, 41)}
    assert {answer.point for answer in with_image.predict(TEXTS)} <= allowed


def test_one_text_gives_one_answer_and_a_list_gives_a_list_in_order(with_image):
    answers = with_image.predict(TEXTS)
    assert [answer.expression for answer in answers] == TEXTS
    for text, answer in zip(TEXTS, answers, strict=True):
        same(with_image.predict(text), answer)
    assert with_image.predict([]) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (131, 17)])
def test_any_image_size(classifier, size):
    answer = classifier.set_image(np.full((*size, 3), 90, np.uint8)).predict("a")
    assert answer.mask.shape == answer.coarse_mask.shape == size
    x, y = answer.point
    assert 0 <= x < size[1] and 0 <= y < size[0]


def test_threshold(model, with_image, pixels):
    strict = MaskClassifier(model, threshold=0.7, proposals=LENIENT).set_image(pixels).predict("c")
    usual = with_image.predict("c")
    assert strict.point == usual.point
    assert strict.area < usual.area and not (strict.mask & ~usual.mask).any()


def test_no_proposal_is_an_empty_answer(model, pixels):
    with_image = MaskClassifier(model, proposals=NOTHING).set_image(pixels)
    one, other = with_image.predict(["a b", "c"])
    assert (one.expression, other.expression) == ("a b", "c")
    assert one.mask.shape == (HEIGHT, WIDTH) and not one.mask.any() and not one.coarse_mask.any()
    assert one.score == 0.0 and one.point == (WIDTH // 2, HEIGHT // 2)
    assert with_image.predict("a b").bbox == [0, 0, 0, 0]


def test_what_a_model_has_learned_plays_no_part(model, make_model, with_image, pixels):
    other = make_model(clip=model.clip.clip, sam=model.sam.sam, seed=99, clip_image_size=16)
    answers = MaskClassifier(other, proposals=LENIENT).set_image(pixels).predict(TEXTS)
    for a, b in zip(answers, with_image.predict(TEXTS), strict=True):
        same(a, b)


def test_settings_follow_the_sam(model, small_model):
    assert MaskClassifier(model).proposals == ProposalConfig()
    assert MaskClassifier(small_model).proposals == SINGLE_MASK


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model, pixels, dtype):
    half = MaskClassifier(make_model(seed=7).to(dtype), proposals=LENIENT).set_image(pixels)
    answers = half.predict(TEXTS)
    assert [answer.expression for answer in answers] == TEXTS
    assert all(answer.area > 0 and 0 < answer.score <= 1 for answer in answers)


# --------------------------------------------------------------------------------------------- what it is asked


def test_it_answers_about_the_image_set_last(model, pixels):
    classifier = MaskClassifier(model, proposals=LENIENT)
    with pytest.raises(InputError, match="set_image"):
        classifier.predict("c")
    with_first = classifier.set_image(pixels)
    same(classifier.predict("c"), with_first.predict("c"))
    classifier.set_image(pixels[:20])
    classifier.answer_images([pixels], ["c"], [0])  # changes nothing of that
    assert classifier.predict(["c"])[0].mask.shape == (20, WIDTH)
    assert with_first.predict("c").mask.shape == (HEIGHT, WIDTH)


def test_paths_are_taken_and_named(classifier, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png"):
        classifier.set_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_expression_is_refused(with_image, empty):
    with pytest.raises(InputError, match="empty"):
        with_image.predict([*TEXTS, empty])


def test_prompts_and_clicks_are_refused(classifier, with_image, pixels):
    with pytest.raises(InputError, match="prompts"):
        with_image.predict("c", prompts=("mask",))
    with pytest.raises(InputError, match="clicks"):
        with_image.predict("c", points=[(3, 4, 1)])
    with pytest.raises(InputError, match="prompts"):
        classifier.answer_images([pixels], ["c"], [0], prompts=("text",))


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_thresholds_outside_the_open_interval_are_refused(model, threshold):
    with pytest.raises(InputError, match="threshold"):
        MaskClassifier(model, threshold=threshold)


def test_several_images_each_encoded_once(model, classifier, pixels):
    other = np.ascontiguousarray(pixels[:20, :30])
    calls = []
    hook = model.sam.sam.vision_encoder.neck.register_forward_hook(lambda *_: calls.append(1))
    answers = classifier.answer_images([pixels, other, pixels], ["a", "b", "", "c"], [1, 0, 1, 0])
    hook.remove()
    assert len(calls) == 2  # nothing was asked about the third
    assert [answer.expression for answer in answers] == ["a", "b", "", "c"]
    same(answers[0], classifier.set_image(other).predict("a"))
    same(answers[1], classifier.set_image(pixels).predict("b"))
    same(answers[3], classifier.set_image(pixels).predict("c"))
    assert answers[2].mask.shape == (20, 30)
    assert classifier.answer_images([pixels], [], []) == []


# -------------------------------------------------------------------------------------------------- base weights


def test_from_base_weights_alone(make_clip, make_sam, pixels, tmp_path):
    # Towers of depths that cannot advance in lock step: nothing here needs them to.
    clip, sam = make_clip(image_depth=3, text_depth=2), make_sam()
    tokenizer = byte_tokenizer(600, 24)
    clip.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    sam.save_pretrained(tmp_path / "sam")
    loaded = load_classifier(tmp_path / "clip", tmp_path / "sam", device="cpu", threshold=0.4)
    reference = MaskClassifier(FrozenTowers(clip, SamAdapter(sam), tokenizer), threshold=0.4)
    assert loaded.device == torch.device("cpu") and loaded.proposals == ProposalConfig()
    loaded.proposals = reference.proposals = LENIENT
    for a, b in zip(
        loaded.set_image(pixels).predict(TEXTS), reference.set_image(pixels).predict(TEXTS), strict=True
    ):
        same(a, b)
    half = load_classifier(tmp_path / "clip", tmp_path / "sam", device="cpu", dtype="bfloat16")
    named = half.model.named_parameters()
    assert {p.dtype for name, p in named if "positional_embedding" not in name} == {torch.bfloat16}
    with pytest.raises(InputError, match="nowhere"):
        load_classifier(tmp_path / "clip", tmp_path / "nowhere", device="cpu")


# ---------------------------------------------------------------------------------------------------- in its world


def test_in_the_world_of_the_built_in_model():
    """Five scenes: the proposals cover the objects; CLIP tells attributes, not places, which a crop has lost."""
    classifier = MaskClassifier(promptris.load("tiny", device="cpu").model)
    examples = [make_example(777, index) for index in range(5)]
    pairs = [(row, text) for row, example in enumerate(examples) for text in example.descriptions]
    answers = classifier.answer_images(
        [example.image for example in examples], [text.text for _, text in pairs], [row for row, _ in pairs]
    )
    best = []
    for example in examples:
        logits = classifier.set_image(example.image).proposals.logits
        masks = (classifier.processor.restore(logits, example.image.shape[:2]) > 0).numpy()
        best += [max(mask_iou(mask, truth) for mask in masks) for truth in example.masks]
    ious = {
        kind: np.mean(
            [
                mask_iou(answer.mask, examples[row].masks[text.target])
                for answer, (row, text) in zip(answers, pairs, strict=True)
                if text.kind == kind
            ]
        )
        for kind in ("attribute", "location", "relation")
    }
    recall = np.mean(np.array(best) > 0.5)
    assert recall > 0.7
    assert ious["attribute"] > 0.35 and ious["attribute"] > ious["relation"] + 0.1
