"""How probable images are under a latent variable model: the evidence bound and two estimates of log p(x).

With the prior p(z) = N(0, I), the posterior's approximation q(z | x) and the decoder's likelihood p(x | z),

    log p(x) >= ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z)),        the gap being KL(q(z | x) || p(z | x))

and with K samples log p(x) is, for either proposal r(z), estimated by

    log 1/K sum_k p(x | z_k) p(z_k) / r(z_k),      z_k ~ r

- `importance`, r = q(z | x) (IWAE): below log p(x) in expectation by about Var(weight) / 2K, nearer with
  every K, and at K = 1 the ELBO.
- `prior`, r = p(z): as unbiased for p(x), and hopeless. Almost no prior sample explains a given image, so
  the sum is its luckiest term. On the exactly known model of tests/models/test_evidence.py, 8 latent numbers
  seen through 64 pixels, 1,000 samples of q are off by 0.001 nats on average and vary by 0.025 between
  seeds; 1,000 of the prior are off by 25 nats and vary by 11; 100,000 are still off by 3.5. How many would
  do grows exponentially with the information in the latent.

Everything is in nats a whole image, and about raw latents: standardised ones have no standard normal prior.

References:
    Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv:1312.6114), equation 3 and appendix B.
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders" (arXiv:1509.00519), equation 8.
    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (arXiv:1606.04934),
    appendix C.8 (free bits).
    Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework"
    (ICLR 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from guided_diffusers.core.checks import (
    check_choice,
    check_finite,
    check_int,
    check_number,
    check_tensor,
    check_that,
)
from guided_diffusers.core.distributions import bits_per_dim, gaussian_kl
from guided_diffusers.core.finite import check_output
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.core.randomness import check_generator, randn_for, seed_for
from guided_diffusers.models.decoder_likelihoods import LIKELIHOODS, DecoderLikelihood
from guided_diffusers.models.point_posterior import PointPosterior

METHODS = ("importance", "prior")


class LatentVariableModel(Protocol):
    """What is asked of a model; `VariationalAutoencoder` is one."""

    dtype: torch.dtype
    decoder_likelihood: DecoderLikelihood | None

    def posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The approximation q(z | x), raw."""

    def decoder_output(self, latents: Tensor) -> Tensor:
        """What `decoder_likelihood` takes, of raw latents."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvidenceBound:
    """One draw of the evidence bound of some images.

    Attributes:
        reconstruction: log p(x | z) at one z drawn from the posterior, (batch,), nats.
        kl: KL(q(z | x) || p(z)) in closed form, (batch,), nats, at least 0.
        objective: what training maximises, (batch,), nats: reconstruction - beta KL, each latent channel's
            KL at least the free bits. With beta 1 and no free bits it is `elbo`.
        dimensions: Pixels times channels of an image.
        is_density: The likelihood is a density, so `bits_per_dim` holds for dequantised images.
    """

    reconstruction: Tensor
    kl: Tensor
    objective: Tensor
    dimensions: int
    is_density: bool

    @property
    def elbo(self) -> Tensor:
        """The bound on log p(x), reconstruction - kl, (batch,), nats; whatever beta and free bits are."""
        return self.reconstruction - self.kl

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits of an 8-bit image a dimension, (batch,); the sum of the two below."""
        return bits_per_dim(self.elbo, self.dimensions, self.is_density)

    @property
    def reconstruction_bits_per_dim(self) -> Tensor:
        """Of it, the bits that the image needs when its latent is known, (batch,)."""
        return bits_per_dim(self.reconstruction, self.dimensions, self.is_density)

    @property
    def kl_bits_per_dim(self) -> Tensor:
        """Of it, the bits that the latent needs, (batch,)."""
        return self.kl / (self.dimensions * math.log(2))


def kl_by_channel(posterior: DiagonalGaussianDistribution) -> Tensor:
    """KL(q(z | x) || N(0, I)) in nats of each latent channel, (batch, channels), at least float32."""
    mean, log_variance = at_least_float32(posterior.mean), at_least_float32(posterior.logvar)
    zero = torch.zeros((), dtype=mean.dtype, device=mean.device)
    return gaussian_kl(mean, log_variance, zero, zero).flatten(2).sum(2)


def bound_of(
    log_prob: Tensor,
    posterior: DiagonalGaussianDistribution,
    likelihood: DecoderLikelihood,
    dimensions: int,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> EvidenceBound:
    """The bound from its parts; see `elbo` for beta and free bits."""
    for name, value in (("beta", beta), ("free_bits", free_bits)):
        check_number(name, value, 0)
    channels = kl_by_channel(posterior).to(log_prob.dtype)
    charged = channels.clamp_min(free_bits * math.log(2)) if free_bits > 0 else channels
    return EvidenceBound(
        reconstruction=log_prob,
        kl=channels.sum(1),
        objective=log_prob - beta * charged.sum(1),
        dimensions=dimensions,
        is_density=likelihood.is_density,
    )


def elbo(
    model: LatentVariableModel,
    images: Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> EvidenceBound:
    """One draw of the evidence bound, with its graph.

    Args:
        model: with a likelihood and a Gaussian posterior.
        images: (batch, channels, height, width) in [-1, 1]; dequantised for a density.
        generator: Source of the posterior's draw; a list has one generator an image.
        beta: Weight of the divergence in `objective`; 1 for the bound.
        free_bits: Bits (log 2 nats) that each latent channel of an image may use for nothing in `objective`:
            below it there is no reward for using less. The paper's minimum is of the mean over a batch; here
            it is of each image, so that an image's figure does not depend on others.

    Raises:
        ValueError: a deterministic posterior, no likelihood, or beta or free_bits below 0.
    """
    likelihood, images = checked_likelihood(model), _checked_images(model, images)
    beta, free_bits = (
        check_number(name, value, 0, 1e6) for name, value in (("beta", beta), ("free_bits", free_bits))
    )
    generator = check_generator(generator, len(images))
    posterior = _gaussian(model.posterior(images.to(model.dtype)))
    output = model.decoder_output(posterior.sample(generator))
    log_prob = likelihood.log_prob(output, images)
    return bound_of(log_prob, posterior, likelihood, images[0].numel(), beta, free_bits)


@torch.no_grad()
def log_likelihood(
    model: LatentVariableModel,
    images: Tensor,
    num_samples: int = 100,
    method: Literal["importance", "prior"] = "importance",
    seed: int = 0,
    first_index: int = 0,
    chunk: int = 256,
) -> Tensor:
    """An estimate of log p(x), without a graph; the module says how good.

    Args:
        model: with a likelihood and a Gaussian posterior.
        images: (batch, channels, height, width) in [-1, 1]; dequantised for a density.
        num_samples: K, latents an image.
        method: "importance" draws them from the posterior, "prior" from the prior.
        seed: The draws are a function of it, an image's number and the sample's, and of nothing else.
        first_index: The number of the first image, for data done in parts.
        chunk: Latents decoded at once, which bounds the memory and (rounding aside) changes nothing.

    Returns:
        (batch,), nats, in images' dtype, at least float32.

    Raises:
        ValueError: a deterministic posterior, no likelihood, an unknown method, or a count below 1.
    """
    checked_likelihood(model)
    check_choice("method", method, METHODS)
    for name, value in (("num_samples", num_samples), ("chunk", chunk)):
        check_int(name, value, 1, 2**24)
    for name, value in (("seed", seed), ("first_index", first_index)):
        check_int(name, value, None, None)
    images = _checked_images(model, images)
    estimates = []
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        posterior = _gaussian(model.posterior(part.to(model.dtype)))
        seeds = [seed_for(seed, first_index + start + row) for row in range(len(part))]
        total = torch.full((len(part),), -torch.inf, dtype=images.dtype, device=images.device)
        step = max(1, chunk // len(part))
        for first in range(0, num_samples, step):
            samples = range(first, min(first + step, num_samples))
            weights = _log_weights(model, part, posterior, seeds, samples, method)
            total = torch.logaddexp(total, weights.logsumexp(1))
        estimates.append(total - math.log(num_samples))
    return check_output(torch.cat(estimates), "log-likelihood", model)


def _log_weights(
    model: LatentVariableModel,
    images: Tensor,
    posterior: DiagonalGaussianDistribution,
    seeds: Sequence[int],
    samples: Sequence[int],
    method: str,
) -> Tensor:
    """The logarithms of p(x | z) p(z) / r(z) at some samples of each image, (batch, samples)."""
    mean, log_variance = (value.to(images.dtype)[:, None] for value in (posterior.mean, posterior.logvar))
    noise = torch.stack([randn_for(seed, samples, mean.shape[2:], dtype=images.dtype) for seed in seeds])
    noise = noise.to(images.device)
    latents = mean + (0.5 * log_variance).exp() * noise if method == "importance" else noise
    output = model.decoder_output(latents.flatten(0, 1).to(model.dtype))
    repeated = images.repeat_interleave(len(samples), dim=0)
    log_prob = model.decoder_likelihood.log_prob(output, repeated).view(len(images), len(samples))
    if method == "prior":
        return log_prob
    # log p(z) - log q(z | x) with z = mean + deviation x noise
    ratio = 0.5 * (noise.square() - latents.square() + log_variance)
    return log_prob + ratio.flatten(2).sum(2)


def checked_likelihood(model: Any) -> DecoderLikelihood:
    """The model's likelihood.

    Raises:
        ValueError: it has none.
    """
    likelihood, allowed = model.decoder_likelihood, ", ".join(map(repr, LIKELIHOODS))
    check_that(likelihood is not None, "likelihood", likelihood, f"{allowed}: without, there is no p(x | z)")
    return likelihood


def _checked_images(model: Any, images: Any) -> Tensor:
    """Images of the model's channels, at least one, finite, in at least float32."""
    channels = getattr(getattr(model, "config", None), "in_channels", "channels")
    images = check_tensor("images", images, ("batch", channels, "height", "width"))
    check_that(0 not in images.shape, "images", images, "at least one image")
    return check_finite("images", at_least_float32(images))


def _gaussian(posterior: DiagonalGaussianDistribution) -> DiagonalGaussianDistribution:
    allowed = "'gaussian': a plain autoencoder's divergence is infinite and it has no evidence bound"
    check_that(not isinstance(posterior, PointPosterior), "posterior", "deterministic", allowed)
    return posterior
