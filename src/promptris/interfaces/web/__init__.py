"""The web page: a picture and sentences in, masks out, and how they came about."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

    from promptris.predictor import Predictor


def build_page(predictor: Predictor, note: str | None = None) -> gradio.Blocks:
    """The page as Gradio blocks; `mount_page` puts it on a server, with its looks.

    Args:
        predictor: what answers, shared by all visitors; nothing of a visitor is kept in it but recent images.
        note: what must be said about its masks. `builtin_models.TINY_NOTE` is left out of the built-in scenes, which
            that model knows.

    Raises:
        MissingExtraError: without the extra "serve".
    """
    from promptris.interfaces.options import require_extra

    require_extra("serve")
    from promptris.interfaces.web.page import build

    return build(predictor, note)


def mount_page(app: FastAPI, predictor: Predictor, note: str | None = None) -> FastAPI:
    """Put the page at "/" of a server; routes that `app` has by now go before it.

    Args:
        app: changed in place.
        predictor: see `build_page`.
        note: see `build_page`.

    Returns:
        the same app.

    Raises:
        MissingExtraError: without the extra "serve".
    """
    from promptris.interfaces.options import require_extra

    require_extra("serve")
    from promptris.interfaces.web.page import mount

    return mount(app, predictor, note)
