"""Models as named on the command line."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptris.builtin_models import builtin_folder
from promptris.errors import InputError
from promptris.interfaces.terminal import say

if TYPE_CHECKING:
    from promptris.modeling.prompt_ris import PromptRIS
    from promptris.predictor import Predictor

DEFAULT_MODEL = "tiny"
RANDOM_NOTE = "random weights: the mask is meaningless"


@dataclass(frozen=True)
class ModelChoice:
    """Which model to run, and where.

    Attributes:
        name: built-in name, folder or hub id; a preset's name with `random`. None means the built-in model.
        random: random weights at the size of a preset.
        device: "auto" or a torch device.
        dtype: "auto", "float32", "bfloat16" or "float16".
        threshold: of the masks' probabilities.
        clip: where the frozen CLIP is now; None means where it was at training time.
        sam: the same for SAM.
        engine: "auto", "torch", "openvino" or "onnxruntime".
    """

    name: str | None = None
    random: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threshold: float = 0.5
    clip: str | None = None
    sam: str | None = None
    engine: str = "auto"

    @property
    def shown_name(self) -> str:
        """The name for people."""
        return f"{self._name} with random weights" if self.random else self._name

    @property
    def _name(self) -> str:
        return DEFAULT_MODEL if self.name is None else self.name

    @property
    def built_in(self) -> bool:
        """Whether it is the built-in model, which knows RefShapes only."""
        return not self.random and builtin_folder(self._name) is not None

    @property
    def note(self) -> str | None:
        """What must be said about this model's masks."""
        return RANDOM_NOTE if self.random else None

    def check(self) -> None:
        """InputError for options that contradict each other."""
        if self.random and (self.clip or self.sam):
            raise InputError("--random-weights takes no --clip or --sam: they would give real weights")
        if self.random and self.name is None:
            raise InputError("--random-weights needs the size to build: add --model vit-b, vit-l or vit-h")

    def load(self) -> Predictor:
        """The model, ready to answer; says on stderr what runs where.

        Raises:
            InputError: when there is no such model or device.
        """
        self.check()
        if not self._name.strip():
            raise InputError(f"--model is empty: leave it out for the built-in model, {DEFAULT_MODEL}")

        from promptris.engines.choice import choose_engine
        from promptris.modeling.build import build_random
        from promptris.modeling.presets import PRESETS
        from promptris.placement import pick_device
        from promptris.predictor import load, prepare

        name = self._name
        engine = choose_engine(self.engine, pick_device(self.device))
        if self.random:
            model = build_random(name)
            predictor = prepare(model, self.device, self.dtype, engine, self.threshold, say)
        elif name in PRESETS and not Path(name).exists():
            raise InputError(
                f"{name} is a size, not a trained model: give --model a folder or hub id, or add "
                "--random-weights to try the size out"
            )
        else:
            predictor = load(
                name,
                self.device,
                self.dtype,
                self.clip,
                self.sam,
                engine,
                threshold=self.threshold,
                notify=say,
            )
        dtype = str(next(predictor.model.parameters()).dtype).removeprefix("torch.")
        say(f"{self.shown_name} on {predictor.device}, {dtype}, by {engine}")
        if self.note:
            say(f"note: {self.note}; it only shows that the whole path runs")
        return predictor


def preset_skeleton(name: str) -> PromptRIS:
    """A preset's model for counting: without memory for its weights where that is possible."""
    import torch

    from promptris.modeling.build import build_random
    from promptris.modeling.presets import get_preset

    # Starting from CLIP's projections reads their values, which weights without memory do not have.
    reads_weights = get_preset(name).config.decoder.start_from_clip
    with nullcontext() if reads_weights else torch.device("meta"):
        return build_random(name)
