"""A linear layer on patches equals the convolution it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from promptris.ops.patches import embed_by_product, embed_patches


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (1, 1)])
def test_equals_the_convolution(kernel, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, kernel, stride=kernel, bias=bias)
    images = torch.randn(2, 3, 5 * kernel[0], 7 * kernel[1])
    expected = convolution(images).permute(0, 2, 3, 1)
    last = images.contiguous(memory_format=torch.channels_last)  # as preprocessing leaves them
    for embed in (embed_patches, embed_by_product):
        for given in (images, last):
            torch.testing.assert_close(embed(convolution, given), expected, atol=1e-6, rtol=1e-5)
