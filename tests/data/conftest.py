"""What the data tests share."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import pytest


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """The pure-Python pickler with Python 2's opcodes for str, whose bytes are latin1."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_python2_str(self, text: str) -> None:
        raw = text.encode("latin1")
        if self.proto == 0:
            self.write(b"S" + _python2_repr(raw) + b"\n")
        elif len(raw) < 256:
            self.write(b"U" + struct.pack("<B", len(raw)) + raw)
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = save_python2_str


def _python2_repr(raw: bytes) -> bytes:
    return repr(raw)[1:].encode("ascii")


@pytest.fixture
def dumps_python2() -> Callable[[Any, int], bytes]:
    """Pickles a value the way Python 2 did, in protocol 0, 1 or 2."""

    def dumps(value: Any, protocol: int) -> bytes:
        buffer = io.BytesIO()
        _Python2Pickler(buffer, protocol).dump(value)
        return buffer.getvalue()

    return dumps
