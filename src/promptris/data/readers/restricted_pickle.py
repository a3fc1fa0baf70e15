"""Reading pickles that hold plain data, and nothing that could run.

A pickle may name any function of the interpreter and have it called. Here every name is refused except the
few that plain values need, and those are answered by stand-ins of our own. Values come back as plain Python:
a numpy scalar as its number or string, a numpy array as nested lists.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from promptris.errors import InputError

_NUMPY_KINDS = "biufSU"
_SIMPLE = (str, bytes, int, float, type(None))  # a bool is an int


class _Maker:
    """A callable that a pickle may use but not alter."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle may not alter the functions it calls")


class _DType:
    """What a pickle says of a numpy dtype: name, then byte order as its state."""

    __slots__ = ("_name", "_order")

    def __init__(self, name: Any) -> None:
        self._name = name
        self._order = "="

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def real(self) -> np.dtype[Any]:
        name = self._name if isinstance(self._name, str) else self._name.decode("ascii")
        dtype = np.dtype(name)
        if dtype.kind not in _NUMPY_KINDS:
            raise pickle.UnpicklingError(f"numpy values of type {name!r} are not plain numbers or text")
        if self._order == ">":
            return dtype.newbyteorder(">")
        return dtype.newbyteorder("<") if self._order == "<" else dtype


class _Array(list[Any]):
    """A numpy array as nested lists, filled when its state arrives."""

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        real = dtype.real()
        self[:] = _nested_lists(data, real, shape, fortran)


def _as_bytes(data: Any) -> bytes:
    # Python 2 wrote bytes as its str, which a latin1 reading turns into text of the same code points.
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("a numpy value without its bytes")
    return bytes(data)


def _nested_lists(data: Any, dtype: np.dtype[Any], shape: Any, fortran: Any) -> Any:
    array = np.frombuffer(_as_bytes(data), dtype).reshape(shape, order="F" if fortran else "C")
    # An array without values may claim any number of empty rows.
    if array.size == 0 and math.prod(array.shape[: array.shape.index(0)]) > 1:
        raise pickle.UnpicklingError(f"a numpy array of shape {array.shape} holds nothing")
    return array.tolist()


def _make_dtype(name: Any, *_: Any) -> _DType:
    return _DType(name)


def _make_scalar(dtype: _DType, data: Any) -> Any:
    return np.frombuffer(_as_bytes(data), dtype=dtype.real())[0].item()


def _make_array(*_: Any) -> _Array:
    return _Array()


def _make_array_from_buffer(data: Any, dtype: _DType, shape: Any, order: str) -> Any:
    return _nested_lists(data, dtype.real(), shape, order == "F")


def _make_bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    # How protocol 2 stores bytes; any other codec would be looked up, that is imported, by name.
    if not isinstance(content, str | bytes) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in another encoding than latin1 are not plain data")
    return _as_bytes(content)


def _simple(keys: Any) -> Any:
    """Keys of a dict or members of a set, if they are simple values.

    Others must not even be hashed: nested tuples, each twice in the next, take time without end.
    """
    if not all(isinstance(key, _SIMPLE) for key in keys):
        raise pickle.UnpicklingError("a dict key or a member of a set is neither text nor a number")
    return keys


def _allowed_names() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {("_codecs", "encode"): _Maker(_make_bytes)}
    for module in ("builtins", "__builtin__"):
        allowed[module, "set"] = _Maker(lambda *args: set(*map(_simple, args)))
        allowed[module, "frozenset"] = _Maker(lambda *args: frozenset(*map(_simple, args)))
        allowed[module, "bytes"] = _Maker(_make_bytes)
        allowed[module, "bytearray"] = _Maker(lambda *args: bytearray(_make_bytes(*args)))
    allowed["numpy", "dtype"] = _Maker(_make_dtype)
    allowed["numpy", "ndarray"] = None
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[module, "scalar"] = _Maker(_make_scalar)
        allowed[module, "_reconstruct"] = _Maker(_make_array)
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        allowed[module, "_frombuffer"] = _Maker(_make_array_from_buffer)
    return allowed


_ALLOWED = _allowed_names()


class _RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler written in Python.

    The one in C makes tables and buffers as large as the pickle claims to need, so that a few bytes can fill
    the memory; this one takes three times as long and never holds more than was read.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise _RefusedError(f"{module_name}.{global_name}") from None

    def load_bytearray8(self) -> None:
        # The inherited one makes the array before it knows that there are so many bytes.
        unpickler: Any = self
        (size,) = struct.unpack("<Q", unpickler.read(8))
        unpickler.append(bytearray(unpickler.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _looking_at_keys(opcode: bytes, first: int, step: int) -> None:
    """Have an opcode that fills a dict or set look at its keys on the stack, before they are hashed."""
    inherited = _RestrictedUnpickler.dispatch[opcode[0]]

    def load(unpickler: Any) -> None:
        _simple(unpickler.stack[first::step])
        inherited(unpickler)

    _RestrictedUnpickler.dispatch[opcode[0]] = load


# With a mark, the stack holds what came since then: key, value, key ... or members. SETITEM has none.
_looking_at_keys(pickle.DICT, 0, 2)
_looking_at_keys(pickle.SETITEMS, 0, 2)
_looking_at_keys(pickle.SETITEM, -2, 2)
_looking_at_keys(pickle.ADDITEMS, 0, 1)
_looking_at_keys(pickle.FROZENSET, 0, 1)


class _RefusedError(Exception):
    """The name a pickle asked for and did not get."""


def load_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of plain containers, text, bytes, numbers and numpy values.

    Text that Python 2 wrote as bytes is read as ASCII, else as latin1. InputError, before anything of the
    pickle runs, if it names a function or class; also if the file is missing, unreadable or no pickle.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        try:
            return _RestrictedUnpickler(io.BytesIO(data)).load()
        except UnicodeDecodeError:
            return _RestrictedUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _RefusedError as refused:
        raise InputError(
            f"{file} asks to run {refused}, which plain data never needs, and was not loaded"
        ) from None
    except Exception as error:
        # Damaged pickles fail in many ways: as any of EOF, key, index, type, value or memory errors.
        raise InputError(
            f"{file} is not a readable pickle of plain data ({type(error).__name__}: {error})"
        ) from error
