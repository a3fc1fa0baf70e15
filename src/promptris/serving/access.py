"""Who may ask."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from promptris.serving.problems import Problem

_BEARER = HTTPBearer(auto_error=False, description="The server's API key.")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The server's API key.")


def key_guard(api_key: str) -> Callable[..., Coroutine[Any, Any, None]]:
    """A dependency that lets in who shows the key, as "Authorization: Bearer KEY" or "X-API-Key: KEY"."""
    wanted = api_key.encode()

    async def guard(
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
        header: Annotated[str | None, Depends(_HEADER)],
    ) -> None:
        given = bearer.credentials if bearer is not None else header
        if given is None:
            sentence = "an API key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
        # Takes as long for a key that is nearly right as for any other.
        elif hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted):
            return
        else:
            sentence = "the API key is not right"
        raise Problem(401, sentence, {"WWW-Authenticate": "Bearer"})

    return guard
