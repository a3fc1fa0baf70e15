"""From an image and expressions to masks at the image's own size."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from promptris.errors import InputError
from promptris.modeling.sam_prompts import Corrections
from promptris.placement import fastest_dtype, pick_device, place
from promptris.predictor import Predictor, load

HEIGHT, WIDTH = 50, 70
TEXTS = ["a b", "c", "dd e fff", "g", "hh"]


@pytest.fixture(scope="module")
def model(make_model):
    """Do not change it."""
    return make_model(seed=7)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model)


@pytest.fixture(scope="module")
def with_image(predictor, pixels):
    return predictor.set_image(pixels)


def same(a, b):
    assert a.expression == b.expression and a.point == b.point
    assert a.score == pytest.approx(b.score, abs=1e-5)
    # A pixel whose probability is the threshold itself may fall on either side.
    assert (a.mask != b.mask).mean() < 2e-3 and (a.coarse_mask != b.coarse_mask).mean() < 2e-3


@torch.no_grad()
def by_hand(model, pixels, text, threshold=0.5, **options):
    """Mask, coarse mask, score and point of one expression, step by step."""
    processor = model.processor()
    output = model(model.encode_image(processor.images([pixels])), processor.expressions([text]), **options)

    def at_own_size(logits):
        resized = F.interpolate(logits[:, None], pixels.shape[:2], mode="bilinear", align_corners=False)
        return (resized[0, 0].sigmoid() > threshold).numpy()

    row, column = divmod(int(output.point_index), 32)
    point = math.floor((column + 0.5) / 32 * WIDTH), math.floor((row + 0.5) / 32 * HEIGHT)
    score = min(max(float(output.predicted_iou), 0.0), 1.0)
    return at_own_size(output.mask_logits), at_own_size(output.coarse_logits_hr), score, point


def check(prediction, expected):
    mask, coarse_mask, score, point = expected
    assert (prediction.mask != mask).mean() < 2e-3
    assert (prediction.coarse_mask != coarse_mask).mean() < 2e-3
    assert prediction.score == pytest.approx(score, abs=1e-5)
    assert prediction.point == point


# ------------------------------------------------------------------------------------------------- what it says


def test_prediction_has_the_images_own_size(with_image):
    answer = with_image.predict("a b")
    assert answer.expression == "a b"
    for mask in (answer.mask, answer.coarse_mask):
        assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == np.bool_
        assert 0.02 < mask.mean() < 0.98  # an empty or full mask would show nothing below
    assert isinstance(answer.score, float) and 0 <= answer.score <= 1
    assert all(type(value) is int for value in answer.point)


@pytest.mark.parametrize("text", TEXTS)
def test_prediction_is_the_models_output_restored(model, with_image, pixels, text):
    check(with_image.predict(text), by_hand(model, pixels, text))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (131, 17)])
def test_any_image_size(predictor, size):
    answer = predictor.set_image(np.full((*size, 3), 90, np.uint8)).predict("a")
    assert answer.mask.shape == answer.coarse_mask.shape == size
    x, y = answer.point
    assert 0 <= x < size[1] and 0 <= y < size[0]


def test_one_text_gives_one_answer_and_a_list_gives_a_list_in_order(with_image):
    answers = with_image.predict(TEXTS)
    assert [answer.expression for answer in answers] == TEXTS
    for text, answer in zip(TEXTS, answers, strict=True):
        same(with_image.predict(text), answer)
    backwards = with_image.predict(TEXTS[::-1])
    for forth, back in zip(answers, reversed(backwards), strict=True):
        same(forth, back)
    (only,) = with_image.predict(["a b"])
    same(only, with_image.predict("a b"))
    assert with_image.predict([]) == []
    assert not np.array_equal(answers[0].mask, answers[1].mask)


@pytest.mark.parametrize("per_pass", [1, 2, 3, 5])
def test_passes_of_any_size_give_the_same_answers(model, with_image, pixels, per_pass):
    chunked = Predictor(model, expressions_per_pass=per_pass).set_image(pixels)
    for a, b in zip(chunked.predict(TEXTS), with_image.predict(TEXTS), strict=True):
        same(a, b)


def test_repeating_a_question_repeats_the_answer(with_image):
    first, second = with_image.predict("a b"), with_image.predict("a b")
    assert np.array_equal(first.mask, second.mask) and first.point == second.point


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_threshold(model, with_image, pixels, threshold):
    answer = Predictor(model, threshold=threshold).set_image(pixels).predict("c")
    check(answer, by_hand(model, pixels, "c", threshold))
    assert not np.array_equal(answer.mask, with_image.predict("c").mask)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_thresholds_outside_the_open_interval_are_refused(model, threshold):
    with pytest.raises(InputError, match="threshold"):
        Predictor(model, threshold=threshold)


def test_score_is_sams_iou_kept_between_0_and_1(make_model, pixels):
    model = make_model()
    for shift, expected in ((9.0, 1.0), (-18.0, 0.0)):
        model.sam.sam.mask_decoder.iou_prediction_head.proj_out.bias.data += shift
        assert Predictor(model).set_image(pixels).predict("a").score == expected


# ---------------------------------------------------------------------------------------- images and encoding


def test_sam_encodes_an_image_once_however_many_questions(model, pixels):
    calls = []
    hook = model.sam.sam.vision_encoder.neck.register_forward_hook(lambda *_: calls.append(1))
    with_image = Predictor(model, expressions_per_pass=2).set_image(pixels)
    with_image.predict(TEXTS)
    with_image.predict("a")
    hook.remove()
    assert len(calls) == 1


def test_recent_images_are_not_encoded_again(model, pixels):
    encoded = []
    hook = model.sam.sam.vision_encoder.neck.register_forward_hook(lambda *_: encoded.append(1))
    predictor = Predictor(model, remembered_images=2)
    images = [pixels, pixels[::-1], pixels[:, ::-1]]
    first = predictor.set_image(pixels).predict("a")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    same(predictor.set_image(buffer.getvalue()).predict("a"), first)
    assert len(encoded) == 1
    for image in images[1:]:
        predictor.set_image(image)
    assert len(encoded) == 3
    predictor.set_image(images[2])
    same(predictor.predict("a"), Predictor(model).set_image(images[2]).predict("a"))
    assert len(encoded) == 4  # the other predictor's own
    predictor.set_image(pixels)  # forgotten by now
    Predictor(model, remembered_images=0).set_image(pixels)
    hook.remove()
    assert len(encoded) == 6


def test_paths_bytes_and_pil_images_are_taken(predictor, with_image, pixels, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "photo.png").write_bytes(buffer.getvalue())
    for given in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        buffer.getvalue(),
        Image.fromarray(pixels),
    ):
        same(predictor.set_image(given).predict("a b"), with_image.predict("a b"))
    with pytest.raises(InputError, match="nowhere"):
        predictor.set_image(tmp_path / "nowhere.png")


def test_a_turned_photo_gets_an_upright_mask(predictor, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    assert predictor.set_image(buffer.getvalue()).predict("a").mask.shape == (WIDTH, HEIGHT)


def test_several_images_in_one_call(predictor, pixels):
    other = np.ascontiguousarray(pixels[:20, :30])
    features = predictor.encode([pixels, other])
    answers = predictor.answer(features, [(HEIGHT, WIDTH), (20, 30)], ["a", "b", "a"], [1, 0, 0])
    same(answers[0], predictor.set_image(other).predict("a"))
    same(answers[1], predictor.set_image(pixels).predict("b"))
    same(answers[2], predictor.set_image(pixels).predict("a"))
    assert answers[0].mask.shape == (20, 30)


def test_without_sam_the_coarse_mask_is_the_answer(predictor, with_image, model, pixels):
    with torch.inference_mode():
        features = model.encode_image(predictor.processor.images([pixels], with_sam=False))
    (answer,) = predictor.answer(features, [(HEIGHT, WIDTH)], ["a b"], [0])
    reference = with_image.predict("a b")
    assert np.array_equal(answer.mask, reference.coarse_mask)
    assert np.array_equal(answer.coarse_mask, reference.coarse_mask)
    assert answer.point == reference.point
    assert 0.5 < answer.score < 1  # mean probability inside a mask cut at 0.5


def test_a_model_trained_without_sam_answers_so_wherever_it_is_loaded(model, make_model, pixels, tmp_path):
    make_model(seed=7, sam_prompts={"refine": False}).save_pretrained(tmp_path, full=True)
    loaded = load(tmp_path, device="cpu")
    assert not loaded.with_sam and Predictor(model).with_sam
    assert Predictor(loaded.model, with_sam=True).with_sam
    with_image = loaded.set_image(pixels)
    assert with_image.features.sam_embeddings is None
    answer = with_image.predict("a b")
    assert np.array_equal(answer.mask, answer.coarse_mask)
    (other,) = loaded.answer_images([pixels], ["a b"], [0], prompts=None)
    assert np.array_equal(other.mask, answer.mask)
    with pytest.raises(InputError, match=r"without SAM.*clicks"):
        with_image.predict("a b", points=[(1, 1, 1)])
    for prompts in (("mask",), ()):
        with pytest.raises(InputError, match=r"without SAM.*choice of SAM prompts"):
            with_image.predict("a b", prompts=prompts)


def test_models_saved_before_there_was_a_choice_answer_with_sam(folder, tmp_path):
    older = shutil.copytree(folder, tmp_path / "older")
    config = json.loads((older / "config.json").read_text())
    del config["model"]["sam_prompts"]["refine"]
    (older / "config.json").write_text(json.dumps(config))
    assert load(older, device="cpu").with_sam


def test_the_point_marks_the_highest_coarse_response(make_model):
    """All weight on one corner of the picture: the point must land there, in (x, y) order."""
    model = make_model(decoder={"dim": 16, "layers": 0})
    corners = {(0, 0): [], (0, 1): [], (1, 0): [], (1, 1): []}
    decoder = model.decoder
    for row, column in corners:

        def peak(image, text, mask, grid, row=row, column=column):
            logits = torch.zeros(len(text), *grid)
            logits[:, row * (grid[0] - 1), column * (grid[1] - 1)] = 5.0
            return logits

        decoder.forward = peak
        x, y = Predictor(model).set_image(np.zeros((40, 200, 3), np.uint8)).predict("a").point
        assert (x >= 100) == bool(column) and (y >= 20) == bool(row)


# -------------------------------------------------------------------------------------------- prompts and clicks


@pytest.mark.parametrize("names", [(), ("mask",), ("point",), ("text",), ("mask", "text")])
def test_prompts_of_a_call(model, with_image, pixels, names):
    check(with_image.predict("a b", prompts=names), by_hand(model, pixels, "a b", prompts=names))


def test_an_unknown_prompt_is_named(with_image, unchecked):
    with pytest.raises(InputError, match="box"):
        with_image.predict("a b", prompts=("box",))


def test_clicks_are_pixel_centres_with_labels(model, with_image, pixels):
    answer = with_image.predict(["c", "a b"], points=[(10, 20, 1), (69, 49, 0)])
    fractions = torch.tensor([[[10.5 / WIDTH, 20.5 / HEIGHT], [69.5 / WIDTH, 49.5 / HEIGHT]]])
    clicks = Corrections(fractions, torch.tensor([[1, 0]]))
    check(answer[0], by_hand(model, pixels, "c", corrections=clicks))
    check(answer[1], by_hand(model, pixels, "a b", corrections=clicks))
    assert not np.array_equal(answer[1].mask, with_image.predict("a b").mask)


def test_the_label_of_a_click_matters(with_image):
    wanted = with_image.predict("a", prompts=("mask",), points=[(30, 30, 1)])
    unwanted = with_image.predict("a", prompts=("mask",), points=[(30, 30, 0)])
    assert wanted.score != unwanted.score
    same(with_image.predict("a", prompts=("mask",), points=[(30, 30, 1.0)]), wanted)


@pytest.mark.parametrize(
    "click", [(-1, 5, 1), (70, 5, 1), (5, -0.5, 1), (5, 50, 1), (5, 5, 2), (5, 5, -1), (float("nan"), 5, 1)]
)
def test_clicks_outside_the_image_are_refused(with_image, click):
    with pytest.raises(InputError, match="70 x 50 image"):
        with_image.predict("a", points=[(5, 5, 1), click])


def test_a_box_is_given_by_its_first_pixel_and_its_size(model, with_image, pixels):
    answer = with_image.predict("c", box=(10, 20, 31, 12))
    corners = torch.tensor([[[10.5 / WIDTH, 20.5 / HEIGHT], [40.5 / WIDTH, 31.5 / HEIGHT]]])
    none = torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long)
    check(answer, by_hand(model, pixels, "c", corrections=Corrections(*none, corners)))
    assert not np.array_equal(answer.mask, with_image.predict("c").mask)


@pytest.mark.parametrize(
    "box", [(-1, 5, 9, 9), (5, 5, 0, 9), (5, 5, 66, 9), (5, 5, 9, 46), (5, 5, 9), (5, 5, float("nan"), 9)]
)
def test_boxes_outside_the_image_are_refused(with_image, box):
    with pytest.raises(InputError, match="box"):
        with_image.predict("a", box=box)


def test_an_explanation_tells_response_prompts_and_corrections(model, predictor, with_image, pixels):
    found = with_image.explain("a b", points=[(10, 20, 1)], prompts=("mask",))
    same(found.prediction, with_image.predict("a b", points=[(10, 20, 1)], prompts=("mask",)))
    assert found.prompts == ("mask",) and found.points == ((10, 20, 1),) and found.box is None
    side = model.coarse_grid
    processor = model.processor()
    with torch.no_grad():
        output = model(model.encode_image(processor.images([pixels])), processor.expressions(["a b"]))
    np.testing.assert_allclose(found.response, output.coarse_logits[0].sigmoid(), atol=1e-5)
    assert found.response.shape == (side, side) and found.response.dtype == np.float32
    np.testing.assert_array_equal(found.coarse_mask, found.prediction.coarse_mask)
    assert found.picture(pixels).width > 3 * WIDTH
    predictor.set_image(pixels)
    assert predictor.explain("a b", prompts=()).prompts == ()
    coarse = Predictor(model, with_sam=False).set_image(pixels).explain("a b")
    assert coarse.prompts == ()


def test_auto_takes_half_precision_where_it_is_faster(monkeypatch):
    from promptris import placement

    for there in (True, False):
        monkeypatch.setattr(placement, "has_half_precision", lambda there=there: there)
        large = torch.bfloat16 if there and placement.has_onednn() else torch.float32
        assert fastest_dtype(torch.device("cpu"), 1024) == large
        assert fastest_dtype(torch.device("cpu"), 128) == torch.float32
    assert fastest_dtype(torch.device("mps"), 1024) == torch.float32


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_expression_is_refused_before_any_work(with_image, empty):
    with pytest.raises(InputError, match="empty"):
        with_image.predict(empty)
    with pytest.raises(InputError, match="empty"):
        with_image.predict([*TEXTS, empty])


def test_a_long_expression_warns_and_is_answered(with_image):
    with pytest.warns(UserWarning, match="tokens"):
        answer = with_image.predict("z" * 40)
    assert answer.mask.shape == (HEIGHT, WIDTH)


# ------------------------------------------------------------------------------------------ what can be done with it


def test_forms_of_a_prediction(with_image, pixels):
    from promptris.ops.polygons import polygons_to_mask
    from promptris.ops.run_lengths import rle_to_mask

    answer = with_image.predict("a b")
    ys, xs = np.nonzero(answer.mask)
    assert answer.area == len(ys) > 0
    assert answer.bbox == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    assert np.array_equal(rle_to_mask(answer.to_rle()), answer.mask)
    assert answer.to_rle()["size"] == [HEIGHT, WIDTH]
    outlines = polygons_to_mask(answer.to_polygons(), HEIGHT, WIDTH)
    assert (outlines != answer.mask).mean() < 0.02
    drawn = answer.overlay(pixels)
    assert drawn.size == (WIDTH, HEIGHT)
    assert not np.array_equal(np.asarray(drawn.convert("RGB")), pixels)
    assert {field.name for field in fields(answer)} == {"expression", "mask", "score", "coarse_mask", "point"}


def test_predicting_puts_the_model_into_evaluation_mode(make_model):
    model = make_model().train()
    Predictor(model)
    assert not model.training


# -------------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    model.save_pretrained(path, full=True)
    return path


def test_load_a_folder(folder, with_image, pixels):
    predictor = load(folder, device="cpu")
    assert predictor.device == torch.device("cpu")
    for a, b in zip(predictor.set_image(pixels).predict(TEXTS), with_image.predict(TEXTS), strict=True):
        same(a, b)


def test_positions_stay_exact_in_half_precision(folder, model):
    half = load(folder, device="cpu", dtype="bfloat16").model.sam
    points = torch.tensor([[0.30, 0.71], [0.999, 0.001]])
    with torch.no_grad():
        found, expected = half.embed_position(points), model.sam.embed_position(points)
        assert found.dtype == half.image_code().dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, atol=0.004, rtol=0)
        torch.testing.assert_close(half.image_code().float(), model.sam.image_code(), atol=0.004, rtol=0)
        # Converted as a whole it would be far off.
        rounded = copy.deepcopy(model).bfloat16().sam.embed_position(points)
        assert (rounded.float() - expected).abs().max() > 0.02


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_load_in_half_precision(folder, with_image, pixels, dtype):
    predictor = load(str(folder), device="cpu", dtype=dtype)
    named = predictor.model.named_parameters()
    # SAM's position matrix gives angles of many turns.
    others = {p.dtype for name, p in named if "positional_embedding" not in name}
    assert others == {getattr(torch, dtype)}
    loaded = predictor.set_image(pixels)
    answers = loaded.predict(TEXTS)
    assert [a.expression for a in answers] == TEXTS
    for half, whole in zip(answers, with_image.predict(TEXTS), strict=True):
        assert (half.coarse_mask == whole.coarse_mask).mean() > 0.95
    loaded.predict("a", points=[(3, 4, 0)])


def test_load_what_is_not_there(folder, tmp_path):
    with pytest.raises(InputError, match="no model folder enormous"):
        load("enormous")
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"'float64'.*bfloat16"):
        load(folder, dtype="float64")
    with pytest.raises(InputError, match="'abacus'"):
        load(folder, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cuda'"):
            load(folder, device="cuda")
        with pytest.raises(InputError, match="'cuda:7'"):
            pick_device("cuda:7")


def test_auto_takes_what_is_there(make_model):
    apple = "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else apple)
    assert pick_device("cpu") == torch.device("cpu")
    assert next(place(make_model(), "cpu").parameters()).dtype == torch.float32


def test_the_predictor_answers_about_the_image_set_last(make_model):
    predictor = Predictor(make_model())
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(2))
    with pytest.raises(InputError, match="set_image"):
        predictor.predict("red")
    with_first = predictor.set_image(first)
    assert np.array_equal(predictor.predict("red").mask, with_first.predict("red").mask)
    with_second = predictor.set_image(second)
    assert [p.expression for p in predictor.predict(["a", "b"])] == ["a", "b"]
    assert np.array_equal(predictor.predict("red").coarse_mask, with_second.predict("red").coarse_mask)


def test_a_click_that_is_no_triple_is_named(with_image):
    with pytest.raises(InputError, match=r"\(1, 2\) is not \(x, y, label\)"):
        with_image.predict("red", points=[(1, 2)])
