"""A model whose every quantity is known: a mixture of Gaussians, with denoiser, classifier and draws.

With x_t = alpha x_0 + sigma eps, component k of weight w_k, mean m_k and variance v_k has at a noise level
the density N(alpha m_k, s_k I), s_k = alpha^2 v_k + sigma^2, and so

    E[x_0 | x_t, k] = m_k + alpha v_k / s_k (x_t - alpha m_k)                                   (1)
    log p(k, x_t) = log w_k + log N(x_t; alpha m_k, s_k I)                                      (2)

from which the denoiser, conditional or not, and the noise-aware classifier are sums over k. What a sampler, a
guidance term or a likelihood of one's own ought to give can be computed with it, without training anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel

CLEAN = NoiseLevel(alpha=1.0, sigma=0.0)
"""The level without noise, at which x_t is x_0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """Isotropic Gaussians, each of a class, in float64.

    Attributes:
        means: m_k, `(components, dimensions)`.
        deviations: sqrt(v_k), `(components,)`.
        weights: w_k, `(components,)`, whose sum is 1.
        classes: The class of each component, `(components,)` int64.
    """

    means: Tensor
    deviations: Tensor
    weights: Tensor
    classes: Tensor

    @classmethod
    def of(
        cls,
        means: Sequence[Sequence[float]],
        deviations: Sequence[float],
        weights: Sequence[float] | None = None,
        classes: Sequence[int] | None = None,
    ) -> GaussianMixture:
        """From lists of numbers: of equal weights, and each component a class of its own, unless given."""
        count = len(means)
        return cls(
            means=torch.tensor(means, dtype=torch.float64),
            deviations=torch.tensor(deviations, dtype=torch.float64),
            weights=torch.tensor(weights or [1 / count] * count, dtype=torch.float64),
            classes=torch.tensor(classes or list(range(count))),
        )

    def log_joint(self, sample: Tensor, level: NoiseLevel) -> Tensor:
        """log p(k, x_t) in nats, `(batch, components)`, of x_t, `(batch, dimensions)`."""
        spread = level.alpha**2 * self.deviations**2 + level.sigma**2
        squared = (sample[:, None] - level.alpha * self.means).square().sum(-1)
        # (2)
        return self.weights.log() - 0.5 * (squared / spread + sample.shape[1] * (2 * math.pi * spread).log())

    def denoise(self, sample: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], or E[x_0 | x_t, class] with a class for each sample, `(batch,)`: a denoiser."""
        weights = self._of_class(self.log_joint(sample, level), labels).softmax(1)
        spread = level.alpha**2 * self.deviations**2 + level.sigma**2
        gain = (level.alpha * self.deviations**2 / spread)[:, None]
        # (1)
        of_component = self.means + gain * (sample[:, None] - level.alpha * self.means)
        return (weights[..., None] * of_component).sum(1)

    def log_prob(self, sample: Tensor, level: NoiseLevel, labels: Tensor) -> Tensor:
        """log p(class | x_t) in nats, `(batch,)`: what `ClassifierGuidance` takes."""
        log_joint = self.log_joint(sample, level)
        return self._of_class(log_joint, labels).logsumexp(1) - log_joint.logsumexp(1)

    def log_density(self, sample: Tensor, level: NoiseLevel = CLEAN) -> Tensor:
        """log p(x_t) in nats, `(batch,)`."""
        return self.log_joint(sample, level).logsumexp(1)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples x_0, `(count, dimensions)`, and the class of each, `(count,)`."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[rows] + self.deviations[rows, None] * noise, self.classes[rows]

    def _of_class(self, log_joint: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return log_joint
        return log_joint.masked_fill(self.classes != labels[:, None], -math.inf)
