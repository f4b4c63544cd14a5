"""The variance-preserving process in discrete time: its tables, and the chain of timesteps that is listed.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. A scheduler that is asked for fewer steps than it was trained
with runs a shorter chain over the listed timesteps t_1 < ... < t_n, whose betas are 1 - abar(t_i) /
abar(t_{i-1}) and whose previous timestep is always the next one listed. Tables are float64 and cast where
they meet a sample: with float32 tables, 1 - abar loses three digits near the clean end.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239): the chain, equations 4 to 7.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672): the cosine
        schedule (equation 17), learned variances (equation 15), shorter chains (section 4).
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891): zero
        terminal SNR (algorithm 1), the spacings of timesteps (table 2).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.noise_level import NoiseLevel, broadcast
from guided_diffusers.prediction import at_least_float32, to_denoised

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
_MAX_BETA = 0.999


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start


def _from_abar(abar: Callable[[float], float], steps: int) -> Tensor:
    values = [min(1 - abar((i + 1) / steps) / abar(i / steps), _MAX_BETA) for i in range(steps)]
    return torch.tensor(values, dtype=torch.float64)


def _cosine(steps: int, start: float, end: float) -> Tensor:
    return _from_abar(lambda time: math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2, steps)


def _laplace(steps: int, start: float, end: float) -> Tensor:
    def abar(time: float) -> float:
        half_log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
        return (1 / (1 + math.exp(-half_log_snr))) ** 0.5

    return _from_abar(abar, steps)


_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
    "laplace": _laplace,
}
BETA_SCHEDULES = tuple(_BETAS)


def abar_table(config: Any) -> Tensor:
    """The table of abar, (num_train_timesteps,) float64, that a scheduler's configuration describes.

    Raises:
        ValueError: An unknown beta_schedule, or trained_betas that are not a list of numbers.
    """
    if config.trained_betas is not None:
        betas = torch.as_tensor(config.trained_betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"trained_betas has shape {tuple(betas.shape)}; it must be a list of numbers")
    elif config.beta_schedule in _BETAS:
        betas = _BETAS[config.beta_schedule](config.num_train_timesteps, config.beta_start, config.beta_end)
    else:
        raise ValueError(
            f"beta_schedule is {config.beta_schedule!r}; allowed: {', '.join(BETA_SCHEDULES)}; or give "
            "trained_betas"
        )
    abar = torch.cumprod(1 - betas, dim=0)
    return _with_zero_terminal_snr(abar) if config.rescale_betas_zero_snr else abar


def _with_zero_terminal_snr(abar: Tensor) -> Tensor:
    """Shift and stretch sqrt(abar): it keeps its first value and ends at 0 (Lin et al., algorithm 1)."""
    alpha = abar.sqrt()
    return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The chain over listed timesteps, noisiest first.

    Attributes:
        timesteps: The listed timesteps, descending.
        abar: abar at each of them, (n,) float64.
        abar_previous: abar at the next one listed, and 1 after the last, (n,) float64.
    """

    timesteps: tuple[int, ...]
    abar: Tensor
    abar_previous: Tensor

    @cached_property
    def places(self) -> dict[int, int]:
        """The place of each timestep in the list."""
        return {timestep: place for place, timestep in enumerate(self.timesteps)}

    @cached_property
    def beta(self) -> Tensor:
        """The variance of one step of the forward process: the upper limit of a reverse step's."""
        return 1 - self.abar / self.abar_previous

    @cached_property
    def posterior_variance(self) -> Tensor:
        """The variance of q(x_previous | x_t, x_0), the lower limit; 0 at the clean end."""
        return self.beta * (1 - self.abar_previous) / (1 - self.abar)

    @cached_property
    def log_posterior_variance(self) -> Tensor:
        """Its logarithm; at the clean end that of the step before, as the papers' code has it.

        A chain of one step has no step before: there it is the upper limit's.
        """
        before_last = self.posterior_variance[-2:-1] if len(self.timesteps) > 1 else self.beta
        return torch.cat([self.posterior_variance[:-1], before_last]).log()


def spaced_timesteps(spacing: str, count: int, train: int, offset: int) -> list[int]:
    """`count` of `train` timesteps, descending, in one of the spacings of Lin et al., table 2.

    Raises:
        ValueError: An unknown spacing, a count outside [1, train], or an offset that leads out of the table.
    """
    if spacing not in TIMESTEP_SPACINGS:
        raise ValueError(f"timestep_spacing is {spacing!r}; allowed: {', '.join(TIMESTEP_SPACINGS)}")
    if not 1 <= count <= train:
        raise ValueError(f"num_inference_steps is {count}; allowed: 1 to {train}, the timesteps of training")
    if spacing == "linspace":
        ascending = torch.linspace(0, train - 1, count, dtype=torch.float64).round()
    elif spacing == "leading":
        ascending = torch.arange(count) * (train // count) + offset
    else:
        ascending = (train - torch.arange(count, dtype=torch.float64).flip(0) * (train / count)).round() - 1
    if ascending[-1] >= train:
        raise ValueError(
            f"steps_offset {offset} with {count} steps leads to timestep {int(ascending[-1])}; the last one "
            f"is {train - 1}: use fewer steps or steps_offset 0"
        )
    return ascending.long().flip(0).tolist()


class VariancePreservingMixin:
    """What the DDPM and DDIM schedulers share; goes before the scheduler of diffusers in the bases.

    `config` is read anew at every call, except for what makes the table of abar, which is read once.
    """

    config: Any
    timesteps: Tensor
    num_inference_steps: int | None

    def _set_tables(self) -> None:
        self._abar = abar_table(self.config)
        betas = 1 - self._abar / torch.cat([torch.ones(1, dtype=torch.float64), self._abar[:-1]])
        # The public tables of diffusers, which other libraries read; nothing here does.
        self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), self._abar.float()
        self.custom_timesteps = False
        self.num_inference_steps = None
        self.timesteps = torch.arange(len(self._abar)).flip(0)
        self._chain_of: tuple[Tensor, Chain] | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | Tensor | None = None,
    ) -> None:
        """List the timesteps of a run: evenly spaced (`config.timestep_spacing`) or given.

        Args:
            num_inference_steps: How many, from 1 to the timesteps of training.
            device: Where `self.timesteps` is put.
            timesteps: The timesteps themselves, strictly descending, instead of their number.

        Raises:
            ValueError: Both or neither of the two, or a value out of range.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give one of num_inference_steps and timesteps, not both or neither")
        train = len(self._abar)
        if timesteps is None:
            count = _as_int("num_inference_steps", num_inference_steps)
            listed = spaced_timesteps(self.config.timestep_spacing, count, train, self.config.steps_offset)
        else:
            listed = [_as_int("timesteps", t) for t in timesteps]
            falls = all(after < before for before, after in zip(listed, listed[1:], strict=False))
            if not listed or not falls or not 0 <= listed[-1] <= listed[0] < train:
                raise ValueError(
                    f"timesteps are {listed}; they must be strictly descending, in 0 to {train - 1}"
                )
        self.custom_timesteps = timesteps is not None
        self.num_inference_steps = len(listed)
        self.timesteps = torch.tensor(listed, dtype=torch.int64).to(device)

    @property
    def _chain(self) -> Chain:
        """The chain over `self.timesteps`: all of training's before set_timesteps."""
        if self._chain_of is None or self._chain_of[0] is not self.timesteps:
            listed = self.timesteps.tolist()
            abar = self._abar[listed]
            previous = torch.cat([abar[1:], self._final_abar().reshape(1)])
            chain = Chain(timesteps=tuple(listed), abar=abar, abar_previous=previous)
            self._chain_of = (self.timesteps, chain)
        return self._chain_of[1]

    def _final_abar(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def _place(self, timestep: Tensor | int) -> Tensor:
        """Where timesteps stand in the list, of timestep's shape: () or (batch,)."""
        given = torch.as_tensor(timestep)
        places = self._chain.places
        wanted = given.flatten().tolist()
        missing = [t for t in wanted if t not in places]
        if missing or given.ndim > 1:
            raise ValueError(
                f"timestep is {timestep}; it must be one, or (batch,), of the {len(places)} timesteps in "
                f"{type(self).__name__}.timesteps, which begin {list(places)[:5]}"
            )
        return torch.tensor([places[t] for t in wanted]).reshape(given.shape)

    def previous_timestep(self, timestep: Tensor | int) -> Tensor:
        """The timestep that a step from a listed one arrives at: the next one listed, -1 after the last."""
        following = torch.tensor([*self._chain.timesteps[1:], -1])
        return following[self._place(timestep)]

    def noise_level(self, timestep: Tensor | int) -> NoiseLevel:
        """The noise level at listed timesteps, of timestep's shape: () or (batch,).

        Raises:
            ValueError: A timestep that is not listed; before set_timesteps all of training's are.
        """
        abar = self._chain.abar[self._place(timestep)]
        return NoiseLevel(alpha=abar.sqrt(), sigma=(1 - abar).sqrt(), timestep=timestep)

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the channels of a learned variance where the network has them."""
        channels, given = sample.shape[1], model_output.shape[1]
        if given not in (channels, 2 * channels):
            raise ValueError(
                f"model_output has {given} channels; a sample of {channels} needs {channels}, or "
                f"{2 * channels} with a learned variance"
            )
        return model_output[:, :channels], model_output[:, channels:] if given > channels else None

    def _denoise(self, output: Tensor, timestep: Tensor | int, sample: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 clipped or thresholded as configured, and x_0 before that; at least float32."""
        kind = self.config.prediction_type
        if kind not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {kind!r}; allowed: {', '.join(PREDICTION_TYPES)}")
        raw = to_denoised(output, sample, self.noise_level(timestep), kind)
        if self.config.thresholding:
            return self._threshold_sample(raw), raw
        if self.config.clip_sample:
            return raw.clamp(-self.config.clip_sample_range, self.config.clip_sample_range), raw
        return raw, raw

    def _epsilon(self, x0: Tensor, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """The noise that x_0 leaves of the sample: (x_t - alpha x_0) / sigma, also where alpha is 0."""
        level, sample = self.noise_level(timestep), at_least_float32(sample)
        return (sample - broadcast(level.alpha, sample) * x0) * broadcast(1 / level.sigma, sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Alpha x_0 + sigma eps at any timesteps of training, () or (batch,); of original_samples' dtype."""
        return self._mix(timesteps, original_samples, noise, original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction, alpha eps - sigma x_0 with x_0 = `sample`; of sample's dtype."""
        return self._mix(timesteps, noise, -sample, sample.dtype)

    def _mix(self, timesteps: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
        abar = self._abar[torch.as_tensor(timesteps).long().cpu()]
        first, second = at_least_float32(first), at_least_float32(second)
        return (broadcast(abar.sqrt(), first) * first + broadcast((1 - abar).sqrt(), first) * second).to(
            dtype
        )


def _as_int(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be integers; got {value!r}") from None
