"""Probabilistic PCA: the latent variable model whose likelihood is exact, as a yardstick for a VAE's.

With a latent z ~ N(0, I) of q numbers and images x = W z + m + sigma n, n ~ N(0, I), of d numbers,

    p(x) = N(m, C),      C = W W^T + sigma^2 I

It is a VAE with a Gaussian likelihood whose decoder is linear, and whose bound is tight. The maximum of the
likelihood is known: m is the mean of the training images and, with the eigenvalues l_1 >= ... >= l_d of their
covariance (over n, not n - 1) and U the eigenvectors of the first q,

    sigma^2 = (l_(q+1) + ... + l_d) / (d - q),      W = U (diag(l_1 ... l_q) - sigma^2 I)^(1/2)

so C has the variance l_i along U_i and sigma^2 across, and log p(x) costs one product with U.

References:
    Tipping and Bishop, "Probabilistic Principal Component Analysis", Journal of the Royal Statistical
    Society B 61 (1999), equations 7 and 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbabilisticPCA:
    """The fitted distribution, float64.

    Attributes:
        mean: m, (d,).
        directions: U, (d, q), orthonormal columns.
        variances: l_1 ... l_q of the images along them, (q,), each at least `noise_variance`.
        noise_variance: sigma^2, positive.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    noise_variance: float

    def log_likelihood(self, images: Tensor) -> Tensor:
        """The exact log p(x), (count,) nats, of images (count, ...) with d numbers each."""
        centred = images.double().flatten(1) - self.mean
        along = (centred @ self.directions).square()
        across = (centred.square().sum(1) - along.sum(1)).clamp_min(0)
        d, q = self.directions.shape
        log_determinant = self.variances.log().sum() + (d - q) * math.log(self.noise_variance)
        distance = (along / self.variances).sum(1) + across / self.noise_variance
        return -0.5 * (distance + log_determinant + d * math.log(2 * math.pi))


def fit(images: Tensor, latent_size: int) -> ProbabilisticPCA:
    """The maximum of the likelihood, in closed form.

    Args:
        images: (count, ...) with d numbers each; dequantised where they have levels.
        latent_size: q, from 1 to d - 1.

    Raises:
        ValueError: `latent_size` out of range, or images without variance beside their first q directions,
            whose likelihood has no maximum.
    """
    rows = images.double().flatten(1)
    d = rows.shape[1]
    if not 1 <= latent_size < d:
        raise ValueError(f"latent_size is {latent_size}; allowed: 1 to {d - 1}, images have {d} numbers")
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))  # ascending
    noise_variance = values[: d - latent_size].mean().item()
    if not noise_variance > 1e-12 * values[-1].item():
        raise ValueError(
            f"the images vary in {latent_size} directions or fewer: latent_size must be less, or the images "
            "more"
        )
    return ProbabilisticPCA(
        mean=rows.mean(0),
        directions=vectors[:, d - latent_size :].flip(1),
        variances=values[d - latent_size :].flip(0),
        noise_variance=noise_variance,
    )
