"""The mean of the next sample, given this one and x_0: where Algorithm 1 of Dhariwal and Nichol takes g.

A Markov process with x_t = alpha x_0 + sigma eps at every level has, between a level and the next, less noisy
one,

    q(x_next | x_t, x_0) = N(mu, sigma_next^2 (1 - r) I),    r = (sigma_next alpha / (sigma alpha_next))^2
    mu = alpha_next (1 - r) x_0 + r alpha_next / alpha x_t,

where r is the ratio of the squared noise-to-signal ratios. Of alpha^2 + sigma^2 = 1 it is the ancestral step
of the variance-preserving process (equations 6 and 7); the algebra needs no more than the two levels, so the
variance-exploding process and flow matching have theirs too.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equations 6 and 7.
    Kingma et al., "Variational Diffusion Models" (arXiv:2107.00630), appendix A: any alpha and sigma.
"""

from __future__ import annotations

from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel, broadcast


def posterior_mean(x0: Tensor, sample: Tensor, level: NoiseLevel, next_level: NoiseLevel) -> Tensor:
    """The mean of q(x_next | x_t, x_0).

    Args:
        x0: The estimate of x_0, `(batch, ...)`.
        sample: x_t, of x0's shape, unscaled.
        level: The noise level of x_t, with sigma > 0.
        next_level: The level of x_next, no noisier than `level` and with alpha > 0.

    Returns:
        mu, of x0's shape and dtype.

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
    kept = level.alpha * next_level.sigma**2 / (next_level.alpha * level.sigma**2)  # r alpha_next / alpha
    of_x0 = next_level.alpha - kept * level.alpha
    return broadcast(of_x0, x0) * x0 + broadcast(kept, x0) * sample.to(x0.dtype)
