"""Three classes of points in the plane, each a Gaussian: denoiser, classifier and conditional are exact.

With x_t = alpha x_0 + sigma eps, class k has the density N(alpha m_k, s_k I), s_k = alpha^2 v_k + sigma^2. So
E[x_0 | x_t, k] = m_k + alpha v_k / s_k (x_t - alpha m_k), p(k | x_t) is a softmax, and what guidance at scale
1 ought to draw is N(m_k, v_k I) itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusers import NoiseLevel

MEANS = torch.tensor([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.25, 0.4, 0.15], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
CLASSES = len(WEIGHTS)


def _log_joint(sample: Tensor, level: NoiseLevel) -> Tensor:
    """Log p(k, x_t) up to a constant, `(batch, classes)`."""
    spread = level.alpha**2 * DEVIATIONS**2 + level.sigma**2
    distance = (sample[:, None] - level.alpha * MEANS).square().sum(-1)
    return WEIGHTS.log() - spread.log() - distance / (2 * spread)


def denoise(sample: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
    """E[x_0 | x_t, label], or of the mixture where there are no labels."""
    spread = level.alpha**2 * DEVIATIONS**2 + level.sigma**2
    gain = (level.alpha * DEVIATIONS**2 / spread)[:, None]
    of_class = MEANS + gain * (sample[:, None] - level.alpha * MEANS)
    if labels is not None:
        return of_class[torch.arange(len(sample)), labels]
    return (_log_joint(sample, level).softmax(1)[..., None] * of_class).sum(1)


def log_prob(sample: Tensor, level: NoiseLevel, labels: Tensor) -> Tensor:
    """Log p(label | x_t), `(batch,)`."""
    return _log_joint(sample, level).log_softmax(1).gather(1, labels[:, None])[:, 0]


def distance_from_class(samples: Tensor, label: int) -> float:
    """Wasserstein-2 distance of samples `(n, 2)` from N(m_k, v_k I), axis by axis, in its deviations."""
    ranks = (torch.arange(len(samples), dtype=torch.float64) + 0.5) / len(samples)
    quantiles = torch.special.ndtri(ranks)[:, None]
    found = (samples.sort(0).values - MEANS[label]) / DEVIATIONS[label]
    return (found - quantiles).square().mean().sqrt().item()
