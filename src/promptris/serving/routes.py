"""The endpoints under /v1, and /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

import promptris
from promptris.predictor import Guidance
from promptris.serving.answers import describe, join_notes, reading_note
from promptris.serving.asked import FORM, JSON, check_image, check_segment, read_body
from promptris.serving.batching import Answer, Question
from promptris.serving.metrics import CONTENT_TYPE
from promptris.serving.problems import Problem
from promptris.serving.schemas import (
    Error,
    Health,
    ImageForm,
    ImageRequest,
    ImageResponse,
    Models,
    SegmentForm,
    SegmentRequest,
    SegmentResponse,
    ServedModel,
)
from promptris.serving.service import Service
from promptris.serving.uploads import limited

public = APIRouter()
"""Open to everybody: whether the server is alive."""
guarded = APIRouter()
"""Behind the API key, where there is one."""

_SENTENCES = {
    400: "The body cannot be read.",
    401: "The API key is missing or wrong.",
    404: "There is no such image or model.",
    408: "The request was not complete before the deadline.",
    413: "The upload has too many bytes, pixels or masks.",
    415: "The body is neither JSON nor a form, or the file is no image.",
    422: "Something in the request does not fit.",
    429: "The server is busy.",
    500: "Something unexpected.",
    504: "There was no answer before the deadline.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of these statuses for the OpenAPI document."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": _SENTENCES[status]} for status in statuses
    }
    if 429 in described:
        described[429]["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    return described


def _body(json: type[BaseModel], form: type[BaseModel]) -> dict[str, Any]:
    content = {
        JSON: {"schema": json.model_json_schema()},
        # A form has no null: what is not there is left out.
        FORM: {"schema": _without_null(form.model_json_schema())},
    }
    return {"requestBody": {"required": True, "content": content}}


def _without_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_null(value) for key, value in schema.items() if (key, value) != ("default", None)}
    options = [option for option in kept.pop("anyOf", []) if option != {"type": "null"}]
    return {**kept, **(options[0] if len(options) == 1 else {"anyOf": options} if options else {})}


@public.get("/v1/health", response_model=Health, summary="Whether the server is alive", tags=["server"])
async def health(request: Request) -> Health:
    """Answers at once, also while the model is busy; needs no API key."""
    service = _service(request)
    return Health(
        version=promptris.__version__, model=service.settings.model_name, waiting=service.batcher.waiting
    )


@guarded.get(
    "/v1/models",
    response_model=Models,
    response_model_exclude_none=True,
    summary="What answers here",
    tags=["server"],
)
async def models(request: Request) -> Models:
    """The one model that is served: name, device, floating-point type, and what must be known about its masks."""
    service = _service(request)
    predictor, settings = service.predictor, service.settings
    served = ServedModel(
        name=settings.model_name,
        device=str(predictor.device),
        dtype=str(next(predictor.model.parameters()).dtype).removeprefix("torch."),
        with_sam=predictor.with_sam,
        prompts=list(predictor.model.config.sam_prompts.enabled) if predictor.with_sam else [],
        note=settings.note,
    )
    return Models(models=[served])


@guarded.post(
    "/v1/images",
    summary="Send an image once, to ask about it many times",
    tags=["segmentation"],
    response_model=ImageResponse,
    responses=errors(400, 408, 413, 415, 422, 429, 500, 504),
    openapi_extra=_body(ImageRequest, ImageForm),
)
async def images(request: Request) -> Response:
    """Encodes the image and keeps it for a while after its last use; the least recently used go first."""
    service = _service(request)
    deadline = service.deadline()
    with service.admission.place():
        with _within(deadline.left, deadline.upload_passed()):
            body = await read_body(limited(request, service.settings.max_bytes))
        with _within(deadline.left, deadline.passed()):
            data = await service.in_thread(check_image, body)
            # What waits for the model does not hold its upload.
            del body
            question = Question(await service.prepare(data))
            del data
            answer = await service.ask(question, deadline)
    height, width = answer.image.size
    kept = ImageResponse(
        id=service.store.add(answer.image),
        width=width,
        height=height,
        expires_in=service.settings.ttl,
        note=service.settings.note,
    )
    return _json(kept)


@guarded.post(
    "/v1/segment",
    summary="Segment what expressions refer to",
    tags=["segmentation"],
    response_model=SegmentResponse,
    responses=errors(400, 404, 408, 413, 415, 422, 429, 500, 504),
    openapi_extra=_body(SegmentRequest, SegmentForm),
)
async def segment(request: Request) -> Response:
    """One mask per expression, at the image's own size.

    The image comes with the request (base64 in JSON, or as a file of a form) or by its id from /v1/images. Clicks
    and a box correct the answers.
    """
    service = _service(request)
    deadline = service.deadline()
    with service.admission.place():
        with _within(deadline.left, deadline.upload_passed()):
            body = await read_body(limited(request, service.settings.max_bytes))
        with _within(deadline.left, deadline.passed()):
            asked, data = await service.in_thread(check_segment, body, service.settings)
            del body
            asked = asked.model_copy(update={"image": None})
            image = await service.prepare(data) if data is not None else service.kept(asked.image_id or "")
            del data
            prompts = None if asked.prompts is None else tuple(asked.prompts)
            guidance = Guidance(prompts, tuple(asked.points or ()), asked.box)
            answer = await service.ask(Question(image, tuple(asked.expressions), guidance), deadline)
            return await service.in_thread(_respond, service, asked, answer)


@guarded.get(
    "/metrics",
    summary="Counters for Prometheus",
    tags=["server"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, seconds, batches, images kept, memory and processor time of the process."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _respond(service: Service, asked: SegmentRequest, answer: Answer) -> Response:
    service.metrics.expressions.inc(len(answer.predictions))
    response = SegmentResponse(
        predictions=[describe(prediction, asked.format) for prediction in answer.predictions],
        note=join_notes(service.settings.note, reading_note(service.predictor.processor, asked.expressions)),
    )
    return _json(response)


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(exclude_none=True), media_type=JSON)


@contextmanager
def _within(seconds: float, problem: Problem) -> Iterator[None]:
    """What is not done in time ends with the problem."""
    with anyio.move_on_after(max(0.0, seconds)) as scope:
        yield
    if scope.cancelled_caught:
        raise problem
