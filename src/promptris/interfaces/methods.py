"""The ways to answer an expression, as named on the command line: learned prompts, or SAM's proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptris.errors import InputError
from promptris.interfaces.models import DEFAULT_MODEL, ModelChoice
from promptris.interfaces.terminal import say

if TYPE_CHECKING:
    from promptris.mask_classification.segmenter import MaskClassifier

METHODS = ("prompts", "proposals")


@dataclass(frozen=True)
class ProposalChoice:
    """Mask classification with the frozen towers of a model, or with a CLIP and a SAM of their own.

    Attributes:
        choice: the model and where to run; without a name, its `clip` and `sam` are the towers to use.
    """

    choice: ModelChoice

    @property
    def threshold(self) -> float:
        """Of the masks' probabilities."""
        return self.choice.threshold

    @property
    def note(self) -> str | None:
        """What must be said about these masks."""
        return self.choice.note

    @property
    def built_in(self) -> bool:
        """Whether these are the towers of the built-in model, which knows RefShapes only."""
        return not self._by_towers and self.choice.built_in

    @property
    def shown_name(self) -> str:
        """The name for people."""
        towers = f"{self.choice.clip} and {self.choice.sam}" if self._by_towers else self.choice.shown_name
        return f"mask classification with {towers}"

    @property
    def _by_towers(self) -> bool:
        return self.choice.name is None and bool(self.choice.clip or self.choice.sam)

    def load(self) -> MaskClassifier:
        """The towers, ready to answer; says on stderr what runs where.

        Raises:
            InputError: when there is no such model, tower or device.
            WeightsError: when a source holds something else.
        """
        from promptris.mask_classification.segmenter import MaskClassifier, load_classifier

        clip, sam = self.choice.clip, self.choice.sam
        if not self._by_towers:
            return MaskClassifier(self.choice.load().model, self.threshold)
        self.choice.check()
        if not clip or not sam:
            missing = "--sam" if clip else "--clip"
            raise InputError(
                f"{missing} is missing: --method proposals takes both towers, or --model (such as {DEFAULT_MODEL})"
            )
        classifier = load_classifier(clip, sam, self.choice.device, self.choice.dtype, self.threshold)
        dtype = str(classifier.model.clip.dtype).removeprefix("torch.")
        say(f"{self.shown_name} on {classifier.device}, {dtype}")
        return classifier


def choose_method(
    method: str,
    choice: ModelChoice,
    prompts: str | None = None,
    points: Sequence[str] | None = None,
    box: str | None = None,
    explain: bool = False,
) -> ModelChoice | ProposalChoice:
    """The choice of a model for a method, "prompts" or "proposals".

    Raises:
        InputError: for another one, or for options that it cannot heed.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}: choose from {', '.join(METHODS)}")
    if method == "prompts":
        return choice
    given = {"--prompts": prompts, "--point": points, "--box": box, "--format explain": explain}
    for option, value in given.items():
        if value:
            raise InputError(f"{option} is for the model's prompts, which --method proposals does not use")
    return ProposalChoice(choice)
