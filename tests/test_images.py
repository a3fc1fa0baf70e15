"""Files, bytes and pictures in memory become RGB pixels, or one sentence that names the file."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from promptris import images
from promptris.errors import InputError
from promptris.images import load_image
from promptris.processing import stretch

RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.fixture(params=["simplejpeg", "Pillow alone"])
def decoder(request, monkeypatch):
    """With simplejpeg, and as where it is not installed."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(images, "simplejpeg", None)
    return request.param


@pytest.fixture
def refuses_pillow(monkeypatch):
    """Only simplejpeg may decode."""
    pytest.importorskip("simplejpeg")

    def refuse(image, name):
        raise AssertionError(f"{name} went to Pillow")

    monkeypatch.setattr(images, "_from_pillow", refuse)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(color, size=(6, 4)):
    return Image.new("RGB", size, tuple(color))


def photograph(height, width, seed=0):
    """Soft colours at several scales, a little noise, a disc and a box with hard edges."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0) + rng.normal(0, 3, (height, width, 1))
    for cells, strength in ((6, 50), (40, 20), (200, 8)):
        for channel in range(3):
            small = rng.normal(0, strength, (cells, cells)).astype(np.float32)
            resized = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(resized)
    y, x = np.mgrid[:height, :width]
    pixels[(x - width / 3) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2] = [240, 30, 20]
    pixels[height // 8 : height // 4, width // 2 : 3 * width // 4] = 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pillow_pixels(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def png(width, height, depth=8, color_type=2, rows=b"", extra=()):
    """A PNG written chunk by chunk."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    middle = b"".join(chunk(kind, data) for kind, data in extra)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + body


def jpeg_that_claims(width, height):
    """A small JPEG whose frame header tells another size."""
    data = bytearray(encoded(solid(RED, (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


# ------------------------------------------------------------------------------------------------- what it reads


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


@pytest.mark.parametrize("given", [None, 3, [[1, 2]], torch.device("cpu")], ids=lambda g: type(g).__name__)
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


# -------------------------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("size", [(480, 640), (97, 61), (16, 8), (7, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpegs_are_pillows_pixels(refuses_pillow, size, progressive, subsampling):
    for quality in (30, 90):
        options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
        data = encoded(photograph(*size), "JPEG", **options)
        assert np.array_equal(load_image(data), pillow_pixels(data))


def test_grey_and_rgb_coded_jpegs_and_those_with_something_behind_are_pillows_pixels(refuses_pillow):
    image = photograph(60, 83)
    grey, plain = encoded(image.convert("L"), "JPEG"), encoded(image, "JPEG")
    several = encoded(image, "MPO", save_all=True, append_images=[solid(RED)])
    assert Image.open(io.BytesIO(several)).format == "MPO"
    for data in (grey, plain + b"rubbish", plain + grey, several, encoded(image, "JPEG", keep_rgb=True)):
        loaded = load_image(data)
        assert np.array_equal(loaded, pillow_pixels(data))
        assert loaded.flags.c_contiguous and loaded.flags.writeable


def test_cmyk_jpegs_are_pillows_pixels(decoder):
    data = encoded(photograph(40, 50).convert("CMYK"), "JPEG")
    assert np.array_equal(load_image(data), pillow_pixels(data))


def test_what_libjpeg_only_complains_about_is_left_to_pillow(decoder):
    """Two stray bytes after the tables: every viewer skips them, simplejpeg does not."""
    data = encoded(photograph(40, 50), "JPEG")
    scan = data.index(b"\xff\xda")
    assert np.array_equal(load_image(data[:scan] + b"\0\0" + data[scan:]), pillow_pixels(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_orientation_is_pillows_in_every_format(decoder, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(24, 33), kind, exif=exif)
    loaded = load_image(data)
    assert loaded.shape[:2] == ((24, 33) if orientation < 5 else (33, 24))
    assert np.array_equal(loaded, pillow_pixels(data))
    assert loaded.flags.c_contiguous


@pytest.mark.parametrize(
    "damage", [b"\xff" * 20, b"II*\0\xff\xff\xff\xff", b"", b"MM\0*\0\0\0\x08\xff\xff"], ids=repr
)
def test_damaged_exif_does_not_hide_the_picture(decoder, damage):
    image = photograph(24, 33)
    data = encoded(image, "JPEG", exif=b"Exif\0\0" + damage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_image(data), pillow_pixels(encoded(image, "JPEG")))


def test_without_simplejpeg_everything_still_loads(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # makes its import fail
    spec = importlib.util.spec_from_file_location("images_without_simplejpeg", images.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.simplejpeg is None
    data = encoded(photograph(30, 40), "JPEG")
    assert np.array_equal(module.load_image(data), pillow_pixels(data))


# ------------------------------------------------------------------------------------------------ reduced decode


@pytest.mark.parametrize(
    ("size", "at_least", "expected"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((480, 640), 240, (240, 320)),
        ((640, 480), 120, (160, 120)),
        ((640, 480), 60, (80, 60)),
        ((640, 480), 1, (80, 60)),  # an eighth is the least
        ((644, 480), 60, (161, 120)),  # 644 is no multiple of 8
        ((641, 480), 60, (641, 480)),
        ((640, 481), 60, (640, 481)),
    ],
    ids=str,
)
def test_reduced_sizes_are_even_fractions_that_are_still_large_enough(decoder, size, at_least, expected):
    data = encoded(solid(RED, size), "JPEG")
    assert load_image(data, at_least).shape == (expected[1], expected[0], 3)


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_decoders_reduce_to_the_same_pixels(monkeypatch, progressive, factor, mode):
    pytest.importorskip("simplejpeg")
    data = encoded(photograph(160, 240).convert(mode), "JPEG", progressive=progressive)
    fast = load_image(data, 160 // factor)
    monkeypatch.setattr(images, "simplejpeg", None)
    slow = load_image(data, 160 // factor)
    assert fast.shape == (160 // factor, 240 // factor, 3)
    assert np.array_equal(fast, slow)


def test_reduced_photographs_are_turned_upright(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photograph(160, 240), "JPEG", exif=exif)
    reduced = load_image(data, 80)
    assert reduced.shape == (120, 80, 3)
    small = np.asarray(Image.fromarray(pillow_pixels(data)).resize((80, 120), Image.Resampling.BOX))
    assert np.abs(reduced.astype(int) - small).mean() < 2


def test_other_inputs_are_never_reduced():
    image = photograph(160, 240)
    png_file, jpeg_file = encoded(image), encoded(image, "JPEG")
    for given in (png_file, image, np.asarray(image), Image.open(io.BytesIO(jpeg_file))):
        assert load_image(given, 10).shape == (160, 240, 3)


@pytest.mark.parametrize(("side", "how"), [(480, "bicubic"), (1024, "bilinear")])
def test_a_reduced_photograph_shrinks_to_almost_the_same_square(side, how):
    """Measured: mean 0.5 to 0.7 and at most 60 levels of 255, at the hard edges."""
    data = encoded(photograph(2048, 3000), "JPEG", quality=90)
    reduced = load_image(data, side)
    assert reduced.shape[:2] == ((512, 750) if side == 480 else (1024, 1500))
    difference = (stretch(reduced, side, how).int() - stretch(load_image(data), side, how).int()).abs()
    assert difference.float().mean() < 1
    assert difference.max() < 80


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_truncated_jpeg_is_never_half_a_picture(decoder, tmp_path, progressive, mode):
    whole = encoded(photograph(60, 80).convert(mode), "JPEG", progressive=progressive)
    path = tmp_path / "cut.jpg"
    for share in (0.01, 0.2, 0.4, 0.6, 0.8, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        for at_least in (None, 30):
            with pytest.raises(InputError, match=r"cut\.jpg is (damaged or cut off|not an image)"):
                load_image(path, at_least)


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_properly_but_too_early_is_refused(tmp_path, progressive, mode):
    """Cut off and closed with an end marker, as some tools repair files: Pillow alone cannot tell."""
    pytest.importorskip("simplejpeg")
    whole = encoded(photograph(60, 80).convert(mode), "JPEG", progressive=progressive)
    path = tmp_path / "repaired.jpg"
    for share in (0.5, 0.7, 0.9):
        path.write_bytes(whole[: int(share * len(whole))] + b"\xff\xd9")
        with pytest.raises(InputError, match=r"repaired\.jpg is damaged or cut off"):
            load_image(path)


@pytest.mark.parametrize("name", ["empty.jpg", "empty.png"])
def test_a_zero_byte_file_is_one_sentence(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        load_image(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} is not an image that can be read (JPEG, PNG, WebP ...)"
    with pytest.raises(InputError, match=r"^the given bytes is not an image"):
        load_image(b"")


@pytest.mark.parametrize("make", [png, jpeg_that_claims], ids=["PNG", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [(20_000, 5_001), (20_000, 20_000), (50_000, 50_000)])
def test_huge_images_are_refused_by_their_header(decoder, tmp_path, make, width, height):
    path = tmp_path / "huge"
    path.write_bytes(make(width, height))
    tracemalloc.start()
    try:
        for at_least in (None, 480):
            with pytest.raises(InputError, match=r"huge has .*100,000,000.*smaller") as caught:
                load_image(path, at_least)
            assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_header_that_lies_about_the_size_is_damage():
    pytest.importorskip("simplejpeg")
    with pytest.raises(InputError, match="damaged or cut off: its picture data ends too early"):
        load_image(jpeg_that_claims(640, 480))


def test_a_damaged_picture_that_was_opened_by_the_caller_is_an_input_error():
    whole = encoded(photograph(60, 80), "JPEG")
    with pytest.raises(InputError, match="the image is damaged or cut off"):
        load_image(Image.open(io.BytesIO(whole[: len(whole) // 2])))


def test_whatever_a_reader_raises_is_an_input_error():
    """An AVIF whose only image item is gone makes Pillow raise a RuntimeError."""
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    data = bytearray(encoded(photograph(40, 56), "AVIF"))
    start = data.index(b"mdat") + 4
    data[start:] = b"\xff" * (len(data) - start)
    with pytest.raises(InputError, match="damaged"):
        load_image(bytes(data))


def test_torch_tensors_are_images_too():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rows = torch.from_numpy(pixels)
    np.testing.assert_array_equal(load_image(rows), pixels)
    np.testing.assert_array_equal(load_image(rows.permute(2, 0, 1)), pixels)
    with pytest.raises(InputError, match="uint8 RGB, not float32"):
        load_image(rows.float())


def test_no_program_is_started_by_an_image(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: started.append(a))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(content)
    for image in (content, tmp_path / "x.png"):
        with pytest.raises(InputError, match="not an image"):
            load_image(image)
    assert not started
