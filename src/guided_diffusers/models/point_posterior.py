"""The posterior of a plain autoencoder: all its mass on one point."""

from __future__ import annotations

from typing import NoReturn

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor


class PointPosterior(DiagonalGaussianDistribution):
    """The limit of N(mean, exp(logvar)) as logvar goes to minus infinity: mean, mode and every sample agree.

    Its divergence from the prior is infinite, so that a plain autoencoder has neither an evidence bound nor
    a prior that its codes follow.

    Args:
        mean: (batch, channels, height, width).
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__(torch.cat([mean, mean], dim=1), deterministic=True)
        self.logvar = torch.full_like(mean, -torch.inf)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """The mean; draws nothing."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> NoReturn:
        """Raises ValueError: there is none."""
        raise ValueError("posterior is 'deterministic': its divergence from the prior is infinite")

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> NoReturn:
        """Raises ValueError: a point has no density."""
        raise ValueError("posterior is 'deterministic': it has no density")
