"""The scale of a guidance term: one number, or one a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import as_number, check_that, shown
from guided_diffusers.core.declared import Within
from guided_diffusers.core.noise import broadcast

MAX_SCALE = 1e6


def column(scale: Scale, sample: Tensor) -> Tensor | float:
    """A scale as a factor of a sample: a number as it is, one value a sample as `(batch, 1, ...)`."""
    if not isinstance(scale, tuple):
        return scale
    return broadcast(torch.tensor(scale, dtype=torch.float64), sample, "scale")


def checked_scale(scale: float | Sequence[float] | Tensor, name: str = "scale") -> Scale:
    """A scale as a float or, one a sample, as a tuple of floats; tensors and arrays may hold either.

    Raises:
        TypeError: Not a number, nor a sequence or 1-dim tensor of numbers.
        ValueError: Not finite, too large for what float32 holds after some steps, or none at all.
    """
    value: Any = scale.tolist() if hasattr(scale, "tolist") else scale
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    given = value if several else (value,)
    numbers = tuple(number for each in given if (number := as_number(each)) is not None)
    if len(numbers) < len(given):
        raise TypeError(f"{name} is {shown(scale)}; allowed: a number, or one number a sample")
    fits = bool(numbers) and all(abs(number) <= MAX_SCALE for number in numbers)
    check_that(fits, name, scale, f"finite numbers, at most {MAX_SCALE:,.0f}")
    return numbers if several else numbers[0]


Scale = Annotated[float | tuple[float, ...], Within(-MAX_SCALE, MAX_SCALE), checked_scale]
