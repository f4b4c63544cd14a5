"""Models whose every quantity is known exactly: what docs/lecture.md is illustrated with.

A mixture of Gaussians in any number of dimensions, each component of some class. With x_t = alpha x_0 +
sigma eps, component k has the density N(alpha m_k, s_k I), s_k = alpha^2 v_k + sigma^2, and so

    E[x_0 | x_t, k] = m_k + alpha v_k / s_k (x_t - alpha m_k),     p(k | x_t) = softmax_k log w_k N(x_t; ...)

from which the denoiser, conditional or not, and the noise-aware classifier are sums over k.

And a variational autoencoder whose decoder is linear, x = W z + deviation x noise: x is Gaussian with the
covariance W W^T + deviation^2 I, and log p(x) is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal

from guided_diffusers import NoiseLevel
from guided_diffusers.models.decoder_likelihoods import GaussianLikelihood

CLEAN = NoiseLevel(alpha=1.0, sigma=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Isotropic Gaussians with classes, float64.

    Attributes:
        means: m_k, (components, dimensions).
        deviations: sqrt(v_k), (components,).
        weights: w_k, (components,), of sum 1.
        classes: The class of each component, (components,) int64.
    """

    means: Tensor
    deviations: Tensor
    weights: Tensor
    classes: Tensor

    def log_joint(self, sample: Tensor, level: NoiseLevel) -> Tensor:
        """Log p(k, x_t) in nats, (batch, components)."""
        spread = level.alpha**2 * self.deviations**2 + level.sigma**2
        squared = (sample[:, None] - level.alpha * self.means).square().sum(-1)
        return self.weights.log() - 0.5 * (squared / spread + sample.shape[1] * (2 * math.pi * spread).log())

    def denoise(self, sample: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], or E[x_0 | x_t, class] with a class for each sample, (batch,)."""
        log_joint = self._of_class(self.log_joint(sample, level), labels)
        spread = level.alpha**2 * self.deviations**2 + level.sigma**2
        gain = (level.alpha * self.deviations**2 / spread)[:, None]
        each = self.means + gain * (sample[:, None] - level.alpha * self.means)
        return (log_joint.softmax(1)[..., None] * each).sum(1)

    def log_prob(self, sample: Tensor, level: NoiseLevel, labels: Tensor) -> Tensor:
        """Log p(class | x_t) in nats, (batch,)."""
        log_joint = self.log_joint(sample, level)
        return self._of_class(log_joint, labels).logsumexp(1) - log_joint.logsumexp(1)

    def log_density(self, sample: Tensor, level: NoiseLevel = CLEAN) -> Tensor:
        """Log p(x_t) in nats, (batch,)."""
        return self.log_joint(sample, level).logsumexp(1)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples x_0, (count, dimensions), and their classes."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[rows] + self.deviations[rows, None] * noise, self.classes[rows]

    def _of_class(self, log_joint: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return log_joint
        return log_joint.masked_fill(self.classes != labels[:, None], -math.inf)


def mixture(
    means: list[list[float]],
    deviations: list[float],
    weights: list[float] | None = None,
    classes: list[int] | None = None,
) -> Mixture:
    """A mixture from lists: equal weights, and each component its own class, unless given."""
    count = len(means)
    return Mixture(
        means=torch.tensor(means, dtype=torch.float64),
        deviations=torch.tensor(deviations, dtype=torch.float64),
        weights=torch.tensor(weights or [1 / count] * count, dtype=torch.float64),
        classes=torch.tensor(classes or list(range(count))),
    )


class LinearVAE:
    """A linear decoder with Gaussian pixels, and an encoder that is nearly right: a `LatentVariableModel`.

    q(z | x) has the exact mean, moved by a tenth of its deviation, and independent components where the true
    posterior has none.

    Args:
        latents: Numbers in a latent.
        pixels: Numbers in an image, shaped (1, 1, pixels).
        variance: Of the pixels' noise.
        seed: Of W.
    """

    dtype = torch.float64

    def __init__(self, latents: int = 8, pixels: int = 64, variance: float = 0.1, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.W = 0.3 * torch.randn(pixels, latents, generator=generator, dtype=self.dtype)
        precision = torch.eye(latents, dtype=self.dtype) + self.W.T @ self.W / variance
        self.gain = precision.inverse() @ self.W.T / variance
        self.log_variance = -precision.diagonal().log()
        self.decoder_likelihood = GaussianLikelihood().requires_grad_(False)
        self.decoder_likelihood.log_variance.fill_(math.log(variance))
        covariance = self.W @ self.W.T + variance * torch.eye(pixels, dtype=self.dtype)
        self.marginal = MultivariateNormal(torch.zeros(pixels, dtype=self.dtype), covariance)

    def posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The approximation q(z | x), (batch, latents, 1, 1)."""
        mean = images.flatten(1) @ self.gain.T + 0.1 * (0.5 * self.log_variance).exp()
        both = torch.cat([mean, self.log_variance.expand_as(mean)], dim=1)
        return DiagonalGaussianDistribution(both[..., None, None])

    def decoder_output(self, latents: Tensor) -> Tensor:
        """The images' means, (batch, 1, 1, pixels)."""
        return (latents.flatten(1) @ self.W.T)[:, None, None]

    def draw(self, count: int, seed: int) -> Tensor:
        """Images of the model, (count, 1, 1, pixels)."""
        shape, generator = (count, len(self.W)), torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, dtype=self.dtype, generator=generator)
        return (noise @ self.marginal.scale_tril.T)[:, None, None]

    def log_density(self, images: Tensor) -> Tensor:
        """The exact log p(x), (batch,) nats."""
        return self.marginal.log_prob(images.flatten(1))
