"""Schedules of betas, the variances that a variance-preserving process adds at each timestep of training.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), section 4: linear.
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), whose
        code calls "linear" what is "scaled_linear" here: linear in the root of beta.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672): cosine.
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891): zero
        terminal SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_MAX_BETA = 0.999


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start


def _from_abar(abar: Callable[[float], float], steps: int) -> Tensor:
    values = [min(1 - abar((i + 1) / steps) / abar(i / steps), _MAX_BETA) for i in range(steps)]
    return torch.tensor(values, dtype=torch.float64)


def _cosine(steps: int) -> Tensor:
    # Nichol and Dhariwal, equation 17
    return _from_abar(lambda time: math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2, steps)


def _laplace(steps: int) -> Tensor:
    def abar(time: float) -> float:
        half_log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
        return (1 / (1 + math.exp(-half_log_snr))) ** 0.5

    return _from_abar(abar, steps)


WITH_LIMITS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
}
"""From the number of timesteps, the first beta and the last."""
WITHOUT_LIMITS: dict[str, Callable[[int], Tensor]] = {"squaredcos_cap_v2": _cosine, "laplace": _laplace}
"""From the number of timesteps."""
BETA_SCHEDULES = (*WITH_LIMITS, *WITHOUT_LIMITS)


def abar_of(betas: Tensor, zero_terminal_snr: bool = False) -> Tensor:
    """The table of abar, `(timesteps,)` float64.

    From the first beta above 1 on it is NaN: diffusers makes schedulers of such betas, and there is no such
    process.

    Args:
        betas: `(timesteps,)` float64, at least 0.
        zero_terminal_snr: Shift and stretch sqrt(abar), such that it keeps its first value and ends at 0.
    """
    # Ho et al., equation 4
    abar = torch.cumprod(1 - betas, dim=0)
    abar[(betas > 1).cumsum(dim=0) > 0] = math.nan
    if not zero_terminal_snr:
        return abar
    alpha = abar.sqrt()
    # Lin et al., algorithm 1
    return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
