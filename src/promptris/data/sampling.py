"""Which images and which expressions a training step sees: a pure function of (seed, step, rank)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from promptris.errors import InputError

Item = TypeVar("Item")


class ImageSchedule:
    """Deals images to steps: every epoch is a fresh shuffle, every rank gets its own share of each step.

    Args:
        image_ids: the images to train on.
        images_per_step: images per step and rank.
        seed: of the shuffles.
        rank: this process.
        world_size: number of processes.

    Raises:
        InputError: when there are fewer images than one step needs.
    """

    def __init__(
        self, image_ids: Sequence[int], images_per_step: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.image_ids = np.array(sorted(image_ids), dtype=np.int64)
        self.images_per_step, self.seed = images_per_step, seed
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = len(self.image_ids) // (images_per_step * world_size)
        if self.steps_per_epoch == 0:
            raise InputError(
                f"the training data has {len(self.image_ids)} images, fewer than the "
                f"{images_per_step * world_size} of one step: add data or lower train.images_per_step"
            )

    def images(self, step: int) -> list[int]:
        """Image ids of a step; within an epoch no image comes twice, on no rank."""
        start = self.rank * self.images_per_step
        return self._dealt(step)[start : start + self.images_per_step].tolist()

    def images_of_all_ranks(self, step: int) -> set[int]:
        """Image ids that any rank has in a step."""
        return set(self._dealt(step).tolist())

    def _dealt(self, step: int) -> NDArray[np.int64]:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.image_ids)
        together = self.images_per_step * self.world_size
        return order[position * together : (position + 1) * together]

    def first_place(self, step: int) -> int:
        """Place in the whole run, over all ranks, of the first image of a step."""
        return (step * self.world_size + self.rank) * self.images_per_step


def sample_expressions(
    choices: Sequence[tuple[Item, str]], count: int, rng: np.random.Generator, deletion: float
) -> list[tuple[Item, str]]:
    """`count` (referent, text) pairs of one image, without repeats while they last, then with words deleted.

    Args:
        choices: every (referent, text) of the image; at least one.
        count: b.
        rng: source of chance.
        deletion: chance of each word of a repeated text to be left out; at least one word stays.
    """
    picked = [choices[i] for i in rng.permutation(len(choices))[:count]]
    while len(picked) < count:
        referent, text = choices[int(rng.integers(len(choices)))]
        picked.append((referent, delete_words(text, deletion, rng)))
    return picked


def delete_words(text: str, chance: float, rng: np.random.Generator) -> str:
    """The text with each word left out by chance; at least one word stays."""
    words = re.findall(r"\S+", text)
    kept = [word for word in words if rng.random() >= chance]
    if not kept and words:
        kept = [words[int(rng.integers(len(words)))]]
    return " ".join(kept)


def share_of_rank(items: Sequence[Item], rank: int, world_size: int) -> Sequence[Item]:
    """The items that one process of an evaluation takes: every item goes to one rank, none is repeated.

    Shares may differ by one item; padding them to equal length, as samplers for training do, would count
    samples twice.
    """
    return items[rank::world_size]
