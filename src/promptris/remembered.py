"""The latest few results of something that costs time, by what they were made from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """Least recently used results are forgotten first. Safe for several threads.

    Args:
        count: how many are kept; 0 keeps none.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._results: OrderedDict[Hashable, Result] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """What is remembered of a key; made now when there is nothing.

        Threads that ask for the same new key at the same time may both make it.
        """
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = make()
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self.count:
                self._results.popitem(last=False)
        return result

    def __len__(self) -> int:
        return len(self._results)
