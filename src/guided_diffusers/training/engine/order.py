"""What a position in training determines: the row of the data, and uniform numbers."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from guided_diffusers.core.randomness import seed_for


def data_order(seed: int, positions: list[int], num_samples: int) -> list[int]:
    """The data set's row at each position; every epoch is a permutation drawn from (seed, epoch).

    Args:
        seed: the run's seed.
        positions: numbers of images seen before, each at least 0.
        num_samples: size of the data set.
    """
    return [int(_permutation(seed, p // num_samples, num_samples)[p % num_samples]) for p in positions]


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(seed: int, epoch: int, num_samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed_for(seed, epoch), num_samples))
    return torch.randperm(num_samples, generator=generator)


def uniform_for(seed: int, positions: list[int]) -> Tensor:
    """Uniform numbers in [0, 1), one a position: the hash of (seed, position) itself; (batch,), float64."""
    return torch.tensor([seed_for(seed, position) for position in positions], dtype=torch.float64) / 2**63
