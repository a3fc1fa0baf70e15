"""What a server allows, and how long things may take."""

from __future__ import annotations

from dataclasses import dataclass

from promptris.errors import InputError


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Attributes:
        model_name: what the served model is called.
        note: what must be said with every answer of this model.
        queue: requests that are accepted at once, waiting ones included; further ones are refused.
        together: requests that are answered in one batch at most; None decides by model and device.
        deadline: seconds from a request's arrival to its answer.
        max_bytes: of an uploaded image file.
        max_pixels: of an image; checked before it is decoded.
        max_expressions: of one request.
        max_characters: of one expression.
        images: encoded images that are kept under an id; the least recently used goes first.
        ttl: seconds that such an image is kept after its last use.
        cors: origins whose pages may call the server; none by default.
        api_key: what callers have to show; None lets everybody in.
        hosts: names that the server may be asked by; any where none is given.
    """

    model_name: str = "tiny"
    note: str | None = None
    queue: int = 64
    together: int | None = None
    deadline: float = 30.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_expressions: int = 64
    max_characters: int = 1000
    images: int = 32
    ttl: float = 600.0
    cors: tuple[str, ...] = ()
    api_key: str | None = None
    hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in (
            "queue",
            "together",
            "max_bytes",
            "max_pixels",
            "max_expressions",
            "max_characters",
            "images",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name.replace('_', '-')} must be at least 1, not {value}")
        for name in ("deadline", "ttl"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} must be a number of seconds above 0, not {value:g}")
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.strip() == self.api_key != ""
        ):
            raise InputError("the API key must be ASCII text without spaces around it, and not empty")
