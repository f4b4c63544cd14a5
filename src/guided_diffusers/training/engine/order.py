"""What a position in training determines: the row of the data, and uniform numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from guided_diffusers.core.randomness import seed_for


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of every step's batch that a process trains on.

    Attributes:
        process: its number.
        processes: how many there are.
        batch_size: of a step, over all of them.
        on_cpu: whether it trains on the processor.
    """

    process: int = 0
    processes: int = 1
    batch_size: int
    on_cpu: bool = True

    @property
    def size(self) -> int:
        """The process's samples in a step."""
        return self.batch_size // self.processes


Reader = Callable[[Sequence[int]], tuple[Any, dict[str, Any] | None]]
"""Is asked for the rows of a share, of one step after another; gives them and the state after them.

Rows are what a task's `batch` takes for its indices: a sequence of row numbers, or whatever has slices.
"""


class Source(Protocol):
    """Where a task's samples come from."""

    def reader(self, state: Mapping[str, Any] | None, share: Share) -> AbstractContextManager[Reader]:
        """Open the source at a state, small and of what JSON holds; None: at its beginning."""

    def skipped(self, state: Mapping[str, Any]) -> int:
        """How many rows of this process were left out so far."""


@dataclass(frozen=True)
class Numbered:
    """Rows by number: which is a function of the position, and nothing is kept.

    Attributes:
        seed: the run's.
        num_samples: size of the data set.
        order: as `data_order`.
    """

    seed: int
    num_samples: int
    order: Callable[[int, list[int], int], list[int]]

    def reader(self, state: Mapping[str, Any] | None, share: Share) -> AbstractContextManager[Reader]:
        """Row numbers by the order."""
        return nullcontext(lambda positions: (self.order(self.seed, list(positions), self.num_samples), None))

    def skipped(self, state: Mapping[str, Any]) -> int:
        """None: what cannot be read has no number."""
        return 0


def data_order(seed: int, positions: list[int], num_samples: int) -> list[int]:
    """The data set's row at each position; every epoch is a permutation drawn from (seed, epoch).

    Args:
        seed: the run's seed.
        positions: numbers of images seen before, each at least 0.
        num_samples: size of the data set.
    """
    return [int(_epoch_order(seed, p // num_samples, num_samples)[p % num_samples]) for p in positions]


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _epoch_order(seed: int, epoch: int, num_samples: int) -> Tensor:
    return permutation(seed_for(seed_for(seed, epoch), num_samples), num_samples)


def permutation(seed: int, count: int) -> Tensor:
    """The numbers below `count` in the order that a seed says, (count,) int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def uniform_for(seed: int, positions: list[int]) -> Tensor:
    """Uniform numbers in [0, 1), one a position: the hash of (seed, position) itself; (batch,), float64."""
    return torch.tensor([seed_for(seed, position) for position in positions], dtype=torch.float64) / 2**63
