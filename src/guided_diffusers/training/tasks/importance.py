"""Timesteps drawn in proportion to the size of their losses, for the variational bound's noisy gradient.

The terms of the bound differ by orders of magnitude between timesteps. Drawn with p_t proportional to
sqrt(E[L_t^2]) and weighted by 1 / (T p_t), their mean is the uniform one with the least variance. E[L_t^2] is
not known and changes: it is the mean over a timestep's last ten losses.

References:
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), equation 18.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guided_diffusers.core.checks import check_int, check_number

MAX_TIMESTEPS = 1_000_000


class ImportanceSampler(nn.Module):
    """The history of the losses by timestep, and the distribution that follows from it.

    It is a module without parameters so that its state is saved, moved and restored like a network's. Until
    every timestep has a full history the distribution is uniform.

    Args:
        timesteps: T.
        history: Losses remembered a timestep; 10 in the paper.
        uniform_share: Of the probability spread evenly, so that no timestep is forgotten.

    Raises:
        ValueError: T or `history` below 1, or `uniform_share` outside (0, 1].
    """

    def __init__(self, timesteps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__()
        check_int("timesteps", timesteps, 1, MAX_TIMESTEPS)
        check_int("history", history, 1)
        self.uniform_share = check_number("uniform_share", uniform_share, 0, 1, above=True)
        self.register_buffer("squares", torch.zeros(timesteps, history))
        self.register_buffer("counts", torch.zeros(timesteps, dtype=torch.int64))

    @property
    def warm(self) -> bool:
        """Every timestep has a full history."""
        return bool((self.counts >= self.squares.shape[1]).all())

    def probabilities(self) -> Tensor:
        """p_t, (T,), float64 on the CPU."""
        count = len(self.counts)
        uniform = torch.full((count,), 1 / count, dtype=torch.float64)
        if not self.warm:
            return uniform
        sizes = self.squares.detach().cpu().double().mean(1).sqrt()
        if sizes.sum() == 0:
            return uniform
        return (1 - self.uniform_share) * sizes / sizes.sum() + self.uniform_share * uniform

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps by the inverse of the distribution function, and the weights that undo its preference.

        Args:
            uniform: Numbers in [0, 1), (batch,).

        Returns:
            Timesteps, (batch,) int64, and 1 / (T p_t), (batch,) float64, both on the CPU.
        """
        probabilities = self.probabilities()
        ends = probabilities.cumsum(0)
        last = len(ends) - 1
        drawn = torch.searchsorted(ends, uniform.cpu().double() * ends[-1], right=True).clamp(max=last)
        return drawn, 1 / (len(ends) * probabilities[drawn])

    @torch.no_grad()
    def update(self, timesteps: Tensor, losses: Tensor) -> None:
        """Take in losses, in their order; the oldest of a timestep make room.

        Args:
            timesteps: (batch,).
            losses: (batch,), without the weights of `draw`.
        """
        length = self.squares.shape[1]
        for timestep, loss in zip(timesteps.tolist(), losses.detach().tolist(), strict=True):
            self.squares[timestep, int(self.counts[timestep]) % length] = loss * loss
            self.counts[timestep] += 1
