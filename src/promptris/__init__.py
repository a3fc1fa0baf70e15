"""Prompt-RIS: segment what an expression refers to, with frozen CLIP and SAM bridged by learned prompts.

>>> import promptris
>>> predictor = promptris.load("tiny")
>>> prediction = predictor.set_image("scene.png").predict("the red circle")

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptris.config import PromptRISConfig
    from promptris.errors import InputError, PromptRISError
    from promptris.modeling.prompt_ris import PromptRIS
    from promptris.prediction import Explanation, Prediction, to_detections
    from promptris.predictor import Predictor, load

    __version__: str

_HOMES = {
    "Explanation": "promptris.prediction",
    "InputError": "promptris.errors",
    "Prediction": "promptris.prediction",
    "Predictor": "promptris.predictor",
    "PromptRIS": "promptris.modeling.prompt_ris",
    "PromptRISConfig": "promptris.config",
    "PromptRISError": "promptris.errors",
    "load": "promptris.predictor",
    "to_detections": "promptris.prediction",
}

__all__ = [
    "Explanation",
    "InputError",
    "Prediction",
    "Predictor",
    "PromptRIS",
    "PromptRISConfig",
    "PromptRISError",
    "__version__",
    "load",
    "to_detections",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from promptris.versions import installed_version

        value: Any = installed_version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
