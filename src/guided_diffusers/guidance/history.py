"""History-guided sampling: on from the average of the run's earlier guided predictions.

    d = x_0 - g,  g = a (x_0 of the step before) + (1 - a) (g of that step)
    d <- d - (1 - eta) <d, x_0> / |x_0|^2 x_0
    x_0 + w sqrt((t - t_min) / (t_max - t_min)) highpass(d),  t_min < t <= t_max

with t = sigma / (alpha + sigma), and g = 0 before the first step, which is left alone.

x_0 is the guided prediction, under the sum of all terms. The high-pass, which keeps colours, weighs the
two-dimensional discrete cosine transform by sigmoid(50 (R - c)), R the radius of a frequency, of which 1 is a
side's highest. It needs no network.

References:
    Sadat et al., "HiGS: History-Guided Sampling for Plug-and-Play Enhancement of Diffusion Models"
    (arXiv:2509.22300), equations 5 to 9, with a window of all steps; the range of t is not said there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown
from guided_diffusers.core.declared import Amount, Share, Within
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.guidance.base import Guidance, Query, Scale, Step, column
from guided_diffusers.guidance.interval import GuidanceInterval
from guided_diffusers.guidance.projected import across


@dataclass(frozen=True)
class HistoryGuidance(Guidance):
    """History-guided sampling (HiGS); it corrects the sum of the terms.

    Args:
        scale: w: 0 is without it. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha, and remembers; None is everywhere.
        rate: a, in (0, 1]: how much the latest prediction weighs; at 1 it is the only one.
        parallel: eta, the weight of the part of d along x_0, in [0, 1].
        cutoff: c, at least 0; None has no high-pass, which images alone have.
        t_min: Where the weight is 0, in [0, 1).
        t_max: Where the weight is w, above `t_min`.

    Raises:
        ValueError: An argument out of its range; on use, a sample that is no image where there is a cutoff.
    """

    scale: Scale = 1.75
    interval: GuidanceInterval | None = None
    rate: Annotated[float, Within(0, 1, "(]")] = 0.75
    parallel: Share = 0.0
    cutoff: Amount | None = 0.05
    t_min: Share = 0.4
    t_max: Share = 1.0

    def __post_init__(self) -> None:
        """Check that the times are in order."""
        super().__post_init__()
        if not self.t_min < self.t_max:
            raise ValueError(f"t_max is {self.t_max}; allowed: above t_min, {self.t_min}")

    def queries(self, step: Step) -> tuple[Query, ...]:
        """None, of images."""
        if self.cutoff is not None and step.sample.ndim < 4:
            given = f"cutoff filters images, and the sample is {shown(step.sample)}"
            raise ValueError(f"{given}; allowed: cutoff=None")
        return ()

    def correct(self, step: Step, own: Denoised, guided: Tensor) -> Tensor:
        """The guided x_0, carried on; it is remembered as it came."""
        key = (type(self).__name__, self.rate, self.interval)
        history = step.memory.get(key)
        # equation 5
        step.memory[key] = self.rate * guided.detach() + (0 if history is None else (1 - self.rate) * history)
        if history is None:
            return guided
        # equation 7
        difference = across(guided - history, guided, self.parallel)
        if self.cutoff is not None:
            difference = high_pass(difference, self.cutoff)
        # equation 9
        return guided + column(self.scale, guided) * broadcast(self._share(step.level), guided) * difference

    def _share(self, level: NoiseLevel) -> Tensor:
        """The weight's share of w at a level."""
        # equation 6
        time = level.sigma / (level.alpha + level.sigma)
        share = ((time - self.t_min) / (self.t_max - self.t_min)).clamp(min=0).sqrt()
        return torch.where(time <= self.t_max, share, 0)


def high_pass(images: Tensor, cutoff: float) -> Tensor:
    """Images, `(..., height, width)`, with the frequencies below a radius weakened, by equation 8."""
    rows, columns = (_cosines(side).to(images) for side in images.shape[-2:])
    radius = torch.hypot(*torch.meshgrid(*(torch.arange(n) / n for n in images.shape[-2:]), indexing="ij"))
    weights = torch.sigmoid(50 * (radius - cutoff)).to(images)
    return rows.mT @ (weights * (rows @ images @ columns.mT)) @ columns


def _cosines(side: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II) as a matrix, float64."""
    places = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi * (places + 0.5) * places[:, None] / side) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix
