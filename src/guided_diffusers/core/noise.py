"""The noise level: what a scheduler contributes to sampling and training.

Every diffusion process used here noises a sample as

    x_t = alpha x_0 + sigma eps,    eps ~ N(0, I),

in the coordinates of the scheduler's own sample: variance-preserving (alpha^2 + sigma^2 = 1),
variance-exploding (alpha = 1) or flow matching (alpha = 1 - sigma). A `NoiseLevel` is one such pair, with
what the network is told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that

_ROUNDING = 1e-6


def _in_range(value: Any, most: float) -> Tensor | None:
    """A number, or one a sample, as a float64 tensor; None for anything else, and outside 0 to `most`.

    Whether they are in range is not asked where that waits for a device.
    """
    if isinstance(value, str | bytes | bool | complex) or (torch.is_tensor(value) and value.is_complex()):
        return None
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    if tensor.ndim > 1 or tensor.device.type != "cpu":
        return tensor if tensor.ndim < 2 else None
    if tensor.ndim == 0:  # one number is compared as such, which is quicker
        return tensor if 0 <= tensor.item() <= most else None
    return tensor if bool(((tensor >= 0) & (tensor <= most)).all()) else None


_RANGES = (
    ("alpha", 1 + _ROUNDING, "from 0 to 1"),
    ("sigma", torch.inf, "of at least 0"),
    ("input_scale", torch.inf, "of at least 0"),
)
Coefficient = Tensor | float
"""A number, or float64 numbers one a sample."""
Factors = Callable[[Coefficient, Coefficient, Coefficient], tuple[Coefficient, ...]]


@dataclass(frozen=True, kw_only=True, init=False)
class NoiseLevel:
    """One noise level, or a batch of them: `x_t = alpha x_0 + sigma eps`.

    Args:
        alpha: Signal scale, in [0, 1]; 0-dim or `(batch,)`. Kept in float64.
        sigma: Noise scale, >= 0; of alpha's shape. Kept in float64.
        timestep: What the network receives as its timestep, in the scheduler's own units; 0-dim or
            `(batch,)`.
        input_scale: The network sees `input_scale * x_t` (1 for variance-preserving processes and flow
            matching, `1 / sqrt(1 + sigma^2)` for variance-exploding ones). Kept in float64.

    Raises:
        ValueError: Not a number, nor one a sample; or, of values on the CPU, out of range.
    """

    alpha: Tensor
    sigma: Tensor
    timestep: Tensor | float | None
    input_scale: Tensor
    _run: ClassVar[_Run | None] = None
    _place: ClassVar[int] = 0

    def __init__(
        self,
        *,
        alpha: Coefficient,
        sigma: Coefficient,
        timestep: Tensor | float | None = None,
        input_scale: Coefficient = 1.0,
    ) -> None:
        given = {"alpha": alpha, "sigma": sigma, "input_scale": input_scale}
        for name, most, limits in _RANGES:
            value = _in_range(given[name], most)
            if value is None:
                check_that(False, name, given[name], f"a number {limits}, or one a sample")
            object.__setattr__(self, name, value)
        shape = tuple(self.alpha.shape)
        if shape and self.sigma.shape not in ((), shape):
            check_that(False, "sigma", self.sigma, f"alpha's shape, {shape}")
        if not isinstance(timestep, Tensor | int | float | np.number | None):
            check_that(False, "timestep", timestep, "None, a number, or one a sample")
        object.__setattr__(self, "timestep", timestep)

    @cached_property
    def scalars(self) -> tuple[Coefficient, Coefficient, Coefficient]:
        """Alpha, sigma and input_scale as floats where they are one number each, which multiply fastest.

        One a sample, on an accelerator or with a graph they are the tensors.
        """
        values = self.alpha, self.sigma, self.input_scale
        if any(value.ndim or value.requires_grad or value.device.type != "cpu" for value in values):
            return values
        return self.alpha.item(), self.sigma.item(), self.input_scale.item()

    def each(self, timesteps: Sequence[Any]) -> list[NoiseLevel]:
        """The levels of a run one by one, each with its timestep; None is that of its end, the last."""
        table = torch.stack([self.alpha, self.sigma, self.input_scale.expand_as(self.alpha)], dim=1)
        asked = len(timesteps) - (timesteps[-1] is None)
        run, names = _Run(table[:asked].unbind(1)), ("alpha", "sigma", "input_scale")
        levels = []
        for place, (timestep, row, scalars) in enumerate(zip(timesteps, table, table.tolist(), strict=True)):
            level = object.__new__(NoiseLevel)  # of values that are in their range already
            own = {"timestep": timestep, "scalars": tuple(scalars)}
            vars(level).update(zip(names, row.unbind(), strict=True), **own)
            if place < asked:
                vars(level).update(_run=run, _place=place)
            levels.append(level)
        return levels

    def factors(self, name: Hashable, make: Factors, sample: Tensor) -> tuple[Coefficient, ...]:
        """What multiplies a sample at this level; it is made once for all levels at which a run asks.

        Args:
            name: Of the function: it stands for it among what the run keeps.
            make: From alpha, sigma and input_scale, floats or tensors of one shape, to coefficients of such.
            sample: `(batch, ...)`.
        """
        if self._run is None:
            return tuple(factor(each, sample) for each in make(*self.scalars))
        key = name, sample.dtype
        if key not in self._run.kept:
            made = [torch.as_tensor(each).to(sample.dtype).unbind() for each in make(*self._run.columns)]
            self._run.kept[key] = list(zip(*made, strict=True))
        return self._run.kept[key][self._place]

    @property
    def noise_to_signal(self) -> Tensor:
        """`sigma / alpha`, the coordinate of guidance intervals; infinite where nothing of x_0 is left."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Tensor:
        """`log(alpha^2 / sigma^2)`, in nats; minus infinity at pure noise, plus infinity at the clean end."""
        return 2 * (self.alpha.log() - self.sigma.log())


@dataclass(frozen=True)
class _Run:
    """Alpha, sigma and input_scale of a run's levels, `(steps,)` each, and what was made of them."""

    columns: tuple[Tensor, ...]
    kept: dict[Hashable, list[tuple[Tensor, ...]]] = field(default_factory=dict)


def factor(coefficient: Coefficient, sample: Tensor) -> Coefficient:
    """What multiplies a sample: a float as it is, a tensor by `broadcast`."""
    return coefficient if isinstance(coefficient, float) else broadcast(coefficient, sample)


def broadcast(coefficient: Tensor | float, sample: Tensor, name: str = "a per-sample value") -> Tensor:
    """Shape a coefficient so that it multiplies a sample, in the sample's dtype and on its device.

    Args:
        coefficient: 0-dim, or `(batch,)`: one value a sample.
        sample: `(batch, ...)`.
        name: What an error calls the coefficient.

    Returns:
        A tensor of shape `()` or `(batch, 1, ...)`.

    Raises:
        ValueError: Neither one value nor one a sample.
    """
    coefficient = torch.as_tensor(coefficient)
    if coefficient.ndim == 0:
        return coefficient.to(sample.dtype)  # a 0-dim CPU tensor multiplies a tensor of any device
    count = sample.shape[0] if sample.ndim else 1
    if coefficient.ndim > 1 or coefficient.shape[0] not in (1, count):
        raise ValueError(f"{name} has shape {tuple(coefficient.shape)}; allowed: () or ({count},)")
    return coefficient.to(sample.device, sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
