"""Exact denoisers and classifiers as plain functions of the noise level: what most tests of guidance need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from laws.mixture import MIXTURE, GaussianMixture
from torch import Tensor

from guided_diffusers import NoiseLevel


def exact_denoiser(mixture: GaussianMixture = MIXTURE) -> Callable[..., Tensor]:
    """E[x_0 | x_t, condition]; the condition is labels `(batch,)`, or None for the unconditional one."""

    def denoise(sample: Tensor, level: NoiseLevel, condition: Any = None) -> Tensor:
        return mixture.denoised(sample.double(), level.alpha, level.sigma, condition).to(sample.dtype)

    return denoise


def exact_log_prob(labels: Tensor, mixture: GaussianMixture = MIXTURE) -> Callable[..., Tensor]:
    """log p(label | x_t), `(batch,)`, whatever the condition."""

    def log_prob(sample: Tensor, level: NoiseLevel, condition: Any = None) -> Tensor:
        log_posterior = mixture.log_posterior(sample.double(), level.alpha, level.sigma)
        return log_posterior.gather(1, labels[:, None])[:, 0]

    return log_prob


def level_at(noise_to_signal: float, **kwargs: Any) -> NoiseLevel:
    """The variance-preserving noise level of a noise-to-signal ratio."""
    alpha = (1 + torch.tensor(noise_to_signal, dtype=torch.float64) ** 2).rsqrt()
    return NoiseLevel(alpha=alpha, sigma=noise_to_signal * alpha, **kwargs)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
