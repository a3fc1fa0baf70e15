"""What weights are, as one hash, whatever file or format they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor, nn


def content_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """The sha256, as 64 hex digits, of what the weights are, whatever file they came from.

    Hashed are name, dtype, shape and bytes of every entry of the state dict, sorted by name, floats as
    float32. Tied weights count once, under the name that comes first in the state dict; buffers that
    transformers rebuilds (position ids) do not count.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    kept: dict[str, Tensor] = {}
    places = set()
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if name.endswith("position_ids") or (tensor.numel() and place in places):
            continue
        places.add(place)
        kept[name] = tensor
    digest = hashlib.sha256()
    for name in sorted(kept):
        tensor = kept[name].detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head).encode())
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
