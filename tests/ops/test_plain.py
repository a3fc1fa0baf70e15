"""Plain paths give the same numbers, by operations that any runtime knows."""

from __future__ import annotations

import threading

import pytest
import torch

from promptris.modeling.relative_attention import attend_with_relative_positions
from promptris.ops.onednn import fits_onednn, has_onednn, inference
from promptris.ops.plain import plain_paths, plain_wanted


def test_they_last_as_long_as_the_block_and_in_one_thread():
    seen = []
    assert not plain_wanted()
    with plain_paths():
        with plain_paths():
            pass
        assert plain_wanted()
        other = threading.Thread(target=lambda: seen.append(plain_wanted()))
        other.start()
        other.join()
    assert not plain_wanted()
    assert seen == [False]
    with pytest.raises(KeyError), plain_paths():
        raise KeyError
    assert not plain_wanted()


def test_no_product_is_onednns():
    x = torch.ones(2, 2)
    assert fits_onednn(x) == has_onednn()
    with plain_paths():
        assert not fits_onednn(x)


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("window", [3, 4])
def test_several_images_in_one_go(make_sam, rel_pos, window):
    """The grid of 8 x 8 is filled up for windows of 3."""
    from promptris.modeling.sam_adapter import SamAdapter

    sam = make_sam(use_rel_pos=rel_pos)
    layer = next(layer for layer in sam.vision_encoder.layers if layer.window_size)
    layer.window_size = window
    adapter = SamAdapter(sam)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with inference():
        usual = adapter.encode_image(pixels)
        with plain_paths():
            plain = adapter.encode_image(pixels)
    torch.testing.assert_close(plain, usual, rtol=1e-4, atol=1e-4)
    # Sizes of tables are interpolated where the window is not the one they were made for.
    torch.testing.assert_close(usual, sam.vision_encoder(pixels).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_few_queries_at_a_time(monkeypatch):
    from promptris.modeling import relative_attention

    q, k, v = torch.randn(3, 4, 20, 8, generator=torch.Generator().manual_seed(0))
    rel_h, rel_w = torch.randn(4, 20, 5), torch.randn(4, 20, 4)
    usual = attend_with_relative_positions(q, k, v, rel_h, rel_w)
    monkeypatch.setattr(relative_attention, "PLAIN_ROWS", 7)
    with plain_paths():
        plain = attend_with_relative_positions(q, k, v, rel_h, rel_w)
    torch.testing.assert_close(plain, usual, rtol=1e-5, atol=1e-5)


def test_a_whole_answer(make_model):
    from promptris.structures import ExpressionBatch, ImageBatch

    model = make_model()
    draw = torch.Generator().manual_seed(0)
    images = ImageBatch(torch.randn(2, 3, 48, 48, generator=draw), torch.randn(2, 3, 64, 64, generator=draw))
    expressions = ExpressionBatch(
        torch.randint(500, (3, 6), generator=draw),
        torch.arange(6) < torch.tensor([[6], [3], [2]]),
        torch.tensor([0, 1, 1]),
    )
    with inference():
        usual = model(model.encode_image(images), expressions)
    with torch.no_grad(), plain_paths():
        plain = model(model.encode_image(images), expressions)
    torch.testing.assert_close(plain.mask_logits, usual.mask_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.coarse_logits, usual.coarse_logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain.point_index, usual.point_index)
