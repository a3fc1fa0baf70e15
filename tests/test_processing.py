"""Images and expressions in, tensors out, and masks back to the image's own size."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from promptris.errors import InputError
from promptris.modeling.tokenizer import build_word_tokenizer, byte_tokenizer
from promptris.processing import Processor, check_expression, load_image

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


def png(width, height, depth=8, color_type=2, rows=b"", extra=()):
    """A PNG written chunk by chunk."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    middle = b"".join(chunk(kind, data) for kind, data in extra)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + body


# ------------------------------------------------------------------------------------------- reading an image


def test_path_bytes_pil_and_array_are_the_same_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    (tmp_path / "ä b.png").write_bytes(encoded(image))
    for given in (pixels, image, encoded(image), tmp_path / "ä b.png", str(tmp_path / "ä b.png")):
        loaded = load_image(given)
        assert loaded.dtype == np.uint8
        assert np.array_equal(loaded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_common_formats_keep_size_and_sides(kind):
    image = solid(RED, (16, 8))
    image.paste((0, 0, 255), (8, 0, 16, 8))
    loaded = load_image(encoded(image, kind)).astype(int)
    assert loaded.shape == (8, 16, 3)
    assert abs(loaded[4, 2] - [255, 0, 0]).max() < 12 and abs(loaded[4, 13] - [0, 0, 255]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_bytes", [True, False])
def test_exif_orientation_is_applied(orientation, as_bytes):
    """A camera stores a 3 x 2 picture turned or mirrored and says so; it must come back upright."""
    upright = np.array([[[10], [50], [90]], [[130], [170], [210]]], np.uint8).repeat(3, axis=2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(load_image(given if as_bytes else Image.open(io.BytesIO(given))), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    color = {"RGBA": (0, 100, 200, 0), "LA": (0, 0), "PA": (0, 0)}[mode]
    assert (load_image(Image.new(mode, (3, 2), color)) == 255).all()


def test_half_transparency_mixes_with_white():
    assert load_image(Image.new("RGBA", (2, 2), (255, 0, 0, 51)))[0, 0].tolist() == [255, 204, 204]


def test_a_transparent_colour_of_a_png_is_white():
    row = bytes([0, 255, 0, 0, 0, 0, 255])  # filter type, red, blue
    given = png(2, 1, rows=row, extra=[(b"tRNS", struct.pack(">HHH", 255, 0, 0))])
    assert load_image(given)[0].tolist() == [WHITE, [0, 0, 255]]


def test_palette_grey_bilevel_and_cmyk():
    palette = solid([0, 200, 0]).quantize(4)
    assert palette.mode == "P" and load_image(palette)[0, 0].tolist() == [0, 200, 0]
    assert load_image(Image.new("L", (2, 2), 77))[1, 1].tolist() == [77] * 3
    assert load_image(Image.new("1", (2, 2), 1))[0, 0].tolist() == WHITE
    assert load_image(Image.new("CMYK", (2, 2), (0, 255, 255, 0)))[0, 0].tolist() == RED


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert load_image(encoded(image, transparency=0))[0].tolist() == [WHITE, [0, 0, 255]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257 * 50, 257 * 200, 65535]], np.uint16)
    expected = [0, 50, 200, 255]
    for given in (
        Image.fromarray(values),
        encoded(Image.fromarray(values)),
        Image.fromarray(values.astype(np.int32)),
    ):
        loaded = load_image(given)
        assert loaded[0, :, 0].tolist() == expected and (loaded == loaded[..., :1]).all()


def test_float_images_are_scaled():
    assert load_image(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = load_image(Image.fromarray(np.array([[np.nan, -3.0, 1.0]], np.float32)))
    assert odd[0, :, 0].tolist() == [0, 0, 255]


def test_arrays_with_negative_strides_are_taken_as_they_look(processor):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = RED
    mirrored = processor.images([pixels[:, ::-1]]).clip_pixels
    assert torch.equal(mirrored, processor.images([np.ascontiguousarray(pixels[:, ::-1])]).clip_pixels)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(InputError, match=r"H x W x 3 uint8 RGB, not"):
        load_image(array)


@pytest.mark.parametrize("given", [None, 3, [[1, 2]], torch.zeros(3, 4, 4)], ids=lambda g: type(g).__name__)
def test_things_that_are_no_image_are_refused(given):
    with pytest.raises(InputError, match=type(given).__name__):
        load_image(given)


def test_unreadable_files_are_named(tmp_path):
    whole = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG"
    )
    cases = {"empty.jpg": b"", "text.png": b"not an image", "cut.jpg": whole[: len(whole) // 2]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_image(tmp_path / name)
    with pytest.raises(InputError, match=r"there is no image at .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_image("a\0b.png")
    with pytest.raises(InputError, match="cannot read"):
        load_image("x" * 5000)
    with pytest.raises(InputError, match="bytes"):
        load_image(whole[:50])


@pytest.mark.parametrize(("width", "height"), [(20_000, 5_001), (20_000, 20_000), (200_000, 200_000)])
def test_huge_images_are_refused_before_they_are_decoded(width, height):
    with pytest.raises(InputError, match=r"100,000,000.*smaller"):
        load_image(png(width, height))


# ------------------------------------------------------------------------------------------ tensors of images


def test_sizes_and_types(processor):
    batch = processor.images([solid(RED, (30, 7)), solid(WHITE, (5, 90))])
    assert batch.clip_pixels.shape == (2, 3, 24, 24) and batch.clip_pixels.dtype == torch.float32
    assert batch.sam_pixels.shape == (2, 3, 32, 32) and batch.sam_pixels.dtype == torch.float32
    alone = processor.images([solid(RED, (30, 7))], with_sam=False)
    assert alone.sam_pixels is None
    assert torch.equal(alone.clip_pixels, batch.clip_pixels[:1])


def test_normalisation_of_a_constant_image_by_hand(processor):
    batch = processor.images([solid([51, 102, 204], (13, 9))])  # 0.2, 0.4, 0.8
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
    batch = processor.images([solid(RED, (1, 1))])
    assert (batch.clip_pixels[0].flatten(1).std(dim=1) < 1e-6).all()
    assert batch.sam_pixels.shape == (1, 3, 32, 32)


def test_left_stays_left_and_top_stays_top(processor):
    """Red on the left, black at the bottom, in both towers' tensors: nothing is flipped or turned."""
    image = solid(WHITE, (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    image.paste((0, 0, 0), (0, 15, 40, 20))
    batch = processor.images([image])
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
    for pixels in (processor.images([image]).clip_pixels[0, 0], processor.images([image]).sam_pixels[0, 0]):
        dark = (pixels[0] < 0).nonzero()[:, 0].tolist()
        side = len(pixels)
        assert dark == [*range(side // 8), *range(side - side // 8, side)]


def test_shrinking_is_antialiased(processor):
    """Black and white noise, about 100 pixels to one: averages are grey, single samples would not be."""
    noise = np.random.default_rng(0).integers(0, 2, (240, 320, 1)).repeat(3, axis=2) * 255
    batch = processor.images([noise.astype(np.uint8)])
    for pixels in (batch.clip_pixels, batch.sam_pixels):
        assert pixels.std(dim=(2, 3)).max() < 0.5  # about 1.9 without averaging


def test_order_of_images_is_kept(processor):
    batch = processor.images([solid(RED), solid([0, 0, 255]), solid(WHITE)])
    assert [int(p[0, 0, 0] > 0) for p in batch.clip_pixels] == [1, 0, 1]
    assert [int(p[2, 0, 0] > 0) for p in batch.sam_pixels] == [0, 1, 1]


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
