"""`promptris serve`: REST under /v1, and the web page, in one process."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import warnings
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from promptris.builtin_models import TINY_NOTE
from promptris.errors import InputError
from promptris.interfaces.arguments import Clip, Device, Dtype, Engine, Model, Sam, Threshold
from promptris.interfaces.models import ModelChoice
from promptris.interfaces.options import check_threshold, require_extra
from promptris.interfaces.terminal import say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from promptris.predictor import Predictor
    from promptris.serving.settings import ServerSettings

KEY_VARIABLE = "PROMPTRIS_API_KEY"
_SECONDS_TO_FINISH = 10
_SECONDS_KEPT_OPEN = 75
"""For a connection without a request: longer than clients keep theirs, or one may ask just when it is closed."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names of this machine for itself."""


def serve_command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    model: Model = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Build the size named by --model with random weights."),
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threshold: Threshold = 0.5,
    clip: Clip = None,
    sam: Sam = None,
    engine: Engine = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model on a CPU.  [default: torch's own]")
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests at once; further ones get status 429.")] = 64,
    batch: Annotated[
        int | None,
        typer.Option(help="Requests answered together at most.  [default: 16; 1 for a large model on a CPU]"),
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds for a request, waiting included.")] = 30.0,
    max_bytes: Annotated[int, typer.Option(help="Of an uploaded image.")] = 20_000_000,
    max_pixels: Annotated[
        int, typer.Option(help="Of an uploaded image, checked before it is decoded.")
    ] = 50_000_000,
    images: Annotated[int, typer.Option(help="Encoded images to keep for POST /v1/images.")] = 32,
    ttl: Annotated[float, typer.Option(help="Seconds to keep one after its last use.")] = 600.0,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may call the server, such as https://example.org; repeatable."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help=f"What callers have to show; better in {KEY_VARIABLE}, which other users cannot see."
        ),
    ] = None,
    no_web: Annotated[bool, typer.Option("--no-web", help="REST only, without the page at /.")] = False,
) -> int:
    """Serve a model: web page at /, REST under /v1, documentation at /docs.

    Ctrl-C or SIGTERM ends it after the requests in work.
    """
    require_extra("serve")
    from promptris.serving.settings import ServerSettings

    choice = ModelChoice(model, random_weights, device, dtype, check_threshold(threshold), clip, sam, engine)
    key = api_key or os.environ.get(KEY_VARIABLE) or None
    settings = ServerSettings(
        model_name=choice.shown_name,
        note=_note(choice),
        queue=queue,
        together=batch,
        deadline=deadline,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        images=images,
        ttl=ttl,
        cors=tuple(cors or ()),
        api_key=key,
        hosts=LOOPBACK if key is None and _is_loopback(host) else frozenset(),
    )
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, not {threads}")
    # Before the model is loaded: what cannot be listened on is told at once.
    with listen(host, port) as listener:
        return _serve(listener, choice, settings, threads, with_page=not no_web)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: when the port is taken, or there is no such address.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port: give a number from 1 to 65535, or 0 for a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} on {host} is in use: stop what uses it, or choose another with --port"
            ) from None
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def _serve(
    listener: socket.socket,
    choice: ModelChoice,
    settings: ServerSettings,
    threads: int | None,
    with_page: bool,
) -> int:
    import uvicorn

    signal.signal(signal.SIGTERM, _end_at_once)
    # oneDNN keeps what it has prepared for every shape of a batch; a thousand such things are hundreds of megabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    # Told in the response, and kept by Python for every text otherwise.
    warnings.filterwarnings("ignore", message="expression .* tokens; the model reads")
    predictor = choice.load()

    from promptris.serving.app import create_app

    app = create_app(predictor, settings)
    if with_page:
        app = _with_page(app, predictor, settings)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if settings.api_key is None and not _is_loopback(host):
        say(f"note: without an API key, whoever reaches {shown} may use this server; set {KEY_VARIABLE}")
    say(f"serving on http://{shown}:{port}, documentation at http://{shown}:{port}/docs; Ctrl-C ends it")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_SECONDS_KEPT_OPEN,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
    )
    # uvicorn ends in order at this signal, and then lets it go on to whoever had it before.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _with_page(app: FastAPI, predictor: Predictor, settings: ServerSettings) -> FastAPI:
    """The application with the web page at /."""
    if settings.api_key is not None:
        say("note: the web page cannot show an API key, so it is left out; REST is served")
        return app
    from promptris.interfaces.web import mount_page

    return mount_page(app, predictor, settings.note)


def _note(choice: ModelChoice) -> str | None:
    """What is said with every answer."""
    return TINY_NOTE if choice.built_in else choice.note


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # While torch is imported an exception would end in C++ and abort; there is nothing to bring in order yet.
    os._exit(0)
