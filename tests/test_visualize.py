"""Pictures: sizes, colours at known pixels, and texts that must not break a panel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from promptris.errors import InputError
from promptris.visualize import (
    COARSE_COLOR,
    MASK_COLOR,
    POINT_COLOR,
    TRUTH_COLOR,
    comparison,
    comparison_row,
    mask_image,
    overlay,
    panel,
)

GREY = (100, 100, 100)


def scene(width: int = 60, height: int = 40) -> tuple[Image.Image, np.ndarray]:
    mask = np.zeros((height, width), dtype=bool)
    mask[10:30, 20:50] = True
    return Image.new("RGB", (width, height), GREY), mask


def test_mask_image_is_one_bit() -> None:
    picture = mask_image(torch.tensor([[True, False, True], [False, False, True]]))
    assert (picture.mode, picture.size) == ("1", (3, 2))
    assert np.asarray(picture).tolist() == [[True, False, True], [False, False, True]]


def test_overlay_tints_the_mask_and_nothing_else() -> None:
    image, mask = scene()
    result = np.asarray(overlay(image, mask, color=(200, 0, 50), alpha=0.5, outline=False)).astype(int)
    # Half way from 100 to 200, to 0 and to 50; the paste works on 256 levels, hence the 1.
    assert abs(result[mask] - [150, 50, 75]).max() <= 1
    assert (result[~mask] == 100).all()
    assert image.getpixel((30, 20)) == GREY  # the caller's picture is untouched


def test_outline_follows_the_edge() -> None:
    image, mask = scene()
    result = np.asarray(overlay(image, mask, color=(200, 0, 0), alpha=0.0)).astype(int)
    changed = (result != 100).any(axis=-1)
    ys, xs = np.nonzero(changed)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((18, 51, 8, 31), abs=1)
    assert not changed[15:25, 25:45].any()
    assert (
        result[20, 20, 0] > 150 and result[20, 20, 1] < 50
    )  # the line itself, at the middle of the left edge


def test_fade_pales_the_surroundings() -> None:
    image, mask = scene()
    result = np.asarray(overlay(image, mask, alpha=0.0, outline=False, fade=0.4)).astype(int)
    assert (result[mask] == 100).all()
    assert abs(result[~mask] - (100 + 0.4 * 155)).max() <= 1


def test_point_is_drawn_where_it_is_even_at_the_border() -> None:
    image, mask = scene(200, 100)
    result = np.asarray(overlay(image, mask, alpha=0.0, outline=False, point=(150.5, 40.5))).astype(int)
    ys, xs = np.nonzero((result != 100).any(axis=-1))
    assert (xs.mean() + 0.5, ys.mean() + 0.5) == pytest.approx((150.5, 40.5), abs=0.2)
    assert result[40, 150, 0] - result[40, 150, 2] > 100  # a warm dot in the middle
    cut = np.asarray(overlay(image, mask, alpha=0.0, outline=False, point=(0.0, 0.0)))
    assert (cut[0, 0] != 100).any() and (cut[50:, 100:] == 100).all()


def test_overlay_takes_arrays_and_other_modes() -> None:
    image, mask = scene()
    expected = np.asarray(overlay(image, mask))
    np.testing.assert_array_equal(overlay(np.asarray(image), torch.from_numpy(mask)), expected)
    np.testing.assert_array_equal(overlay(image.convert("RGBA"), mask), expected)
    np.testing.assert_array_equal(overlay(image.convert("L"), mask), expected)


def test_overlay_of_empty_full_and_single_pixel_masks() -> None:
    image, mask = scene()
    assert (np.asarray(overlay(image, np.zeros_like(mask))) == 100).all()
    full = np.asarray(overlay(image, np.ones_like(mask), color=(0, 0, 0)))
    assert abs(full.astype(int) - 50).max() <= 1  # no line along the image's own border
    speck = np.zeros_like(mask)
    speck[5, 5] = True
    assert tuple(overlay(image, speck, alpha=1.0, outline=False).getpixel((5, 5))) == MASK_COLOR  # type: ignore[arg-type]


def test_overlay_refuses_what_does_not_fit() -> None:
    image, mask = scene()
    with pytest.raises(InputError, match="40x60 but its image is 60x40"):
        overlay(image, mask.T)
    with pytest.raises(InputError, match="alpha"):
        overlay(image, mask, alpha=1.5)
    with pytest.raises(InputError, match="uint8"):
        overlay(np.zeros((40, 60, 3)), mask)  # type: ignore[arg-type]


def test_comparison_row_has_a_tile_for_every_part() -> None:
    image, mask = scene()
    row = comparison_row(image, mask, (35.0, 20.0), mask, mask, iou=0.876)
    captions = [caption for caption, _ in row]
    assert captions == ["image", "coarse mask, point", "final mask, IoU 0.88", "ground truth"]
    assert all(tile.size == (256, 171) for _, tile in row)  # 60 x 40 enlarged, the longer side 256
    # The left edge of the mask, x = 20 of 60, lies at 85 of 256 in each tile's own colour.
    for (_, tile), color in zip(row[1:], (COARSE_COLOR, MASK_COLOR, TRUTH_COLOR), strict=True):
        assert np.abs(np.subtract(tile.getpixel((85, 86)), color)).max() < 40  # type: ignore[arg-type]
    # The point (35, 20) of 60 x 40 lies at (149, 85) of 256 x 171.
    assert np.abs(np.subtract(row[1][1].getpixel((149, 85)), POINT_COLOR)).max() < 10  # type: ignore[arg-type]
    assert [caption for caption, _ in comparison_row(image, mask, None, None)] == ["image", "coarse mask"]


def test_comparison_is_one_figure() -> None:
    image, mask = scene()
    with_truth = comparison(image, mask, (35.0, 20.0), mask, mask, "the box on the right", 0.9)
    without = comparison(image, mask, (35.0, 20.0), mask, None, "the box on the right")
    assert with_truth.width > 4 * 256 and with_truth.height > 171
    assert with_truth.width - without.width == 256 + 256 // 20  # one tile and one gap less
    with pytest.raises(InputError, match="resize the mask"):
        comparison(image, mask[:20], None, mask, None, "x")


def dark_columns(picture: Image.Image) -> np.ndarray:
    return np.flatnonzero((np.asarray(picture.convert("L")) < 128).any(axis=0))


def test_long_titles_wrap_inside_the_panel() -> None:
    tile = [("a tile", Image.new("RGB", (64, 64), (255, 255, 255)))]
    short = panel([tile], title_rows=["one line"])
    long = panel([tile], title_rows=["many words " * 200])
    unbroken = panel([tile], title_rows=["x" * 2000])
    assert short.width == long.width == unbroken.width
    assert short.height < long.height == unbroken.height < 2 * short.height  # three lines, then an ellipsis
    for picture in (long, unbroken):
        columns = dark_columns(picture)
        assert columns.min() >= 256 // 12 and columns.max() < picture.width - 256 // 12


@pytest.mark.parametrize(
    "text",
    ["", "   ", "左边的船", "القارب على اليمين", "кот 🐈 नमस्ते", "a\nb\tc\x00d", "broken \ud800 surrogate"],
)
def test_any_text_can_be_a_title(text: str) -> None:
    image, mask = scene()
    picture = comparison(image, mask, None, mask, None, text)
    assert picture.width > 3 * 256


def test_rows_of_different_length_and_shape() -> None:
    tall, wide = Image.new("RGB", (30, 300), GREY), Image.new("RGB", (300, 30), GREY)
    picture = panel([[("tall", tall), ("wide", wide)], [("wide", wide)]], tile_size=128)
    # Both columns are as wide as their widest picture; margins 128 // 12, gap 128 // 20.
    assert picture.width == 2 * 10 + 2 * 128 + 6
    assert picture.height > 128 + 13


def test_panel_refuses_wrong_use(tmp_path: Path) -> None:
    tile = [("a", Image.new("RGB", (8, 8)))]
    with pytest.raises(InputError, match="no pictures"):
        panel([])
    with pytest.raises(InputError, match="titles"):
        panel([tile], title_rows=["a", "b"])
    with pytest.raises(InputError, match="tile size"):
        panel([tile], tile_size=10)
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"font\.ttf"):
        panel([tile], font_path=tmp_path / "font.ttf")
