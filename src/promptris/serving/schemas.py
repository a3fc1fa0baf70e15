"""What requests and responses are made of; the OpenAPI document is written from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from promptris.config import PromptName

Format = Literal["rle", "polygon", "png"]
_NUMBERS = r"^[0-9]+(\.[0-9]+)?(,[0-9]+(\.[0-9]+)?){%d}$"
Number = Annotated[float, Field(allow_inf_nan=False)]


class SegmentRequest(BaseModel):
    """Expressions about one image: `image` or `image_id`, not both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: Annotated[
        str | None,
        Field(
            description="An image file (JPEG, PNG, WebP ...) in base64.",
            json_schema_extra={"contentEncoding": "base64"},
        ),
    ] = None
    image_id: Annotated[str | None, Field(description="Of an image from POST /v1/images.")] = None
    expressions: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]],
        Field(description="What to segment, one text each.", min_length=1),
    ]
    format: Annotated[Format, Field(description="Of the segmentations.")] = "rle"
    prompts: Annotated[
        list[PromptName] | None,
        Field(description="SAM prompts to use; the model's own by default.", min_length=1),
    ] = None
    points: Annotated[
        list[tuple[Number, Number, Literal[0, 1]]] | None,
        Field(
            description="Clicks that correct the answers: x, y in pixels, 1 on the referent or 0 beside it.",
            max_length=64,
        ),
    ] = None
    box: Annotated[
        tuple[Number, Number, Number, Number] | None,
        Field(
            description="x, y, width, height in pixels of the image: where the referent is to be looked for."
        ),
    ] = None
    model: Annotated[str | None, Field(description="From GET /v1/models; the served one by default.")] = None


class SegmentForm(BaseModel):
    """The same as a form: the image as a file."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[
        str | None, Field(description="An image file.", json_schema_extra={"format": "binary"})
    ] = None
    image_id: str | None = None
    expressions: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]],
        Field(description="Repeated, one text each.", min_length=1),
    ]
    format: Format = "rle"
    prompts: Annotated[list[PromptName] | None, Field(description="Repeated.")] = None
    points: Annotated[
        list[Annotated[str, StringConstraints(pattern=_NUMBERS % 2)]] | None,
        Field(description="X,Y,LABEL each, repeated."),
    ] = None
    box: Annotated[
        str | None, StringConstraints(pattern=_NUMBERS % 3), Field(description="X,Y,WIDTH,HEIGHT.")
    ] = None
    model: str | None = None


class ImageRequest(BaseModel):
    """An image to keep."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: Annotated[
        str,
        Field(
            description="An image file (JPEG, PNG, WebP ...) in base64.",
            json_schema_extra={"contentEncoding": "base64"},
        ),
    ]


class ImageForm(BaseModel):
    """The same as a form."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, Field(description="An image file.", json_schema_extra={"format": "binary"})]


class RunLengths(BaseModel):
    """COCO's compressed run lengths; size is [height, width]."""

    size: tuple[int, int]
    counts: str


class SegmentedExpression(BaseModel):
    """The answer to one expression."""

    expression: str
    score: Annotated[float, Field(description="Of the mask, from 0 to 1.", ge=0, le=1)]
    area: Annotated[int, Field(description="Pixels of the mask.")]
    bbox: Annotated[tuple[int, int, int, int], Field(description="x, y, width, height; 0 for an empty mask.")]
    point: Annotated[tuple[int, int], Field(description="x, y of the model's point prompt.")]
    segmentation: Annotated[
        RunLengths | list[list[float]] | str,
        Field(
            description="rle: run lengths; polygon: outer rings [x0, y0, ...]; png: a 1-bit PNG in base64."
        ),
    ]
    regions: Annotated[
        list[list[list[float]]] | None,
        Field(description="With format=polygon: [outer ring, hole, ...] of every region."),
    ] = None


class SegmentResponse(BaseModel):
    """Answers in the order of the expressions."""

    predictions: list[SegmentedExpression]
    note: Annotated[str | None, Field(description="What must be known about these masks.")] = None


class ImageResponse(BaseModel):
    """An image that is kept."""

    id: str
    width: int
    height: int
    expires_in: Annotated[float, Field(description="Seconds after its last use.")]
    note: Annotated[str | None, Field(description="What must be known about this model's masks.")] = None


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str
    model: str
    waiting: Annotated[int, Field(description="Requests that wait for the model.")]


class ServedModel(BaseModel):
    """A model that answers."""

    name: str
    device: str
    dtype: str
    with_sam: Annotated[bool, Field(description="Whether SAM refines the masks; clicks and boxes need it.")]
    prompts: Annotated[list[PromptName], Field(description="SAM prompts that are used by default.")]
    note: Annotated[str | None, Field(description="What must be known about its masks.")] = None


class Models(BaseModel):
    """The models of this server."""

    models: list[ServedModel]


class Error(BaseModel):
    """Why there is no answer."""

    error: str
