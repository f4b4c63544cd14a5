"""The denoising loss: a noise level drawn for every sample, the network's target there, a weight.

A distribution of noise levels is a quantile function: it maps u, uniform on (0, 1), to a level, from clean to
noisy. With u from one generator a sample, levels depend on the samples' positions in training alone; and the
quartiles that a log reports by are the levels at u = 1/4, 1/2 and 3/4.

Targets and weights come from the table in `prediction`. With x_0 = c_skip x_t + c_out output, the output that
gives the true x_0 is (x_0 - c_skip x_t) / c_out, which is linear in x_0 and eps; and an error of the output
is an error of x_0 times c_out, so a weight w on the squared error of x_0 is w c_out^2 on the output's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_same_shape
from guided_diffusers.core.declared import Positive, read
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import coefficients
from guided_diffusers.core.process import Process

Levels = Callable[[Tensor], NoiseLevel]
Weighting = Callable[[NoiseLevel, str], Tensor]


def uniform_levels(process: Process, shift: float = 1.0) -> Levels:
    """Uniform in the process's own time: over the timesteps, or over sigma for flow matching.

    A `shift` multiplies sigma / alpha afterwards: for flow matching it makes sigma of the uniform u into
    shift u / (1 + (shift - 1) u), as FlowMatchEulerDiscreteScheduler's `shift` does in sampling.

    References:
        Esser et al., "Scaling Rectified Flow Transformers" (arXiv:2403.03206), equation 23: the shift.
    """
    return _shifted(process, process.at_fraction, shift)


def log_normal_levels(process: Process, mean: float = -0.4, std: float = 1.2, shift: float = 1.0) -> Levels:
    """log(sigma / alpha) ~ N(mean, std^2), at the nearest level of the process; `shift` as of uniform ones.

    The defaults suit data of deviation 1; EDM's published mean of -1.2 is for a deviation of 0.5.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv:2206.00364),
            table 1.
    """
    mean, std = read("mean", mean, float), read("std", std, Positive)

    def levels(u: Tensor) -> NoiseLevel:
        # Karras et al., table 1: ln sigma ~ N(P_mean, P_std^2)
        return process.at_log_noise_to_signal(mean + std * torch.special.ndtri(u.double()))

    return _shifted(process, levels, shift)


def logit_normal_levels(process: Process, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> Levels:
    """`log_normal_levels` with the defaults of flow matching, where log(sigma / alpha) is the logit of sigma.

    References:
        Esser et al., "Scaling Rectified Flow Transformers" (arXiv:2403.03206), equation 19.
    """
    return log_normal_levels(process, mean, std, shift)


def _shifted(process: Process, levels: Levels, shift: float) -> Levels:
    if read("shift", shift, Positive) == 1:
        return levels
    # Esser et al., equation 23: t_m = s t_n / (1 + (s - 1) t_n), which is log(sigma / alpha) + log s
    return lambda u: process.at_log_noise_to_signal(levels(u).noise_to_signal.log() + math.log(shift))


def cosine_levels(process: Process) -> Levels:
    """The levels of a cosine schedule, sigma / alpha = tan(pi u / 2), at the nearest level of the process.

    References:
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672),
            equation 17.
    """
    # Nichol and Dhariwal, equation 17: sqrt(abar) = cos(pi u / 2)
    return lambda u: process.at_log_noise_to_signal(torch.log(torch.tan(u.double() * (torch.pi / 2))))


LevelDistribution = Literal["uniform", "log_normal", "logit_normal", "cosine"]
LEVEL_DISTRIBUTIONS: dict[LevelDistribution, Callable[..., Levels]] = {
    "uniform": uniform_levels,
    "log_normal": log_normal_levels,
    "logit_normal": logit_normal_levels,
    "cosine": cosine_levels,
}


def quartile(levels: Levels, level: NoiseLevel) -> Tensor:
    """The quarter of a distribution that each level is in: 0 the cleanest, 3 the noisiest; `(batch,)`."""
    edges = levels(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).noise_to_signal
    return torch.bucketize(level.noise_to_signal, edges, right=True)


def add_noise(x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x_t = alpha x_0 + sigma eps, `(batch, ...)`."""
    # Ho et al. (arXiv:2006.11239), equation 4
    return broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * noise


def target(x0: Tensor, noise: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """The network's output that `to_denoised` turns into the true x_0.

    It equals `from_denoised(x0, add_noise(x0, noise, level), level, prediction_type)` without the
    cancellation at small sigma: the coefficients of x_0 and eps are computed in float64.

    Args:
        x0: The clean sample, `(batch, ...)`.
        noise: eps, of x0's shape.
        level: 0-dim or `(batch,)`, with sigma > 0.
        prediction_type: One of `prediction.PREDICTION_TYPES`.

    Raises:
        ValueError: An unknown prediction type, or epsilon prediction at alpha = 0.
    """
    skip, out = coefficients(level, prediction_type)
    if out.device.type == "cpu" and not (out != 0).all():
        raise ValueError(f"level has sigma = 0, where prediction_type {prediction_type!r} has no target")
    # output = (x_0 - c_skip x_t) / c_out with x_t = alpha x_0 + sigma eps
    of_x0, of_noise = (1 - skip * level.alpha) / out, -skip * level.sigma / out
    return broadcast(of_x0, x0) * x0 + broadcast(of_noise, x0) * noise


def uniform_weight(level: NoiseLevel, prediction_type: str) -> Tensor:
    """1: the plain squared error of the network's output."""
    return torch.ones_like(level.sigma)


def min_snr_weight(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the squared error of x_0, as a weight on the output's, whatever its prediction type.

    That is min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v_prediction.

    References:
        Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556),
            section 3.4.
    """
    gamma = read("gamma", gamma, Positive)

    def weight(level: NoiseLevel, prediction_type: str) -> Tensor:
        _, out = coefficients(level, prediction_type)
        # Hang et al., section 3.4
        return (level.alpha / level.sigma).square().clamp(max=gamma) * out.square()

    return weight


def denoising_loss(
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    prediction_type: str,
    weighting: Weighting = uniform_weight,
) -> Tensor:
    """The weighted squared error of a network's output, averaged over all but the batch.

    Args:
        output: The network's output at (input_scale x_t, timestep), `(batch, ...)`.
        x0: The clean sample, of output's shape.
        noise: eps, of output's shape.
        level: The noise level of x_t, 0-dim or `(batch,)`, with sigma > 0.
        prediction_type: One of `prediction.PREDICTION_TYPES`.
        weighting: `(level, prediction_type) -> weights` of the squared error, of level's shape.

    Returns:
        `(batch,)`, float32 (float64 where x0 is).
    """
    check_same_shape("output", output, "x0", x0)
    error = output.to(x0.dtype) - target(x0, noise, level, prediction_type)
    weight = weighting(level, prediction_type).to(error.device, error.dtype)
    # Ho et al., equation 14, of any prediction type and weight
    return weight * error.square().flatten(1).mean(1)
