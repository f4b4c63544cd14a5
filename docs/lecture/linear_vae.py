"""A variational autoencoder whose likelihood is known, for the lecture's pictures.

Its decoder is linear, x = W z + deviation x noise: x is Gaussian with the covariance W W^T + deviation^2 I.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal

from guided_diffusers.models.decoder_likelihoods import GaussianLikelihood


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
