"""The sample sheet: what is drawn, where, and that the same seed draws the same."""

from __future__ import annotations

import numpy as np
import pytest

from promptris.data import read_refer
from promptris.data.refshapes import WorldOptions, write_refshapes
from promptris.data.sample_sheet import COLORS, Sample, Saying, draw_samples, sample_sheet
from promptris.errors import InputError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_refshapes(folder, {"train": 6, "val": 3}, 1, WorldOptions(size=64))
    return read_refer(folder, "refshapes")


def grey(height, width, *boxes):
    """A grey image with an expression about each box (top, bottom, left, right)."""
    sayings = []
    for number, (top, bottom, left, right) in enumerate(boxes):
        mask = np.zeros((height, width), dtype=bool)
        mask[top:bottom, left:right] = True
        sayings.append(Saying(f"box {number}", mask))
    return Sample(np.full((height, width, 3), 128, np.uint8), tuple(sayings))


def near(page, color):
    """Rows and columns of the page that have about this colour."""
    apart = np.abs(np.asarray(page).astype(int) - color).max(axis=2)
    return np.nonzero(apart < 40)


def test_samples_are_what_the_data_say(dataset):
    samples = draw_samples(dataset, "train", 4, seed=3)
    assert len(samples) == 4
    known = {}
    for referent, expression in dataset.samples("train"):
        known.setdefault(expression.text, []).append(dataset.mask(referent))
    for sample in samples:
        assert 1 <= len(sample.sayings) <= 2
        for saying in sample.sayings:
            assert any(np.array_equal(saying.mask, mask) for mask in known[saying.text])
        if len(sample.sayings) == 2:
            assert not (sample.sayings[0].mask & sample.sayings[1].mask).any()


def test_the_same_seed_draws_the_same(dataset):
    def pixels(seed):
        return np.asarray(sample_sheet(draw_samples(dataset, "train", 3, seed)))

    assert np.array_equal(pixels(1), pixels(1))
    assert pixels(1).shape != pixels(2).shape or not np.array_equal(pixels(1), pixels(2))


def test_a_split_with_fewer_images_is_shown_whole(dataset):
    samples = draw_samples(dataset, "val", 12)
    assert len(samples) == 3
    assert len({sample.image.tobytes() for sample in samples}) == 3


@pytest.mark.parametrize(
    ("split", "count", "seed", "word"),
    [("train", 0, 0, "0 images"), ("train", 401, 0, "401"), ("train", 1, -1, "seed -1"), ("x", 1, 0, "'x'")],
)
def test_wrong_wishes_are_named(dataset, split, count, seed, word):
    with pytest.raises(InputError, match=word):
        draw_samples(dataset, split, count, seed)


def test_an_empty_split_is_named(dataset):
    empty = dataset.with_rows({"val": dataset.rows["val"][:0]})
    with pytest.raises(InputError, match="'val'"):
        draw_samples(empty, "val", 1)


def test_referents_are_outlined_in_the_colours_of_their_words():
    page = sample_sheet([grey(100, 100, (10, 40, 10, 40), (60, 90, 50, 95))], tile=200)
    # The tile begins 24 pixels from the corner, at twice the size of the image.
    for color, (top, bottom, left, right) in zip(COLORS, ((10, 40, 10, 40), (60, 90, 50, 95)), strict=True):
        rows, cols = near(page, color)
        there = (rows < 24 + 200) & (cols < 24 + 200)
        assert rows[there].min() == pytest.approx(24 + 2 * top, abs=3)
        assert rows[there].max() == pytest.approx(24 + 2 * bottom, abs=3)
        assert cols[there].min() == pytest.approx(24 + 2 * left, abs=3)
        assert cols[there].max() == pytest.approx(24 + 2 * right, abs=3)
        inside = np.asarray(page)[24 + top + bottom, 24 + left + right]
        assert abs(int(inside[0]) - 128) <= 2  # not tinted
        assert (rows[~there] >= 24 + 200).any()  # the dot before the words


def test_the_page_grows_with_columns_rows_and_words():
    cell = grey(64, 64, (10, 40, 10, 40))
    one, two = sample_sheet([cell], tile=128), sample_sheet([cell, cell], tile=128)
    assert two.width - one.width == 128 + 18 and two.height == one.height
    below = sample_sheet([cell, cell], columns=1, tile=128)
    assert below.width == one.width and below.height > one.height + 128
    long = Sample(cell.image, (Saying("many words " * 40, cell.sayings[0].mask),))
    assert one.height < sample_sheet([long], tile=128).height < one.height + 80  # three lines at most
    assert sample_sheet([cell], "A title", tile=128).height > one.height


def test_wide_images_keep_their_shape():
    page = sample_sheet([grey(50, 100, (10, 40, 20, 80))], tile=200)
    rows, cols = near(page, COLORS[0])
    inside = rows < 24 + 100
    assert cols[inside].max() - cols[inside].min() == pytest.approx(120, abs=5)
    assert rows[inside].max() - rows[inside].min() == pytest.approx(60, abs=5)


def test_an_expression_that_means_nothing_is_told_so():
    def heard(text):
        sample = Sample(np.full((64, 64, 3), 128, np.uint8), (Saying(text, np.zeros((64, 64), bool)),))
        return np.asarray(sample_sheet([sample], tile=256))

    shown = heard("a dog")
    tile = shown[24 : 24 + 256, 24 : 24 + 256]
    assert (tile == 128).all()  # neither outlined nor faded
    said = Sample(np.full((64, 64, 3), 128, np.uint8), (Saying("a dog (means nothing)", np.eye(64) > 0),))
    told = np.asarray(sample_sheet([said], tile=256))
    assert np.array_equal(shown[24 + 256 :], told[24 + 256 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\x1b[2J",
        "word" * 200,
        "\u202e\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ],
)
def test_any_text_can_be_drawn(text):
    cell = grey(64, 64, (10, 40, 10, 40))
    page = sample_sheet([Sample(cell.image, (Saying(text, cell.sayings[0].mask),))], tile=100)
    assert page.width == 2 * 24 + 100
    assert (np.asarray(page)[:, -24:] == 255).all()  # no word runs into the margin


@pytest.mark.parametrize("wrong", [{"samples": []}, {"columns": 0}, {"tile": 20}])
def test_impossible_sheets_are_refused(wrong):
    with pytest.raises(InputError, match="cannot be drawn"):
        sample_sheet(**{"samples": [grey(64, 64, (10, 40, 10, 40))], **wrong})


def test_an_unreadable_font_is_named(tmp_path):
    (tmp_path / "font.ttf").write_text("none")
    with pytest.raises(InputError, match=r"font\.ttf"):
        sample_sheet([grey(64, 64, (10, 40, 10, 40))], font_path=tmp_path / "font.ttf")
