"""Uploads: bounded while they are read, and before they are decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading

from starlette.requests import Request
from starlette.types import Message

from promptris.errors import InputError
from promptris.images import decode_image
from promptris.predictor import Predictor
from promptris.serving.batching import PreparedImage
from promptris.serving.problems import too_large

DECODERS = 2
"""Images that are decoded at once: each may take hundreds of megabytes for a moment."""
_decoding = threading.BoundedSemaphore(DECODERS)
_BESIDE_THE_IMAGE = 2**20  # for expressions, and what holds a body together


def limited(request: Request, max_bytes: int) -> Request:
    """The request with a body that may hold an image of so many bytes, in base64, and little more.

    Raises:
        Problem: 413 when it says that it is larger, or, while it is read, when it turns out to be.
    """
    limit = max_bytes * 4 // 3 + _BESIDE_THE_IMAGE
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise too_large("the request", max_bytes)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large("the request", max_bytes)
        return message

    return Request(request.scope, receive)


def from_base64(text: str) -> bytes:
    """The bytes of a file in base64, with or without "data:image/...;base64," before it.

    Raises:
        InputError: when it is something else.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        raise InputError(
            'the image is not base64: send the file itself, in base64 as "image" of JSON or as a file of a form'
        ) from None


def prepare_upload(data: bytes, predictor: Predictor, max_bytes: int, max_pixels: int) -> PreparedImage:
    """An uploaded file, decoded and made ready for the model.

    Raises:
        Problem: 413 for too many bytes.
        TooManyPixelsError: for too many pixels, which the file's header tells.
        NotAnImageError: for anything else than an image.
        InputError: for an empty, damaged or truncated one.
    """
    if not data:
        raise InputError("the uploaded file is empty: send a JPEG, PNG or WebP file")
    if len(data) > max_bytes:
        raise too_large("the uploaded file", max_bytes)
    # A request that is given up leaves its thread at work, which counts until it is done.
    with _decoding:
        pixels = decode_image(data, "the uploaded file", max_pixels)
        height, width = pixels.shape[:2]
        return PreparedImage(predictor.prepare([pixels]), (height, width), hashlib.blake2b(data).digest())
