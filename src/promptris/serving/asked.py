"""What a request asks for, from JSON or from a form."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from promptris.errors import InputError
from promptris.processing import check_expression
from promptris.serving.problems import Problem
from promptris.serving.schemas import ImageRequest, SegmentRequest
from promptris.serving.settings import ServerSettings
from promptris.serving.uploads import from_base64

_LISTS = ("expressions", "prompts", "points")
_MOST_PARTS = 256
JSON, FORM = "application/json", "multipart/form-data"


class Body:
    """The body of a request, read but not looked at yet.

    Args:
        json: of a JSON request.
        form: fields of a form; lists where they may be repeated.
        file: the image of a form.
    """

    def __init__(
        self, json: bytes | None = None, form: dict[str, Any] | None = None, file: bytes | None = None
    ) -> None:
        self.json, self.form, self.file = json, form, file

    def check(self, schema: type[BaseModel]) -> tuple[Any, bytes | None]:
        """The request as `schema` (strict), and its image's bytes.

        Raises:
            Problem: 400 for what is no JSON, 422 for JSON of another kind.
        """
        try:
            if self.json is not None:
                request: Any = schema.model_validate_json(self.json)
                text = request.image
                return request, None if text is None else from_base64(text)
            fields = dict(self.form or {})
            if self.file is not None and "image" in schema.model_fields:
                fields["image"] = ""  # stands for the file, which is not text
            return schema.model_validate(fields, strict=False), self.file
        except ValidationError as error:
            raise _problem(error) from None


async def read_body(request: Request) -> Body:
    """The body of a request.

    Raises:
        Problem: 415 for a body that is neither JSON nor a form with a file, 422 for fields that do not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        return Body(json=await request.body())
    if kind != FORM:
        named = f"not {kind[:60]}" if kind else "and say so in the header Content-Type"
        raise Problem(415, f"send {JSON} or {FORM}, {named}")
    async with request.form(max_files=1, max_fields=_MOST_PARTS) as form:
        file = form.get("image")
        if file is not None and not isinstance(file, UploadFile):
            raise Problem(422, "image is not a file: send it as one (curl -F image=@photo.jpg)")
        return Body(form=_fields(form), file=None if file is None else await file.read())


def check_segment(body: Body, settings: ServerSettings) -> tuple[SegmentRequest, bytes | None]:
    """A request for masks, and the bytes of its image if it brings one.

    Raises:
        InputError: for expressions that are empty, too long or too many, or without one image.
        Problem: see `Body.check`; 404 for a model that is not here.
    """
    request, image = body.check(SegmentRequest)
    if request.model not in (None, settings.model_name):
        raise Problem(
            404, f"there is no model {request.model[:60]!r} here: GET /v1/models lists what there is"
        )
    if len(request.expressions) > settings.max_expressions:
        raise InputError(
            f"{len(request.expressions)} expressions are more than the {settings.max_expressions} of one request: "
            "send several requests"
        )
    for number, expression in enumerate(request.expressions, start=1):
        if len(expression) > settings.max_characters:
            raise InputError(
                f"expression {number} has {len(expression):,} characters, more than the "
                f"{settings.max_characters:,} that are accepted: say it shorter"
            )
        check_expression(expression)
    if (image is None) == (request.image_id is None):
        raise InputError("give one image: image with a file, or image_id of one that was sent to /v1/images")
    return request, image


def check_image(body: Body) -> bytes:
    """The bytes of an image to keep.

    Raises:
        Problem: see `Body.check`.
    """
    _, image = body.check(ImageRequest)
    if image is None:
        raise InputError("image is missing: send a file")
    return image


def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in form:
        if name == "image":
            continue
        values = form.getlist(name)
        if not all(isinstance(value, str) for value in values):
            raise Problem(422, f"{name[:60]!r} is a file: only image may be one")
        if name not in _LISTS and len(values) > 1:
            raise Problem(422, f"{name[:60]!r} is given {len(values)} times: once is enough")
        fields[name] = values if name in _LISTS else values[0]
    if "points" in fields:
        fields["points"] = [_numbers(text, "points", "X,Y,LABEL", 3) for text in fields["points"]]
        fields["points"] = [(x, y, int(label) if label in (0, 1) else -1) for x, y, label in fields["points"]]
    if "box" in fields:
        fields["box"] = _numbers(fields["box"], "box", "X,Y,WIDTH,HEIGHT", 4)
    return fields


def _numbers(text: str, name: str, form: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise Problem(422, f"{name}: {text[:60]!r} is not {form}, {count} numbers with commas between")
    return numbers


def _problem(error: ValidationError) -> Problem:
    """The first thing that is wrong, as a sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{str(part)[:60]}"
    where = where.lstrip(".")
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["type"] == "missing":
        return Problem(422, f"{where} is missing")
    if first["type"] == "extra_forbidden":
        return Problem(422, f"there is no field {where!r}: /docs lists what there is")
    if first["type"] == "too_short":
        return Problem(422, f"{where} is empty: give at least one, or leave it out if it may be")
    if where.startswith("expressions[") and first["type"] == "string_too_short":
        return Problem(422, f"{where} is empty: describe what to segment, for example 'the red circle'")
    message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    return Problem(422, f"{where}: {message}" if where else message)
