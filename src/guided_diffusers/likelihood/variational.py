"""The terms of a diffusion model's variational bound, and the hybrid loss that learns its variances.

With the chain x_0, x_1, ..., x_T of a scheduler's listed timesteps, the bound on -log p(x_0) is

    prior        KL(q(x_T | x_0) || N(0, I))
    L_t          KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),    t = T, ..., 2
    decoder      -log p(x_0 | x_1)

each an expectation over q. Pixels have 256 levels, evenly spaced over [-1, 1], so the decoder is the mass
that a Gaussian puts on a pixel's bin, all that lies beyond the ends counted to them. Its cumulative function
is the tanh approximation of the normal one that published figures use: itself a distribution function, so
that the sum is a bound. Everything here is in **bits a dimension** (a pixel of a channel).

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equations 5, 8 and 13.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), section 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guided_diffusers.core.distributions import FLOOR, discretised_log_likelihood, gaussian_kl
from guided_diffusers.core.noise import broadcast
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.losses import Weighting, denoising_loss, uniform_weight
from guided_diffusers.schedulers import GuidedDDPMScheduler


def bound_term(
    scheduler: GuidedDDPMScheduler,
    output: Tensor,
    x0: Tensor,
    sample: Tensor,
    timestep: Tensor,
    floor: float = FLOOR,
) -> Tensor:
    """The bound's term at each sample's timestep: the decoder's at the last listed one, else L_t.

    x_0 is clipped or thresholded in the model's mean as the scheduler's configuration says, as in sampling.

    Args:
        scheduler: its listed timesteps are the chain; `config.variance_type` the model's variance.
        output: of the network at (sample, timestep), (batch, channels, ...), or twice the channels.
        x0: (batch, channels, ...) in [-1, 1].
        sample: x_t, of x0's shape.
        timestep: (batch,), listed ones.
        floor: see `distributions.discretised_log_likelihood`.

    Returns:
        (batch,) float64 (float32 on a device without), bits a dimension.

    Raises:
        ValueError: as `GuidedDDPMScheduler.reverse`.
    """
    x0, sample = _precise(x0), _precise(sample)
    channels = sample.shape[1]
    mean, _, _ = scheduler.reverse(output, timestep, sample)
    predicted = _precise(output[:, channels:]) if output.shape[1] > channels else None
    log_variance = _shaped(scheduler.log_variance(timestep, predicted), sample)
    clean = (timestep == scheduler.timesteps[-1].to(timestep.device)).to(sample.device)
    true_mean, true_variance = scheduler.posterior(x0, sample, timestep)
    true_log = torch.where(
        _shaped(clean, sample).bool(), 1.0, true_variance
    ).log()  # there is none at the end
    nats = gaussian_kl(true_mean, true_log, mean, log_variance).flatten(1).mean(1)
    if clean.any():
        log_likelihood = discretised_log_likelihood(x0, mean, log_variance, floor)
        nats = torch.where(clean, -log_likelihood.flatten(1).mean(1), nats)
    return nats / math.log(2)


def prior_term(scheduler: GuidedDDPMScheduler, x0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) at the noisiest listed timestep, in bits a dimension.

    Args:
        scheduler: its listed timesteps are the chain.
        x0: (batch, ...); float64 keeps the digits of a divergence near 0, which cancel in float32.

    Returns:
        (batch,), of x0's dtype, at least float32.
    """
    x0, level = at_least_float32(x0), scheduler.noise_level(int(scheduler.timesteps[0]))
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    log_variance = zero + 2 * level.sigma.log().item()
    return gaussian_kl(broadcast(level.alpha, x0) * x0, log_variance, zero, zero).flatten(1).mean(
        1
    ) / math.log(2)


def hybrid_terms(
    scheduler: GuidedDDPMScheduler,
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    sample: Tensor,
    timestep: Tensor,
    stop_gradient: bool = True,
    weighting: Weighting = uniform_weight,
) -> tuple[Tensor, Tensor]:
    """L_simple and L_vlb of the hybrid loss L_simple + lambda L_vlb, lambda = 0.001 in the paper.

    Args:
        scheduler: as of `bound_term`, listing the timesteps of training.
        output: of the network, (batch, channels, ...); twice the channels with a learned variance.
        x0: (batch, channels, ...).
        noise: eps, of x0's shape.
        sample: x_t, of x0's shape.
        timestep: (batch,).
        stop_gradient: the bound sends no gradient into the prediction, only into the variance.
        weighting: of the squared error, as of `denoising_loss`.

    Returns:
        The mean squared error of the prediction, (batch,), and T times the bound's term, (batch,): over a
        uniform timestep its expectation is the sum of all terms, the prior's excepted.

    References:
        Nichol and Dhariwal (arXiv:2102.09672), equation 16.
    """
    prediction, variance = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
    level = scheduler.noise_level(timestep)
    simple = denoising_loss(prediction, x0, noise, level, scheduler.config.prediction_type, weighting)
    frozen = prediction.detach() if stop_gradient else prediction
    term = bound_term(scheduler, torch.cat([frozen, variance], dim=1), x0, sample, timestep)
    return simple, (len(scheduler.timesteps) * term).to(simple.dtype)


def _precise(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()  # which has no float64


def _shaped(value: Tensor, sample: Tensor) -> Tensor:
    """A value a sample, or one already of sample's shape."""
    return value if value.ndim == sample.ndim else broadcast(value, sample)
