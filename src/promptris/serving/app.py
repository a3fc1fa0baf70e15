"""The REST application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

import promptris
from promptris.predictor import Predictor
from promptris.serving.access import KnownHosts, key_guard
from promptris.serving.docs_page import docs_page
from promptris.serving.metrics import CountRequests
from promptris.serving.problems import add_problem_handlers
from promptris.serving.routes import errors, guarded, public
from promptris.serving.service import Service
from promptris.serving.settings import ServerSettings

_DESCRIPTION = "Segment what an expression refers to: an image and sentences in, masks out."


def create_app(predictor: Predictor, settings: ServerSettings | None = None) -> FastAPI:
    """The endpoints under /v1, with /metrics, /docs and /openapi.json.

    Args:
        predictor: what answers.
        settings: limits; the defaults when not given.
    """
    settings = settings or ServerSettings()
    service = Service(predictor, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.batcher.close)

    app = FastAPI(
        title="promptris",
        version=promptris.__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    add_problem_handlers(app)
    app.include_router(public)
    if settings.api_key is None:
        app.include_router(guarded)
    else:
        app.include_router(
            guarded, dependencies=[Depends(key_guard(settings.api_key))], responses=errors(401)
        )

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url).rstrip("/")))

    # Whatever is mounted at / later (the web page) shall not answer for /v1.
    app.router.routes.append(Mount("/v1", _NothingElse(app)))
    app.add_middleware(CountRequests, metrics=service.metrics, paths=frozenset(app.openapi()["paths"]))
    if settings.hosts:
        app.add_middleware(KnownHosts, hosts=settings.hosts)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Retry-After"],
        )
    return app


class _NothingElse:
    """Answers for paths under /v1 that are not there (404), or not for this method (405)."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise HTTPException(404)
        # The document knows all of them; a router's own list is no public matter.
        allowed = [method.upper() for method in self.app.openapi()["paths"].get(scope["path"], {})]
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)
