"""Recurrence: a level is predicted several times, with new noise in between, so that guidance is taken up.

From x_t and its guided x_0 a deterministic step goes to the next level, and noise leads back to this one:

    eps = (x_t - alpha x_0) / sigma
    x_next = alpha_next x_0 + sigma_next eps                                                            (1)
    x_t' = (alpha / alpha_next) x_next + sqrt(sigma^2 - (alpha / alpha_next)^2 sigma_next^2) noise      (2)
         = alpha x_0 + sigma (r eps + sqrt(1 - r^2) noise),    r = alpha sigma_next / (alpha_next sigma)

The ratio r, in [0, 1], is what the step leaves of the noise; given x_0, x_t' has again the scale sigma.

References:
    Bansal et al., "Universal Guidance for Diffusion Models" (arXiv:2302.07121), algorithm 1.
    Lugmayr et al., "RePaint" (arXiv:2201.09865), algorithm 1: the same on an inpainted image.
"""

from __future__ import annotations

from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel, broadcast


def renoised(sample: Tensor, x0: Tensor, level: NoiseLevel, next_level: NoiseLevel, noise: Tensor) -> Tensor:
    """x_t' at the level of x_t, for one more prediction there.

    Args:
        sample: x_t, `(batch, ...)`, unscaled.
        x0: The guided x_0 of it, of sample's shape.
        level: The noise level of x_t, with sigma > 0.
        next_level: The level that the step arrives at, less noisy and with alpha > 0.
        noise: Standard normal, of sample's shape.

    Returns:
        x_t', of sample's shape and dtype.
    """
    alpha, sigma = broadcast(level.alpha, sample), broadcast(level.sigma, sample)
    kept = level.alpha * next_level.sigma / (next_level.alpha * level.sigma)
    fresh = (1 - kept.clamp(max=1) ** 2).sqrt()
    x0, noise = x0.to(sample), noise.to(sample)
    # (2), with (1) in it
    remaining = broadcast(kept, sample) * (sample - alpha * x0)
    return alpha * x0 + remaining + sigma * broadcast(fresh, sample) * noise
