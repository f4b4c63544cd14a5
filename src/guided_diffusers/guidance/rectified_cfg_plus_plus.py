"""Rectified-CFG++: a conditional predictor, and guidance where it arrives half a step later.

    v_cond = v(x_t, t; c);  x~ = x_t + (Delta t / 2) v_cond,  t~ = t + Delta t / 2
    v = v_cond + alpha(t) (v(x~, t~; c) - v(x~, t~; null)),  alpha(t) = lambda (1 - t)^k

for flow matching, x_t = (1 - t) x_0 + t eps, whose velocity is v = eps - x_0 = (x_t - x_0) / t. With v = (x -
D) / t on both sides, x_0 = x_t - t v is shifted by

    alpha(t) t / t~ (D(x~, t~; c) - D(x~, t~; null)).                                                      (1)

The noise that the paper adds to x~ optionally is left out. A step costs one forward of the condition and one
of condition and null.

References:
    Saini et al., "Rectified-CFG++ for Flow Based Models" (arXiv:2510.07631), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from torch import Tensor

from guided_diffusers.core.declared import AtLeast
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.guidance.base import Guidance, Query, Scale, Step, column
from guided_diffusers.guidance.cfg_zero_star import velocity_type
from guided_diffusers.guidance.interval import GuidanceInterval


@dataclass(frozen=True)
class RectifiedCFGPlusPlus(Guidance):
    """Rectified-CFG++, for flow matching.

    Args:
        scale: lambda: 0 is unguided and costs nothing, 4.5 the default of the authors' code for SD 3. A
            number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        exponent: k, at least 0: how alpha(t) grows from 0 at pure noise; 0, as in the authors' code, is
            lambda throughout.

    It needs the condition's null.

    Raises:
        ValueError: `exponent` below 0; on use, another process than flow matching, or no next level.
    """

    scale: Scale
    interval: GuidanceInterval | None = None
    exponent: Annotated[float, AtLeast(0)] = 0.0

    @property
    def needs_null(self) -> bool:
        """Whether the scale is not 0."""
        return not self.idle

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The predictions half a step later, under the condition and its null."""
        level, timestep = step.level, step.level.timestep
        if velocity_type(level) != "flow_prediction":
            raise ValueError("Rectified-CFG++ is of flow matching, alpha + sigma = 1: use a scheduler of it")
        # algorithm 1, line 4
        sigma = (level.sigma + step.following.sigma) / 2
        half = NoiseLevel(
            alpha=1 - sigma,
            sigma=sigma,
            input_scale=level.input_scale,
            timestep=None if timestep is None else timestep * sigma / level.sigma,
        )
        at, null = partial(_predicted, step, half), getattr(step.condition, "null", None)
        # algorithm 1, lines 6 and 7
        return tuple(Query(condition=each, sample=at, level=half) for each in (step.condition, null))

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(1)."""
        time = step.level.sigma
        half = (time + step.following.sigma) / 2
        # algorithm 1, line 8
        weight = broadcast((1 - time) ** self.exponent * time / half, own.x0)
        return column(self.scale, own.x0) * weight * (answers[0].x0 - answers[1].x0)


def _predicted(step: Step, half: NoiseLevel, own: Denoised) -> Tensor:
    """x~: an Euler step of v_cond to another level."""
    kept = broadcast(half.sigma / step.level.sigma, own.x0)
    return kept * step.sample.to(own.x0.dtype) + (1 - kept) * own.x0
