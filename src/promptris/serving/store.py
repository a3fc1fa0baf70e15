"""Images that were set once, to be asked about many times."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from promptris.serving.batching import EncodedImage


class ImageStore:
    """Encoded images by id: the least recently used go first, and all after a time without use.

    For one event loop, not for several threads.

    Args:
        count: how many are kept.
        ttl: seconds that one is kept after its last use.
        clock: seconds that only grow.
    """

    def __init__(self, count: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.count, self.ttl = count, ttl
        self._clock = clock
        self._images: OrderedDict[str, tuple[EncodedImage, float]] = OrderedDict()

    def add(self, image: EncodedImage) -> str:
        """Keep an image; returns its id, which cannot be guessed."""
        identity = secrets.token_urlsafe(16)
        self._images[identity] = (image, self._clock() + self.ttl)
        self._forget_expired()
        while len(self._images) > self.count:
            self._images.popitem(last=False)
        return identity

    def get(self, identity: str) -> EncodedImage | None:
        """The image, its time begun anew; None when there is none (any more)."""
        self._forget_expired()
        if identity not in self._images:
            return None
        image, _ = self._images.pop(identity)
        self._images[identity] = (image, self._clock() + self.ttl)
        return image

    def _forget_expired(self) -> None:
        # The order of use is the order of expiry.
        while self._images and next(iter(self._images.values()))[1] <= self._clock():
            self._images.popitem(last=False)

    def __len__(self) -> int:
        self._forget_expired()
        return len(self._images)
