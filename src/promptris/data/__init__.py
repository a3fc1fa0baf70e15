"""Data: REFER-format data sets on disk, the synthetic world RefShapes, and batches drawn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptris.data.dataset import ReferDataset
    from promptris.data.readers.refer import read_refer

__all__ = ["ReferDataset", "read_refer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from promptris.data import dataset
    from promptris.data.readers import refer

    return dataset.ReferDataset if name == "ReferDataset" else refer.read_refer
