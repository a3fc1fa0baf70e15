"""The page itself: what lies where, and which function answers what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from promptris.config import PROMPT_NAMES
from promptris.interfaces.web import markup
from promptris.interfaces.web.answers import OUTPUTS, Answers
from promptris.interfaces.web.scenes import built_in_scenes
from promptris.interfaces.web.session import Session
from promptris.predictor import Predictor

MAX_UPLOAD = "64mb"
"""Larger files are refused while they arrive."""
_WAITING = 64
_SESSIONS = 128
_SESSION_SECONDS = 2 * 60 * 60
_FOLDER = Path(__file__).parent


def build(predictor: Predictor, note: str | None) -> gr.Blocks:
    """See `promptris.interfaces.web.build_page`."""
    offered = built_in_scenes()
    handlers = Answers(predictor, note, offered)
    # Uploads are Gradio's files; those older than an hour are deleted hourly.
    page = gr.Blocks(title="promptris", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600))
    page.state_session_capacity = _SESSIONS
    with page:
        # State is deleted when it is not used, so that what closed pages had open does not stay.
        parts: dict[str, Any] = {"session": gr.State(Session(), time_to_live=_SESSION_SECONDS)}
        gr.HTML(
            "<header><h1>promptris</h1><p>A picture and a sentence in, the mask of the one thing the sentence means "
            "out.</p></header>"
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=300, elem_id="controls"):
                # No file types here: what is no picture gets the package's own sentence. stage.js names them to the
                # browser when the button is pressed, so that a phone offers its photographs.
                upload = gr.UploadButton("Open a picture", elem_id="open-picture")
                scenes: Any = gr.HTML(markup.scenes(offered), js_on_load=_BUTTONS, elem_id="scenes")
                text = gr.Textbox(
                    label="What to segment",
                    info="One expression per line. Enter segments, Shift+Enter begins a line.",
                    placeholder="the red circle\nthe star on the left",
                    lines=3,
                    max_lines=8,
                    elem_id="expressions",
                )
                run = gr.Button("Segment", variant="primary", elem_id="run")
                parts["alert"] = gr.HTML(elem_id="alert")
                parts["status"] = gr.HTML(markup.status(""), elem_id="status")
                prompts = gr.CheckboxGroup(
                    list(PROMPT_NAMES),
                    value=list(predictor.model.config.sam_prompts.enabled),
                    label="Prompts for SAM",
                    info="What CLIP's answer is handed to SAM as.",
                    visible=predictor.with_sam,
                    elem_id="prompts",
                )
                with gr.Accordion("Asked before", open=True, elem_id="asked"):
                    history: Any = gr.HTML(markup.history(Session()), js_on_load=_BUTTONS, elem_id="history")
                    parts["history"] = history
            with gr.Column(scale=5, min_width=300, elem_id="results"):
                parts["banner"] = gr.HTML(elem_id="banner")
                stage: Any = gr.HTML(
                    markup.stage(Session(), None, predictor.with_sam),
                    js_on_load=(_FOLDER / "stage.js").read_text(encoding="utf-8"),
                    elem_id="stage",
                )
                parts["stage"] = stage
                answers = gr.Radio(
                    [],
                    label="Answers",
                    info="The chosen one is corrected and downloaded.",
                    visible=False,
                    elem_id="answers",
                )
                parts["answers"] = answers
                parts["downloads"] = gr.HTML(elem_id="downloads")
                parts["details"] = gr.HTML(elem_id="details")

        outputs = [parts[name] for name in OUTPUTS]
        session = parts["session"]
        # One lane for all that runs the model: two passes at once would take as long each as one after the other,
        # and steps of one visitor must not overtake each other.
        lane: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress": "minimal",
            "show_progress_on": stage,
            "api_visibility": "private",
        }
        upload.upload(handlers.open_file, [upload, session], outputs, **lane)
        run.click(handlers.ask, [text, session, prompts], outputs, **lane)
        prompts.input(handlers.use_prompts, [session, prompts, answers], outputs, **lane)
        scenes.press(handlers.open_scene, [session, prompts], [text, *outputs], **lane)
        history.press(handlers.ask_again, [session, prompts], [text, *outputs], **lane)
        # Every click counts, those too that come while an earlier one is answered.
        stage.mark(handlers.correct, [session, prompts, answers], outputs, trigger_mode="multiple", **lane)
        stage.undo(handlers.undo, [session, prompts, answers], outputs, **lane)
        stage.clear(handlers.clear, [session, prompts, answers], outputs, **lane)
        answers.input(
            handlers.choose,
            [session, answers],
            [stage, parts["details"], parts["downloads"]],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=4,
        )
    page.queue(max_size=_WAITING, api_open=False)
    return page


def mount(app: FastAPI, predictor: Predictor, note: str | None) -> FastAPI:
    """See `promptris.interfaces.web.mount_page`."""
    # Gradio's telemetry asks this, not only the page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return gr.mount_gradio_app(
        app,
        build(predictor, note),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        theme=_theme(),
        css_paths=_FOLDER / "page.css",
    )


def _theme() -> gr.themes.Base:
    """Fonts that every machine has, so that none is fetched."""
    sans = [gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, font=sans, font_mono=mono
    )
    # Darker than Gradio's own, for a contrast of at least 4.5 to 1.
    return theme.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
        color_accent="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


_BUTTONS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("press", { number: Number(button.dataset.number) });
});
"""
