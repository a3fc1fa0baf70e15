"""Images and expressions in, tensors out, and masks back to the image's own size."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from promptris import images as reading
from promptris import processing
from promptris.errors import InputError
from promptris.modeling.tokenizer import build_word_tokenizer, byte_tokenizer
from promptris.ops.masks import mask_iou
from promptris.ops.resizing import pool_masks
from promptris.processing import (
    CLIP_MEAN,
    CLIP_STD,
    Processor,
    check_expression,
    normalise,
    normalised,
    stretch,
)

RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.fixture(scope="module")
def processor():
    """Every word is one token; ten tokens fit."""
    words = ["the", "red", "circle", "on", "left", "of", "a", "blue", "square", "small", "very"]
    return Processor(build_word_tokenizer(words, 10), clip_size=24, sam_size=32, context_length=10)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(color, size=(6, 4)):
    return Image.new("RGB", size, tuple(color))


def ready(processor, images, **options):
    """What the towers get."""
    return normalised(processor.images(images, **options))


# ------------------------------------------------------------------------------------------ tensors of images


def test_pixels_stay_small_until_the_model_has_them(processor):
    batch = processor.images([solid(RED, (30, 7))])
    assert batch.clip_pixels.dtype == batch.sam_pixels.dtype == torch.uint8
    assert normalised(batch, torch.bfloat16).sam_pixels.dtype == torch.bfloat16
    again = normalised(normalised(batch))
    assert torch.equal(again.clip_pixels, normalised(batch).clip_pixels)  # floats count as done


def test_sizes_and_types(processor):
    batch = ready(processor, [solid(RED, (30, 7)), solid(WHITE, (5, 90))])
    assert batch.clip_pixels.shape == (2, 3, 24, 24) and batch.clip_pixels.dtype == torch.float32
    assert batch.sam_pixels.shape == (2, 3, 32, 32) and batch.sam_pixels.dtype == torch.float32
    alone = ready(processor, [solid(RED, (30, 7))], with_sam=False)
    assert alone.sam_pixels is None
    assert torch.equal(alone.clip_pixels, batch.clip_pixels[:1])


def test_normalisation_of_a_constant_image_by_hand(processor):
    batch = ready(processor, [solid([51, 102, 204], (13, 9))])  # 0.2, 0.4, 0.8
    clip = [
        (0.2 - 0.48145466) / 0.26862954,
        (0.4 - 0.4578275) / 0.26130258,
        (0.8 - 0.40821073) / 0.27577711,
    ]
    sam = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225]
    for pixels, expected in ((batch.clip_pixels, clip), (batch.sam_pixels, sam)):
        expanded = torch.tensor(expected)[:, None, None].expand_as(pixels[0])
        torch.testing.assert_close(pixels[0], expanded, atol=1e-5, rtol=0)


def test_one_pixel_is_enough(processor):
    batch = ready(processor, [solid(RED, (1, 1))])
    assert (batch.clip_pixels[0].flatten(1).std(dim=1) < 1e-6).all()
    assert batch.sam_pixels.shape == (1, 3, 32, 32)


def test_left_stays_left_and_top_stays_top(processor):
    """Red on the left, black at the bottom, in both towers' tensors: nothing is flipped or turned."""
    image = solid(WHITE, (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    image.paste((0, 0, 0), (0, 15, 40, 20))
    batch = ready(processor, [image])
    for pixels in (batch.clip_pixels[0], batch.sam_pixels[0]):
        side = pixels.shape[-1]
        quarter, three_quarters, bottom = side // 4, 3 * side // 4, side - 2
        red, green = pixels[0], pixels[1]
        assert red[quarter, quarter] > 1 and green[quarter, quarter] < -1  # red
        assert red[quarter, three_quarters] > 1 and green[quarter, three_quarters] > 1  # white
        assert (red[bottom, :] < -1).all() and (green[bottom, :] < -1).all()  # black


def test_the_whole_image_is_stretched_not_cropped(processor):
    """A wide image with a one-eighth stripe at each end keeps both, at the same share of the width."""
    image = solid(WHITE, (80, 10))
    image.paste((0, 0, 0), (0, 0, 10, 10))
    image.paste((0, 0, 0), (70, 0, 80, 10))
    for pixels in (ready(processor, [image]).clip_pixels[0, 0], ready(processor, [image]).sam_pixels[0, 0]):
        dark = (pixels[0] < 0).nonzero()[:, 0].tolist()
        side = len(pixels)
        assert dark == [*range(side // 8), *range(side - side // 8, side)]


def test_shrinking_is_antialiased(processor):
    """Black and white noise, about 100 pixels to one: averages are grey, single samples would not be."""
    noise = np.random.default_rng(0).integers(0, 2, (240, 320, 1)).repeat(3, axis=2) * 255
    batch = ready(processor, [noise.astype(np.uint8)])
    for pixels in (batch.clip_pixels, batch.sam_pixels):
        assert pixels.std(dim=(2, 3)).max() < 0.5  # about 1.9 without averaging


def test_arrays_with_negative_strides_are_taken_as_they_look(processor):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = RED
    mirrored = ready(processor, [pixels[:, ::-1]]).clip_pixels
    assert torch.equal(mirrored, ready(processor, [np.ascontiguousarray(pixels[:, ::-1])]).clip_pixels)


def test_order_of_images_is_kept(processor):
    batch = ready(processor, [solid(RED), solid([0, 0, 255]), solid(WHITE)])
    assert [int(p[0, 0, 0] > 0) for p in batch.clip_pixels] == [1, 0, 1]
    assert [int(p[2, 0, 0] > 0) for p in batch.sam_pixels] == [0, 1, 1]


def test_reading_images_is_the_one_of_promptris_images():
    for name in ("load_image", "ImageLike", "MAX_PIXELS"):
        assert getattr(processing, name) is getattr(reading, name)


def test_path_bytes_pil_and_array_give_identical_tensors(processor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "JPEG")
    (tmp_path / "photo.jpg").write_bytes(data)
    decoded = np.asarray(Image.open(io.BytesIO(data)))  # read-only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = ready(processor, [tmp_path / "photo.jpg", data, Image.fromarray(decoded), decoded])
    for tensors in (batch.clip_pixels, batch.sam_pixels):
        assert all(torch.equal(tensors[0], other) for other in tensors[1:])


def test_tensors_are_in_channels_last_memory(processor):
    batch = ready(processor, [solid(RED, (30, 7)), solid(WHITE, (5, 90))])
    for tensors in (batch.clip_pixels, batch.sam_pixels):
        assert tensors.is_contiguous(memory_format=torch.channels_last)


def test_training_may_decode_photographs_no_larger_than_the_larger_square(processor):
    assert (processor.enough(), processor.enough(with_sam=False)) == (32, 24)


def test_normalise_by_hand_and_its_input_is_kept():
    pixels = torch.tensor([0, 51, 255] * 6, dtype=torch.uint8).reshape(1, 2, 3, 3).permute(0, 3, 1, 2)
    kept = pixels.clone()
    result = normalise(pixels, CLIP_MEAN, CLIP_STD)
    assert result.shape == (1, 3, 2, 3) and torch.equal(pixels, kept)
    for channel, value in enumerate((0.0, 0.2, 1.0)):
        expected = (value - CLIP_MEAN[channel]) / CLIP_STD[channel]
        assert result[:, channel].sub(expected).abs().max() < 1e-6


PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 70),
    st.sampled_from(list(PILLOW)),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_stretching_noise_is_pillows_within_two_levels(height, width, side, how, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((side, side), PILLOW[how])).astype(int)
    difference = np.abs(stretch(noise, side, how).numpy() - expected)
    assert difference.max() <= 2 and (difference > 1).mean() < 0.01


@pytest.mark.parametrize(("side", "how"), [(480, "bicubic"), (1024, "bilinear"), (64, "bicubic")])
def test_stretching_a_picture_is_pillows_within_one_level(side, how):
    y, x = np.mgrid[:300, :400]
    disc = (x - 150) ** 2 + (y - 120) ** 2 < 8000
    picture = np.stack([128 + 90 * np.sin(x / 30), 128 + 90 * np.cos(y / 20 + x / 50), 255.0 * disc], axis=2)
    picture = picture.astype(np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((side, side), PILLOW[how])).astype(int)
    difference = np.abs(stretch(picture, side, how).numpy() - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01


@given(st.integers(1, 60), st.sampled_from(list(PILLOW)), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_stretching_to_the_same_size_changes_nothing(side, how, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert np.array_equal(stretch(noise, side, how).numpy(), noise)


# ------------------------------------------------------------------------------------------------ expressions


def test_tokens_are_start_words_end_and_padding(processor):
    vocabulary = processor.tokenizer.get_vocab()
    batch = processor.expressions(["the red circle", "square"], [1, 0])
    start, end, pad = (vocabulary[t] for t in ("<|startoftext|>", "<|endoftext|>", "<|pad|>"))
    words = {word: vocabulary[word + "</w>"] for word in ("the", "red", "circle", "square")}
    assert batch.input_ids.tolist() == [
        [start, words["the"], words["red"], words["circle"], end],
        [start, words["square"], end, pad, pad],
    ]
    assert batch.word_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.image_index.tolist() == [1, 0] and batch.image_index.dtype == torch.long


def test_all_expressions_are_about_the_first_image_unless_told(processor):
    assert processor.expressions(["red", "blue"]).image_index.tolist() == [0, 0]


def test_case_and_spaces_do_not_matter(processor):
    batch = processor.expressions(["the red circle", "  The   RED\tcircle \n"])
    assert torch.equal(batch.input_ids[0], batch.input_ids[1])


def test_padding_like_clips_own_is_masked_too():
    """CLIP pads with [EOS]: only the first one is a word."""
    processor = Processor(byte_tokenizer(514, 12), 24, 32, 12)
    batch = processor.expressions(["a b c", "a"])
    end = processor.tokenizer.eos_token_id
    assert batch.input_ids[1, 2:].tolist() == [end] * 3
    assert batch.word_mask[1].tolist() == [True, True, True, False, False]


def test_long_expressions_are_cut_with_a_warning_that_names_them(processor):
    long = "the " + "very " * 12 + "red circle"
    with pytest.warns(UserWarning, match=r"'the very very.* has 15 tokens.*first 8"):
        batch = processor.expressions([long, "red"])
    vocabulary = processor.tokenizer.get_vocab()
    assert batch.input_ids.shape == (2, 10)
    assert batch.input_ids[0, -1] == vocabulary["<|endoftext|>"]
    assert batch.input_ids[0, 1] == vocabulary["the</w>"]
    assert batch.input_ids[0, 2:9].tolist() == [vocabulary["very</w>"]] * 7
    assert batch.word_mask[0].all() and batch.word_mask[1].sum() == 3


def test_an_expression_that_just_fits_is_not_cut(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = processor.expressions(["very " * 8])
    assert batch.input_ids.shape == (1, 10)


def test_unknown_words_and_other_scripts_are_read(processor):
    batch = processor.expressions(["xyz", "圆", "☂!"])
    assert (batch.word_mask.sum(dim=1) > 2).all()


@pytest.mark.parametrize("empty", ["", "   ", "\t\n"])
def test_an_empty_expression_is_refused(empty):
    with pytest.raises(InputError, match="empty"):
        check_expression(empty)


def test_an_empty_sentence_of_a_benchmark_is_start_and_end(processor):
    batch = processor.expressions(["red", ""])
    assert batch.word_mask.sum(dim=1).tolist() == [3, 2]


def test_broken_unicode_is_refused():
    with pytest.raises(InputError, match=r"\\udcff.*not valid Unicode"):
        check_expression("red \udcff")


@pytest.mark.parametrize("other", [None, 3, b"red", ["red"]])
def test_an_expression_that_is_no_text_is_refused(other):
    with pytest.raises(InputError, match=type(other).__name__):
        check_expression(other)


# ------------------------------------------------------------------------------------------------ the way back


def test_masks_go_back_to_the_images_own_size():
    logits = torch.full((2, 8, 8), -5.0)
    logits[0, :, :4] = 5.0
    logits[1, 6:] = 5.0
    restored = Processor.restore(logits, (20, 50))
    assert restored.shape == (2, 20, 50)
    left, bottom = restored > 0
    assert torch.equal(left, (torch.arange(50) < 25).expand(20, 50))
    assert torch.equal(bottom, (torch.arange(20) >= 15)[:, None].expand(20, 50))


def test_going_back_is_bilinear_with_aligned_areas():
    restored = Processor.restore(torch.tensor([[[0.0, 4.0]]]), (1, 4))
    assert restored.tolist() == [[[0.0, 1.0, 3.0, 4.0]]]


sizes = st.integers(24, 160)


def bump(height, width, centre_x, centre_y, sigma):
    """[height, width], 1 at a relative position; `sigma` is a share of the width and of the height."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return np.exp(-((y[:, None] - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * sigma**2))


def centre(values):
    """Relative (x, y) of the centre of mass."""
    height, width = values.shape
    x = (values.sum(0) * (np.arange(width) + 0.5)).sum() / values.sum() / width
    return x, (values.sum(1) * (np.arange(height) + 0.5)).sum() / values.sum() / height


@given(
    sizes,
    sizes,
    st.floats(0.3, 0.7),
    st.floats(0.3, 0.7),
    st.floats(0.06, 0.1),
    st.sampled_from(list(PILLOW)),
)
@settings(max_examples=50, deadline=None)
def test_stretch_and_restore_keep_places_and_shapes(height, width, x, y, sigma, how):
    """Linear interpolation between samples h apart is off by at most h²/8 of the second derivative, which is
    1/sigma² here; shrinking by a triangle of that width blurs by h²/12 more. h is 1/64, or a pixel where the
    image is coarser, so h / sigma < 1/3: (1/8 + 1/12) / 9 for each of two axes and two resizings.
    """
    side = 64
    assume(min(height, width) * sigma > 3)
    image = bump(height, width, x, y, sigma)
    pixels = (image * 255).round().astype(np.uint8)[..., None].repeat(3, axis=2)
    square = stretch(pixels, side, how)[..., 0].float() / 255
    restored = Processor.restore(square[None], (height, width))[0].numpy()
    assert np.abs(restored - image).max() < 0.1
    # Half a pixel of the square, the error of a wrong frame, would be 0.5 / 64.
    for found, expected in zip(centre(restored), centre(image), strict=True):
        assert abs(found - expected) < 0.1 / side


@given(sizes, sizes, st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(0.06, 0.1))
@settings(max_examples=30, deadline=None)
def test_a_smooth_map_survives_the_trip_to_the_image_and_back(height, width, x, y, sigma):
    """Up and down again; the images have at least as many pixels as the map, so nothing is skipped."""
    logits = torch.from_numpy(bump(24, 24, x, y, sigma) * 10 - 5).float()[None]
    there = Processor.restore(logits, (height, width))
    assert there.shape == (1, height, width)
    assert there.min() >= logits.min() - 1e-5 and there.max() <= logits.max() + 1e-5
    back = Processor.restore(there, (24, 24))
    # (h / sigma)² / 8 of the height of 10, for each of two axes and two resizings, with h = 1 / 24.
    assert (back - logits).abs().max() < 10 * 0.5 * (1 / 24 / sigma) ** 2 + 1e-3


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_restoring_to_the_same_size_changes_nothing(height, width, seed):
    logits = torch.randn(2, height, width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(Processor.restore(logits, (height, width)), logits)


@given(st.integers(8, 300), st.integers(8, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_large_rectangles_survive_pooling_and_restoring(height, width, data):
    """Pooled to 64 x 64 and restored, an edge moves by at most 0.09 cells: between a full, a partly covered
    (share s) and an empty cell, 0.5 is crossed (1 - s) (s - 0.5) / s beside it. Rounded to whole pixels that is
    0.18 cells at worst, on four sides of at least 16 cells; and each corner loses less than a cell of 256.
    """

    def span(length):
        first = data.draw(st.integers(0, length - -(-length // 4)))
        return first, data.draw(st.integers(first + -(-length // 4), length))

    (top, bottom), (left, right) = span(height), span(width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    restored = Processor.restore(pool_masks(mask[None], (64, 64)), (height, width))[0] > 0.5
    assert mask_iou(restored, mask) > 1 - 4 * 0.18 / 16 - 4 / 256
