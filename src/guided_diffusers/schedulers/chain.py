"""Tables of the variance-preserving process in discrete time: abar, spacings, the chain that is listed.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. A scheduler that is asked for fewer steps than it was trained
with runs a shorter chain over the listed timesteps t_1 < ... < t_n, with betas 1 - abar(t_i) / abar(t_{i-1}).
Tables are float64 and cast where they meet a sample: in float32, 1 - abar loses digits near the clean end.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239): the chain, equations 4 to 7.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672): the cosine
        schedule (equation 17), shorter chains (section 4).
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891): zero
        terminal SNR (algorithm 1), the spacings of timesteps (table 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int, check_number, shown
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import coefficients

TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
_MAX_BETA = 0.999
MAX_TRAIN_TIMESTEPS = 1_000_000

Place = int | Tensor  # in the list of timesteps: one for the batch, or (batch,) int64
Coefficient = float | Tensor  # likewise, (batch,) float64


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

    From the first beta above 1 on it is NaN: diffusers makes schedulers of such betas, and there is no such
    process. What reads a noise level refuses those timesteps (`check_levels`).

    Raises:
        ValueError: An unknown beta_schedule, betas below 0, or trained_betas that are not a list of numbers.
    """
    with torch.device("cpu"):  # the values are checked, also of a model that is made on the meta device
        betas = _betas(config)
    if not (betas >= 0).all():
        name = "beta_start and beta_end give" if config.trained_betas is None else "trained_betas are"
        raise ValueError(
            f"{name} betas from {betas.min().item():g} to {betas.max().item():g}; allowed: from 0 to 1"
        )
    impossible = (betas > 1).cumsum(dim=0) > 0
    abar = torch.cumprod(1 - betas, dim=0)
    abar[impossible] = math.nan
    return _with_zero_terminal_snr(abar) if config.rescale_betas_zero_snr else abar


def check_levels(abar: Tensor, timesteps: Any) -> None:
    """Raise ValueError where an entry of the table that is read, () or (batch,), is no noise level."""
    if abar.isnan().any():
        raise ValueError(
            f"timestep is {shown(timesteps)}, which has no noise level: the scheduler's betas reach above 1; "
            "allowed: betas from 0 to 1"
        )


def _betas(config: Any) -> Tensor:
    if config.trained_betas is not None:
        try:
            betas = torch.as_tensor(config.trained_betas, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            betas = torch.empty(0)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"trained_betas is {shown(config.trained_betas)}; allowed: a list of numbers")
        return betas
    count = check_int("num_train_timesteps", config.num_train_timesteps, 1, MAX_TRAIN_TIMESTEPS)
    if not isinstance(config.beta_schedule, str) or config.beta_schedule not in _BETAS:
        raise ValueError(
            f"beta_schedule is {shown(config.beta_schedule)}; allowed: {', '.join(BETA_SCHEDULES)}; or give "
            "trained_betas"
        )
    limits = {"beta_start": 0.0, "beta_end": 0.0}  # of schedules that have their own
    if config.beta_schedule not in ("squaredcos_cap_v2", "laplace"):
        limits = {name: check_number(name, getattr(config, name), 0, 1e6) for name in limits}
    return _BETAS[config.beta_schedule](count, *limits.values())


def _with_zero_terminal_snr(abar: Tensor) -> Tensor:
    """Shift and stretch sqrt(abar): it keeps its first value and ends at 0 (Lin et al., algorithm 1)."""
    alpha = abar.sqrt()
    return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2


def spaced_timesteps(spacing: str, count: int, train: int, offset: int) -> list[int]:
    """`count` of `train` timesteps, descending, in one of the spacings of Lin et al., table 2.

    Raises:
        ValueError: An unknown spacing, a count outside [1, train], or an offset that leads out of the table.
    """
    if not isinstance(spacing, str) or spacing not in TIMESTEP_SPACINGS:
        raise ValueError(f"timestep_spacing is {shown(spacing)}; allowed: {', '.join(TIMESTEP_SPACINGS)}")
    if not 1 <= count <= train:
        raise ValueError(
            f"num_inference_steps is {shown(count)}; allowed: 1 to {train}, the timesteps of training"
        )
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


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The chain over listed timesteps, noisiest first, and all that follows from its abar; (n,) float64 each.

    Attributes:
        timesteps: The listed timesteps, descending.
        abar: abar at each of them.
        abar_previous: abar at the next one listed, and what the last step arrives at.
    """

    timesteps: tuple[int, ...]
    abar: Tensor
    abar_previous: Tensor

    @cached_property
    def places(self) -> dict[int, int]:
        """The place of each timestep in the list."""
        return {timestep: place for place, timestep in enumerate(self.timesteps)}

    @cached_property
    def is_whole(self) -> bool:
        """Whether every listed timestep has a noise level, see `abar_table`."""
        return not bool(self.abar.isnan().any())

    @cached_property
    def alpha(self) -> Tensor:
        """Signal scale."""
        return self.abar.sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        """Noise scale."""
        return (1 - self.abar).sqrt()

    @cached_property
    def beta(self) -> Tensor:
        """The variance of one step of the forward process: the upper limit of a reverse step's."""
        return 1 - self.abar / self.abar_previous

    @cached_property
    def log_beta(self) -> Tensor:
        """The logarithm of that."""
        return self.beta.log()

    @cached_property
    def posterior_variance(self) -> Tensor:
        """The variance of q(x_previous | x_t, x_0), the lower limit; 0 at the clean end."""
        return self.beta * (1 - self.abar_previous) / (1 - self.abar)

    @cached_property
    def posterior_of_x0(self) -> Tensor:
        """What multiplies x_0 in the mean of q(x_previous | x_t, x_0)."""
        return self.abar_previous.sqrt() * self.beta / (1 - self.abar)

    @cached_property
    def posterior_of_sample(self) -> Tensor:
        """What multiplies x_t in that mean."""
        return (1 - self.beta).sqrt() * (1 - self.abar_previous) / (1 - self.abar)

    @cached_property
    def limited_posterior_variance(self) -> Tensor:
        """The posterior variance, at the clean end that of the step before, as the papers' code has it.

        A chain of one step has no step before: there it is the upper limit's.
        """
        before_last = self.posterior_variance[-2:-1] if len(self.timesteps) > 1 else self.beta
        return torch.cat([self.posterior_variance[:-1], before_last])

    @cached_property
    def log_posterior_variance(self) -> Tensor:
        """The logarithm of that: finite everywhere."""
        return self.limited_posterior_variance.log()

    @cached_property
    def limited_beta(self) -> Tensor:
        """beta, at the clean end replaced by the limited posterior variance."""
        return torch.cat([self.beta[:-1], self.limited_posterior_variance[-1:]])

    @cached_property
    def _numbers(self) -> dict[str, list]:
        return {}

    def at(self, table: str, place: Place) -> Coefficient:
        """An entry of a table: for an int a number, which is cheaper to work with than a 0-dim tensor."""
        if isinstance(place, Tensor):
            return getattr(self, table)[place]
        if table not in self._numbers:
            self._numbers[table] = getattr(self, table).tolist()
        return self._numbers[table][place]

    def row(self, prediction_type: str, place: Place) -> tuple[Coefficient, Coefficient]:
        """The row of the prediction table at a place: x_0 = c_skip x_t + c_out output."""
        if isinstance(place, Tensor) or self.abar[0] == 0 or not self.is_whole:  # not every place has a row
            return coefficients(NoiseLevel(alpha=self.alpha[place], sigma=self.sigma[place]), prediction_type)
        if prediction_type not in self._numbers:
            rows = coefficients(NoiseLevel(alpha=self.alpha, sigma=self.sigma), prediction_type)
            self._numbers[prediction_type] = torch.stack(rows, dim=1).tolist()
        return self._numbers[prediction_type][place]


def shaped(coefficient: Coefficient, sample: Tensor) -> Tensor | float:
    """A coefficient such that it multiplies a sample: a number as it is, (batch,) as (batch, 1, ...)."""
    return broadcast(coefficient, sample) if isinstance(coefficient, Tensor) else coefficient


def root(coefficient: Coefficient) -> Coefficient:
    """The square root; of what rounding made negative, 0."""
    if isinstance(coefficient, Tensor):
        return coefficient.clamp_min(0).sqrt()
    return max(coefficient, 0.0) ** 0.5
