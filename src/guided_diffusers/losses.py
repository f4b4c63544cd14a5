"""The denoising loss: a noise level drawn for every sample, the network's target there, a weight.

A distribution of noise levels is a quantile function: it maps u, uniform on (0, 1), to a level, from clean to
noisy. With u from one generator a sample, levels depend on the samples' positions in training alone; and the
quartiles that a log reports by are the levels at u = 1/4, 1/2 and 3/4.

Targets and weights come from the table in `prediction`. With x_0 = c_skip x_t + c_out output, the output that
gives the true x_0 is (x_0 - c_skip x_t) / c_out, which is linear in x_0 and eps; and an error of the output
is an error of x_0 times c_out, so a weight w on the squared error of x_0 is w c_out^2 on the output's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int, check_number, check_same_shape, check_tensor, shown
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import coefficients

Levels = Callable[[Tensor], NoiseLevel]
Weighting = Callable[[NoiseLevel, str], Tensor]


class Process(Protocol):
    """A family of noise levels, from clean to noisy."""

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at a fraction in [0, 1) of the process's own time, (batch,)."""

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The level of this process whose log(sigma / alpha) is nearest to a value, (batch,)."""


@dataclass(frozen=True, eq=False)
class DiscreteProcess:
    """The training timesteps of a variance-preserving scheduler.

    Args:
        alphas_cumprod: alpha^2 at timesteps 0, 1, ..., falling; (timesteps,).
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        """Check the table."""
        table = check_tensor("alphas_cumprod", self.alphas_cumprod, ("timesteps",))
        if not len(table) or not ((table >= 0) & (table <= 1)).all():
            raise ValueError(f"alphas_cumprod is {shown(table)}; allowed: at least one value from 0 to 1")

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at timestep floor(fraction x timesteps)."""
        fraction, count = _fractions(fraction), len(self.alphas_cumprod)
        return self._at((fraction * count).long().clamp(0, count - 1))

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The nearest timestep's level."""
        table = -self._at(torch.arange(len(self.alphas_cumprod))).log_snr / 2
        value = check_tensor("value", value, ("batch",)).double()
        return self._at(torch.searchsorted((table[1:] + table[:-1]) / 2, value))

    def _at(self, timestep: Tensor) -> NoiseLevel:
        squared = self.alphas_cumprod.double()[timestep]
        return NoiseLevel(alpha=squared.sqrt(), sigma=(1 - squared).sqrt(), timestep=timestep)


@dataclass(frozen=True)
class FlowProcess:
    """Flow matching, alpha = 1 - sigma: any sigma in (0, 1), with timestep num_train_timesteps x sigma."""

    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        """Check the number."""
        check_int("num_train_timesteps", self.num_train_timesteps, 1, None)

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at sigma = fraction."""
        return self._at(_fractions(fraction).double())

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The level at sigma / (1 - sigma) = exp(value)."""
        return self._at(torch.sigmoid(check_tensor("value", value, ("batch",)).double()))

    def _at(self, sigma: Tensor) -> NoiseLevel:
        sigma = sigma.clamp(
            1e-5, 1 - 1e-5
        )  # both ends have levels without a target: sigma = 0, or without x_0
        return NoiseLevel(alpha=1 - sigma, sigma=sigma, timestep=(sigma * self.num_train_timesteps).float())


def _fractions(fraction: Tensor) -> Tensor:
    return check_tensor("fraction", fraction, ("batch",))


def process_of(scheduler: Any) -> Process:
    """The noise levels to train a scheduler's network on.

    Args:
        scheduler: a flow-matching one, or one that uses flow sigmas, whose timestep is
            sigma x `config.num_train_timesteps`; or else one with `alphas_cumprod` (DDPM, DDIM and their
            kind).

    Raises:
        ValueError: for a scheduler that is neither, or whose timesteps count from noise to data.
    """
    config = getattr(scheduler, "config", {})
    if config.get("invert_sigmas"):
        raise ValueError(
            f"scheduler {type(scheduler).__name__} has invert_sigmas=True, whose timesteps count from noise "
            "to data; allowed for training: False"
        )
    if "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas"):
        return FlowProcess(config.num_train_timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        return DiscreteProcess(scheduler.alphas_cumprod)
    raise ValueError(
        f"scheduler {type(scheduler).__name__} has no training noise levels; allowed: one with "
        "alphas_cumprod, such as GuidedDDPMScheduler, or a flow-matching one "
        "(FlowMatchEulerDiscreteScheduler)"
    )


def uniform_levels(process: Process) -> Levels:
    """Uniform in the process's own time: over the timesteps, or over sigma for flow matching."""
    return process.at_fraction


def log_normal_levels(process: Process, mean: float = -0.4, std: float = 1.2) -> Levels:
    """log(sigma / alpha) ~ N(mean, std^2), at the nearest level of the process.

    The defaults suit data of deviation 1; EDM's published mean of -1.2 is for a deviation of 0.5. Flow
    matching with mean 0 and std 1 is the logit-normal distribution.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364,
        table 1. Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206, section 3.1:
        logit-normal.
    """
    mean, std = check_number("mean", mean), check_number("std", std, 0, above=True)
    return lambda u: process.at_log_noise_to_signal(mean + std * torch.special.ndtri(_fractions(u).double()))


def cosine_levels(process: Process) -> Levels:
    """The levels of a cosine schedule, sigma / alpha = tan(pi u / 2), at the nearest level of the process.

    References:
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672, eq. 17.
    """
    return lambda u: process.at_log_noise_to_signal(
        torch.log(torch.tan(_fractions(u).double() * (torch.pi / 2)))
    )


LevelDistribution = Literal["uniform", "log_normal", "cosine"]
LEVEL_DISTRIBUTIONS: dict[LevelDistribution, Callable[..., Levels]] = {
    "uniform": uniform_levels,
    "log_normal": log_normal_levels,
    "cosine": cosine_levels,
}


def quartile(levels: Levels, level: NoiseLevel) -> Tensor:
    """The quarter of a distribution that each level falls into: 0 the cleanest, 3 the noisiest; (batch,)."""
    edges = levels(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).noise_to_signal
    return torch.bucketize(level.noise_to_signal, edges, right=True)


def add_noise(x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x_t = alpha x_0 + sigma eps, (batch, ...)."""
    check_same_shape("noise", noise, "x0", check_tensor("x0", x0, ("batch", "...")))
    if not isinstance(level, NoiseLevel):
        raise TypeError(f"level is {shown(level)}; allowed: a NoiseLevel")
    return broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * noise


def target(x0: Tensor, noise: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """The network's output that `to_denoised` turns into the true x_0.

    It equals `from_denoised(x0, add_noise(x0, noise, level), level, prediction_type)` without the
    cancellation at small sigma: the coefficients of x_0 and eps are computed in float64.

    Args:
        x0: (batch, ...).
        noise: eps, of x0's shape.
        level: 0-dim or (batch,), with sigma > 0.
        prediction_type: one of `prediction.PREDICTION_TYPES`.

    Raises:
        ValueError: for an unknown prediction type, or epsilon prediction at alpha = 0.
    """
    check_same_shape("noise", noise, "x0", check_tensor("x0", x0, ("batch", "...")))
    skip, out = coefficients(level, prediction_type)
    if out.device.type == "cpu" and not (out != 0).all():
        raise ValueError(f"level has sigma = 0, where prediction_type {prediction_type!r} has no target")
    of_x0, of_noise = (1 - skip * level.alpha) / out, -skip * level.sigma / out
    return broadcast(of_x0, x0) * x0 + broadcast(of_noise, x0) * noise


def uniform_weight(level: NoiseLevel, prediction_type: str) -> Tensor:
    """1: the plain squared error of the network's output."""
    return torch.ones_like(level.sigma)


def min_snr_weight(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the squared error of x_0, as a weight on the output's, whatever its prediction type.

    That is min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v_prediction.

    References:
        Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv:2303.09556, section
        3.4.
    """
    gamma = check_number("gamma", gamma, 0, above=True)

    def weight(level: NoiseLevel, prediction_type: str) -> Tensor:
        _, out = coefficients(level, prediction_type)
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
        output: the network's output at (input_scale x_t, timestep), (batch, ...).
        x0: the clean sample, of output's shape.
        noise: eps, of output's shape.
        level: the noise level of x_t, 0-dim or (batch,), with sigma > 0.
        prediction_type: one of `prediction.PREDICTION_TYPES`.
        weighting: (level, prediction_type) -> weights of the squared error, of level's shape.

    Returns:
        (batch,), float32 (float64 where x0 is).
    """
    check_same_shape("output", output, "x0", check_tensor("x0", x0, ("batch", "...")))
    error = output.to(x0.dtype) - target(x0, noise, level, prediction_type)
    weight = weighting(level, prediction_type).to(error.device, error.dtype)
    return weight * error.square().flatten(1).mean(1)
