"""The step back from a level to a less noisy one, where x_0 is known.

A Markov process with x_t = alpha x_0 + sigma eps at every level has between two levels

    q(x_next | x_t, x_0) = N(alpha_next (1 - r) x_0 + r alpha_next / alpha x_t, sigma_next^2 (1 - r) I)
    q(x_t | x_next) = N(alpha / alpha_next x_next, sigma^2 (1 - r) I)

where r = (sigma_next alpha / (sigma alpha_next))^2 is the ratio of the squared noise-to-signal ratios. Of
alpha^2 + sigma^2 = 1 these are the posterior and beta of the variance-preserving chain; the algebra needs no
more than the two levels, so the variance-exploding process and flow matching have theirs too.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equations 6 and 7.
    Kingma et al., "Variational Diffusion Models" (arXiv:2107.00630), appendix A: any alpha and sigma.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel, broadcast


class Posterior(NamedTuple):
    """q(x_next | x_t, x_0) = N(of_x0 x_0 + of_sample x_t, variance I), float64 of the levels' shape.

    Attributes:
        of_x0: What multiplies x_0 in the mean.
        of_sample: What multiplies x_t.
        variance: 0 where the next level has no noise.
        forward: The variance of q(x_t | x_next), which the variance of a reverse step is at most.
    """

    of_x0: Tensor
    of_sample: Tensor
    variance: Tensor
    forward: Tensor

    def mean(self, x0: Tensor, sample: Tensor) -> Tensor:
        """The mean for x_0 and x_t, `(batch, ...)`, in the dtype of x_0."""
        # Ho et al., equation 7
        return broadcast(self.of_x0, x0) * x0 + broadcast(self.of_sample, x0) * sample.to(x0.dtype)


def posterior(level: NoiseLevel, next_level: NoiseLevel) -> Posterior:
    """The step back between two levels, `()` or `(batch,)`.

    Args:
        level: Of x_t, with sigma > 0.
        next_level: Of x_next: no noisier, and with alpha > 0.
    """
    alpha, sigma, next_alpha, next_sigma = level.alpha, level.sigma, next_level.alpha, next_level.sigma
    # Kingma et al., appendix A; with alpha^2 + sigma^2 = 1 Ho et al., equations 6 and 7
    of_sample = alpha * next_sigma**2 / (next_alpha * sigma**2)
    new = 1 - (next_sigma * alpha / (sigma * next_alpha)) ** 2
    return Posterior(next_alpha * new, of_sample, next_sigma**2 * new, sigma**2 * new)


def posterior_mean(x0: Tensor, sample: Tensor, level: NoiseLevel, next_level: NoiseLevel) -> Tensor:
    """The mean of q(x_next | x_t, x_0): where Algorithm 1 of Dhariwal and Nichol takes its gradient.

    Args:
        x0: The estimate of x_0, `(batch, ...)`.
        sample: x_t, of x0's shape, unscaled.
        level: The noise level of x_t, with sigma > 0.
        next_level: The level of x_next, no noisier than `level` and with alpha > 0.

    Returns:
        The mean, of x0's shape and dtype.

    Raises:
        ValueError: Levels between which no such posterior is defined.
    """
    noisier = next_level.sigma * level.alpha > next_level.alpha * level.sigma
    if noisier.any() or (level.sigma <= 0).any() or (next_level.alpha <= 0).any():
        ratios = ", ".join(str(each.noise_to_signal.tolist()) for each in (level, next_level))
        raise ValueError(
            f"sigma / alpha of the level and of the next one are {ratios}; the mean of a step is "
            "defined where the first is above 0 and the second is finite and not above the first"
        )
    return posterior(level, next_level).mean(x0, sample)
