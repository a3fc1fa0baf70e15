"""Who may ask."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

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


class KnownHosts:
    """Lets through what was sent to one of some host names; others get 400.

    A page whose name was made to mean this machine would otherwise be taken for one of its own.

    Args:
        app: what is let through to.
        hosts: names and addresses without a port; IPv6 in brackets.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or let through."""
        if scope["type"] in ("http", "websocket"):
            host = HTTPConnection(scope).headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in self.hosts:
                shown = ", ".join(sorted(self.hosts))
                problem = Problem(
                    400, f"this server is asked as {shown} only: start it with --host or a key for others"
                )
                await problem.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)
