"""How many requests are in the house at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from promptris.serving.problems import Problem


class Admission:
    """Counts requests from before their body is read until they are answered, so that memory stays bounded.

    For one event loop, not for several threads.

    Args:
        most: requests at once.
        retry_after: whole seconds after which a place may be free.
    """

    def __init__(self, most: int, retry_after: Callable[[], int]) -> None:
        self.most, self.present = most, 0
        self._retry_after = retry_after

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request.

        Raises:
            Problem: 429 when all are taken.
        """
        if self.present >= self.most:
            raise self.full()
        self.present += 1
        try:
            yield
        finally:
            self.present -= 1

    def full(self) -> Problem:
        """What is told to those who have to come again."""
        seconds = self._retry_after()
        return Problem(
            429,
            f"the server is busy with {self.most} requests, the most it takes at once: try again in {seconds} s",
            {"Retry-After": str(seconds)},
        )
