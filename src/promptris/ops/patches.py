"""Convolutions whose windows do not overlap, as what they are: one linear layer for every patch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def embed_patches(projection: nn.Conv2d, images: Float[Tensor, "I C H W"]) -> Float[Tensor, "I h w D"]:
    """What `projection(images)` is, channels last, where its stride is its kernel and nothing is padded."""
    # Of these layers cuDNN makes slow kernels in half precision; oneDNN makes good ones.
    return embed_by_product(projection, images) if images.is_cuda else projection(images).permute(0, 2, 3, 1)


def embed_by_product(projection: nn.Conv2d, images: Float[Tensor, "I C H W"]) -> Float[Tensor, "I h w D"]:
    """The same as one product of two matrices."""
    high, wide = projection.kernel_size
    patches = images.unflatten(3, (-1, wide)).unflatten(2, (-1, high)).permute(0, 2, 4, 1, 3, 5)
    return F.linear(patches.flatten(3), projection.weight.flatten(1), projection.bias)
