"""The interval of noise levels in which a guidance term is active.

Limits are in sigma / alpha, the noise-to-signal ratio: it means the same under every scheduler and number of
steps, which a fraction of the steps does not.

References:
    Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
    Diffusion Models" (arXiv:2404.07724).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown
from guided_diffusers.core.noise import Coefficient, NoiseLevel, broadcast


@dataclass(frozen=True)
class GuidanceInterval:
    """`low < sigma / alpha <= high`. A value, not a term.

    Args:
        low: Lower limit, excluded; >= 0.
        high: Upper limit, included; above `low`, may be infinite. Pure noise (alpha = 0) is inside only if it
            is.

    Raises:
        ValueError: Limits that are not numbers, or out of order.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        """Check the limits."""
        try:
            low, high = float(self.low), float(self.high)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            low = high = math.nan
        given = f"({shown(self.low)}, {shown(self.high)}]"
        if not 0 <= low < high:
            raise ValueError(f"interval is {given}; allowed: 0 <= low < high, in sigma / alpha")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @classmethod
    def of(cls, value: GuidanceInterval | Sequence[float | None] | None) -> GuidanceInterval | None:
        """An interval from an interval, a pair `(low, high)` (a high of None is infinite), or None.

        Raises:
            ValueError: Anything else.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2:
            low, high = value
            return cls(0.0 if low is None else low, math.inf if high is None else high)
        raise ValueError(
            f"interval is {shown(value)}; allowed: a GuidanceInterval, a pair (low, high) in sigma / alpha, "
            "None"
        )

    def to_config(self) -> list[float | None]:
        """The pair as JSON: an infinite high is null."""
        return [self.low, None if math.isinf(self.high) else self.high]

    def mask(self, level: NoiseLevel) -> Tensor:
        """Which noise levels are inside: bool, of alpha's shape."""
        return torch.as_tensor(self._inside(level.noise_to_signal))

    def touches(self, level: NoiseLevel) -> bool:
        """Whether any noise level of a batch is inside."""
        inside = self._inside(_ratio(level))
        return inside if isinstance(inside, bool) else bool(inside.any())

    def __contains__(self, level: NoiseLevel) -> bool:
        """Whether all noise levels are inside."""
        return bool(self.mask(level).all())

    def _inside(self, ratio: Coefficient) -> Tensor | bool:
        above, below = ratio > self.low, ratio <= self.high
        return above and below if isinstance(ratio, float) else above & below

    def apply(self, inside: Tensor, level: NoiseLevel, outside: Tensor | float = 0) -> Tensor:
        """`inside`, `(batch, ...)`, where a sample's own level is inside, elsewhere `outside`."""
        mask = self._inside(_ratio(level))
        if mask is True:
            return inside
        return torch.where(broadcast(torch.as_tensor(mask).double(), inside) > 0, inside, outside)


def _ratio(level: NoiseLevel) -> Coefficient:
    """sigma / alpha, as a float where it is one number."""
    alpha, sigma, _ = level.scalars
    return math.inf if isinstance(alpha, float) and alpha == 0 else sigma / alpha
