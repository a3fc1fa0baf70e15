"""Single values of records that anybody may have written: taken as what they are, or refused, never bent."""

from __future__ import annotations

from typing import Any

from promptris.errors import InputError

_EXACT_FLOATS = 2**53
"""Floats from here on have lost digits."""


def whole_number(value: Any, name: str) -> int:
    """A whole number of 64 bits: an int, or a float without fraction, as tables have that went through pandas.

    Raises:
        InputError: naming the field, for anything else. Text, though of digits, is no number; nor is a bool.
    """
    if type(value) is float and value.is_integer() and abs(value) < _EXACT_FLOATS:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} is {_shown(value)}, not a whole number")
    if not -(2**63) <= value < 2**63:
        raise InputError(f"{name} is a number of more than 64 bits")
    return value


def valid_text(value: Any, name: str) -> str:
    """Text that can be written down; InputError, naming the field, for half characters and for no text."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {_shown(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid Unicode text") from None
    return value


def spoiled(record: str, error: Exception) -> InputError:
    """What to raise about a record of which a field could not be taken."""
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return InputError(f"{record} lacks or spoils a field ({reason})")


def _shown(value: Any) -> str:
    # Only small things are shown: a pickle can hold a value whose text has no end in practice.
    if isinstance(value, str):
        return repr(value[:40])
    small = value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return repr(value) if small else f"a {type(value).__name__}"
