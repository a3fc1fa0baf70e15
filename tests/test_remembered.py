"""The least recently used result goes first; threads may ask at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from promptris.remembered import Remembered


def test_the_least_recently_used_is_forgotten():
    made: list[int] = []
    remembered: Remembered[int] = Remembered(2)

    def ask(key: int) -> int:
        return remembered.get(key, lambda: made.append(key) or -key)

    assert [ask(key) for key in (1, 2, 1, 3, 1, 2)] == [-1, -2, -1, -3, -1, -2]
    assert made == [1, 2, 3, 2]
    assert len(remembered) == 2


def test_nothing_is_kept_where_nothing_may_be():
    remembered: Remembered[int] = Remembered(0)
    assert [remembered.get(1, lambda: 5), remembered.get(1, lambda: 6)] == [5, 6]
    assert len(remembered) == 0


def test_threads_get_the_right_results():
    remembered: Remembered[int] = Remembered(3)

    def ask(number: int) -> bool:
        return remembered.get(number % 7, lambda: number % 7) == number % 7

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(2000)))
    assert len(remembered) == 3
