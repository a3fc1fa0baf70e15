"""Data: REFER-format data sets on disk, the synthetic world RefShapes, and batches drawn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptris.data.refer import ReferDataset, read_refer

__all__ = ["ReferDataset", "read_refer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from promptris.data import refer

        return getattr(refer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
