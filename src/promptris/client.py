"""A client of `promptris serve`; needs no torch and no model (extra `client`).

>>> from promptris.client import Client
>>> with Client("http://127.0.0.1:8000") as client:
...     prediction = client.segment("photo.jpg", "the red circle")
...     image = client.upload("photo.jpg")
...     predictions = image.predict(["the red circle", "the star on the left"])
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptris.config import PromptName
from promptris.errors import InputError, MissingExtraError, PromptRISError
from promptris.images import ImageLike, load_image
from promptris.ops.polygons import mask_to_polygons
from promptris.ops.run_lengths import rle_to_mask
from promptris.visualize import overlay

if TYPE_CHECKING:
    import httpx

Click = tuple[float, float, int]
Box = tuple[float, float, float, float]
Record = TypeVar("Record")

_LONGEST_PAUSE = 30.0


class ServerError(PromptRISError):
    """The server does not answer as it should.

    Attributes:
        status: of its response; None when there was none.
    """

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class ServerBusyError(ServerError):
    """The server takes no more requests, also after waiting and asking again."""


class RefusedError(ServerError, InputError):
    """The server refuses the request: wrong input, a wrong key, an image or model that is not there."""


@dataclass(frozen=True)
class RemotePrediction:
    """The answer to one expression; what `promptris.Prediction` has, but for the coarse mask and supervision.

    Attributes:
        expression: the text.
        score: of the mask, in [0, 1].
        area: pixels of the mask.
        bbox: (x, y, width, height) in pixels; all 0 for an empty mask.
        point: (x, y) of the point prompt in the image's own pixels.
        rle: COCO run lengths, counts as text.
        note: what must be known about the masks of this model.
    """

    expression: str
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    point: tuple[int, int]
    rle: Mapping[str, Any]
    note: str | None = None

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """bool [H, W], the image's own size; decoded when it is first asked for."""
        return rle_to_mask(dict(self.rle))

    def to_rle(self) -> dict[str, Any]:
        """COCO run-length encoding, counts as text."""
        return dict(self.rle)

    def to_polygons(self) -> list[list[list[float]]]:
        """Regions as [outer ring, hole, ...], each ring [x0, y0, x1, y1, ...] in pixels."""
        return mask_to_polygons(self.mask)

    def overlay(self, image: ImageLike) -> Image.Image:
        """The image with the mask laid over it and the point marked."""
        return overlay(load_image(image), self.mask, point=self.point)


class Client:
    """Talks to one server; safe for several threads.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        api_key: where the server wants one.
        timeout: seconds to wait for a response.
        retries: how often a busy server (429) is asked again, after the pause it asks for (30 s at most).

    Raises:
        InputError: for a url that is none.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0, retries: int = 5) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtraError("httpx", "client") from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url!r} is no server: give its address, such as http://127.0.0.1:8000")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.url, self.retries = url.rstrip("/"), retries
        self._http: httpx.Client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """The server's status, version, model, and how many requests wait."""
        return self._ask("GET", "/v1/health")

    def models(self) -> list[dict[str, Any]]:
        """The models of the server."""
        return list(self._field(self._ask("GET", "/v1/models"), "models", list))

    @overload
    def segment(
        self,
        image: ImageLike,
        expressions: str,
        *,
        prompts: Sequence[PromptName] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> RemotePrediction: ...

    @overload
    def segment(
        self,
        image: ImageLike,
        expressions: list[str] | tuple[str, ...],
        *,
        prompts: Sequence[PromptName] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> list[RemotePrediction]: ...

    def segment(
        self,
        image: ImageLike,
        expressions: str | list[str] | tuple[str, ...],
        *,
        prompts: Sequence[PromptName] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> RemotePrediction | list[RemotePrediction]:
        """The mask of what an expression means; for a list of expressions, a list in the same order.

        Args:
            image: path, PIL image, bytes of a file, or H x W x 3 uint8 RGB array.
            expressions: one text or several.
            prompts: SAM prompts to use ("mask", "point", "text"); None means the model's own.
            points: clicks that correct the answer, (x, y, label) in the image's own pixels.
            box: (x, y, width, height) in the image's own pixels, where the referent is to be looked for.

        Raises:
            RefusedError: when something is wrong with the input or the key.
            ServerBusyError: when the server stays busy.
            ServerError: when it cannot be reached, or fails.
            InputError: when there is no such file.
        """
        content = _content(image)
        fields = _form(_guided(expressions, prompts, points, box))
        return self._predictions(expressions, data=fields, files={"image": ("image", content)})

    def upload(self, image: ImageLike) -> RemoteImage:
        """Send an image once, to ask about it many times; otherwise as `segment`."""
        answer = self._ask("POST", "/v1/images", files={"image": ("image", _content(image))})
        return RemoteImage(
            self,
            self._field(answer, "id", str),
            self._field(answer, "width", int),
            self._field(answer, "height", int),
            float(self._field(answer, "expires_in", (int, float))),
        )

    def _predictions(
        self, expressions: str | Sequence[str], **body: Any
    ) -> RemotePrediction | list[RemotePrediction]:
        answer = self._ask("POST", "/v1/segment", **body)
        try:
            predictions = [_prediction(record, answer.get("note")) for record in answer["predictions"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._strange() from error
        if len(predictions) != (1 if isinstance(expressions, str) else len(expressions)):
            raise self._strange()
        return predictions[0] if isinstance(expressions, str) else predictions

    def _ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """The response's JSON, after as many tries as it takes and is allowed."""
        import httpx

        for left in range(self.retries, -1, -1):
            try:
                response = self._http.request(method, path, **body)
            except httpx.TimeoutException:
                raise ServerError(f"{self.url} did not answer in time") from None
            except httpx.HTTPError as error:
                raise ServerError(f"{self.url} cannot be reached: {error}") from error
            if response.status_code != 429 or left == 0:
                break
            time.sleep(_pause(response.headers.get("retry-after")))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success:
            if not isinstance(answer, dict):
                raise self._strange()
            return answer
        status = response.status_code
        told = answer.get("error") if isinstance(answer, dict) else None
        sentence = told if isinstance(told, str) else f"{self.url} answered with status {status}"
        if status == 429:
            raise ServerBusyError(sentence, status)
        raise (RefusedError if 400 <= status < 500 and status != 408 else ServerError)(sentence, status)

    def _field(self, answer: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
        value = answer.get(name)
        if not isinstance(value, kind):
            raise self._strange()
        return value

    def _strange(self) -> ServerError:
        return ServerError(f"{self.url} does not answer as promptris serve does: is it one?")


@dataclass(frozen=True)
class RemoteImage:
    """An image that the server keeps; made by `Client.upload`.

    Attributes:
        client: what it was made by.
        id: of the image.
        width: in pixels.
        height: in pixels.
        expires_in: seconds that the server keeps it after its last use.
    """

    client: Client
    id: str
    width: int
    height: int
    expires_in: float

    @overload
    def predict(
        self,
        expression: str,
        *,
        prompts: Sequence[PromptName] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> RemotePrediction: ...

    @overload
    def predict(
        self,
        expression: list[str] | tuple[str, ...],
        *,
        prompts: Sequence[PromptName] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> list[RemotePrediction]: ...

    def predict(
        self,
        expression: str | list[str] | tuple[str, ...],
        *,
        prompts: Sequence[PromptName] | None = None,
        points: Sequence[Click] = (),
        box: Box | None = None,
    ) -> RemotePrediction | list[RemotePrediction]:
        """As `Client.segment`, about this image.

        Raises:
            RefusedError: also when the server has forgotten the image: upload it again.
        """
        asked = {"image_id": self.id, **_guided(expression, prompts, points, box)}
        return self.client._predictions(expression, json=asked)


def _guided(
    expressions: str | Sequence[str],
    prompts: Sequence[PromptName] | None,
    points: Sequence[Click],
    box: Box | None,
) -> dict[str, Any]:
    """The fields of a request, less those that say nothing."""
    fields: dict[str, Any] = {
        "expressions": [expressions] if isinstance(expressions, str) else list(expressions),
        "format": "rle",
    }
    if prompts is not None:
        fields["prompts"] = list(prompts)
    if points:
        fields["points"] = [[float(x), float(y), int(label)] for x, y, label in points]
    if box is not None:
        fields["box"] = [float(side) for side in box]
    return fields


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields as those of a form."""
    form = dict(fields)
    if "points" in form:
        form["points"] = [",".join(map(str, click)) for click in form["points"]]
    if "box" in form:
        form["box"] = ",".join(map(str, form["box"]))
    return form


def _content(image: ImageLike) -> bytes:
    """A file's bytes as they are; pictures in memory as PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read {str(path)[:200]!r}: {reason}") from error
    buffer = io.BytesIO()
    Image.fromarray(load_image(image)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _prediction(record: dict[str, Any], note: str | None) -> RemotePrediction:
    x, y, width, height = (int(value) for value in record["bbox"])
    column, row = (int(value) for value in record["point"])
    rle = record["segmentation"]
    return RemotePrediction(
        str(record["expression"]),
        float(record["score"]),
        int(record["area"]),
        (x, y, width, height),
        (column, row),
        {"size": list(rle["size"]), "counts": str(rle["counts"])},
        note,
    )


def _pause(retry_after: str | None) -> float:
    """Seconds to wait; a server that does not say gets one."""
    try:
        seconds = float(retry_after or "1")
    except ValueError:  # a date, which this server does not send
        seconds = 1.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)
