"""The processes of one run: who am I, and what do the others have?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """Processes that share work.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank; every process has to ask."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[Value] = [value] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


ALONE = Team()


def connected() -> Team:
    """The team that torch has connected; ALONE when there is none."""
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ALONE
    return Team(torch.distributed.get_rank(), torch.distributed.get_world_size())


def launched_rank() -> int:
    """This process's rank as its launcher (Lightning, torchrun, SLURM) tells it, before anything is connected."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
