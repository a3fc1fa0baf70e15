"""What goes wrong, as HTTP statuses and one sentence each: {"error": "..."}."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from promptris.errors import PromptRISError
from promptris.images import NotAnImageError, TooManyPixelsError

UNEXPECTED = "something unexpected went wrong on the server; its log tells what"


class Problem(Exception):  # noqa: N818
    """A request that is not answered.

    Args:
        status: of the response.
        sentence: for whoever asked.
        headers: of the response.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers

    def response(self) -> JSONResponse:
        """The response that tells it."""
        return JSONResponse({"error": self.sentence}, self.status, self.headers)


def problem_of(error: PromptRISError) -> Problem:
    """The package's own errors: what is too large, what is no image, and all else that is wrong with the input."""
    if isinstance(error, TooManyPixelsError):
        return Problem(413, str(error))
    if isinstance(error, NotAnImageError):
        return Problem(415, str(error))
    return Problem(422, str(error))


def too_large(what: str, limit: int) -> Problem:
    """For uploads of more than `limit` bytes."""
    return Problem(413, f"{what} has more than the {limit:,} bytes that are accepted: make the image smaller")


def add_problem_handlers(app: FastAPI) -> None:
    """Every error becomes a sentence; what nobody expected is logged and tells nothing of the inside."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return error.response()

    async def own(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PromptRISError)
        return problem_of(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        sentence = _sentence(request, error)
        return Problem(error.status_code, sentence, dict(error.headers or {})).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        return Problem(422, "the request is not as /openapi.json describes it").response()

    async def gone(request: Request, error: Exception) -> JSONResponse:
        return Problem(400, "the request ended before its body did").response()

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return Problem(500, UNEXPECTED).response()

    app.add_exception_handler(Problem, told)
    app.add_exception_handler(PromptRISError, own)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)


def _sentence(request: Request, error: HTTPException) -> str:
    path = request.scope["path"][:80]
    if error.status_code == 404:
        return f"there is nothing at {path}: /docs lists what there is"
    if error.status_code == 405:
        return f"{path} does not take {request.method[:20]}: /docs tells what it takes"
    if error.detail == HTTPStatus(error.status_code).phrase:
        return f"the request was refused: {error.detail}"
    return f"the request cannot be read: {error.detail}"
