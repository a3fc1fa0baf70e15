"""Single values: taken as what they are, or refused."""

from __future__ import annotations

import pytest

from promptris.data.readers.fields import valid_text, whole_number
from promptris.errors import InputError


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), (-1, -1), (7.0, 7), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (2.0**52, 2**52)],
)
def test_whole_numbers(value, expected):
    found = whole_number(value, "ref_id")
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10.9, "ref_id is 10.9, not a whole number"),
        (float("inf"), "ref_id is inf, not a whole number"),
        (float("nan"), "ref_id is nan, not a whole number"),
        (2.0**53, "ref_id is 9007199254740992.0, not a whole number"),  # 2**53 + 1 is the same float
        (True, "ref_id is True, not a whole number"),
        (None, "ref_id is None, not a whole number"),
        ("10", "ref_id is '10', not a whole number"),
        ([[7]], "ref_id is a list, not a whole number"),
        (2**63, "ref_id is a number of more than 64 bits"),
        pytest.param(-(10**5000), "ref_id is a number of more than 64 bits", id="huge"),
    ],
)
def test_everything_else_is_refused(value, message):
    with pytest.raises(InputError) as caught:
        whole_number(value, "ref_id")
    assert str(caught.value) == message


def test_text():
    assert valid_text("größe ☕", "split") == "größe ☕"
    with pytest.raises(InputError, match="split is not valid Unicode text"):
        valid_text("the \ud800 man", "split")
    with pytest.raises(InputError, match=r"split is 3\.5, not text"):
        valid_text(3.5, "split")
