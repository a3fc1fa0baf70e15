"""Images that are kept: how many, and how long."""

from __future__ import annotations

import torch

from promptris.serving.batching import EncodedImage
from promptris.serving.store import ImageStore
from promptris.structures import ImageFeatures


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def image(number):
    return EncodedImage(ImageFeatures(torch.zeros(1, number, 2)), (number, number))


def test_ids_are_different_and_long():
    store = ImageStore(100, 10)
    ids = {store.add(image(1)) for _ in range(50)}
    assert len(ids) == 50 and all(len(identity) >= 20 for identity in ids)


def test_time_counts_from_the_last_use():
    clock = Clock()
    store = ImageStore(4, 10, clock)
    first, second = store.add(image(1)), store.add(image(2))
    clock.now = 9
    assert store.get(first).size == (1, 1)
    clock.now = 10
    assert store.get(second) is None and len(store) == 1
    clock.now = 18.9
    assert store.get(first) is not None
    clock.now = 29
    assert store.get(first) is None and len(store) == 0


def test_the_least_recently_used_goes_first():
    store = ImageStore(2, 10, Clock())
    first, second = store.add(image(1)), store.add(image(2))
    store.get(first)
    third = store.add(image(3))
    assert [store.get(identity) is not None for identity in (first, second, third)] == [True, False, True]


def test_what_has_expired_makes_room_first():
    clock = Clock()
    store = ImageStore(2, 10, clock)
    store.add(image(1))
    clock.now = 5
    kept = store.add(image(2))
    clock.now = 11
    store.add(image(3))
    assert store.get(kept) is not None


def test_an_unknown_id():
    assert ImageStore(2, 10).get("../../etc/passwd") is None
