"""Sliding-window guidance: away from what the network predicts of windows of the image, each by itself.

    x_0 = D + w m (D - D_windows)                                                                       (1)

D_windows is put together of the predictions of overlapping windows, averaged where they overlap: the same
network without far sight. m is 1 where windows overlap and 0 elsewhere (M-SWG), or 1 everywhere.

References:
    Adaloglou et al., "Guiding a diffusion model using sliding windows" (arXiv:2411.10257); sizes and
    numbers of windows as in its experiments: 2 x 2 of 40 of 64 places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown
from guided_diffusers.core.declared import AtLeast, Between, Count
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.guidance.base import Guidance, Query, Scale, Step, column
from guided_diffusers.guidance.interval import GuidanceInterval

Window = tuple[slice, slice]


@dataclass(frozen=True)
class SlidingWindowGuidance(Guidance):
    """Sliding-window guidance (SWG, M-SWG), for networks that take images of any size.

    Args:
        scale: w: 0 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        size: A window's sides as a share of the image's, between 0 and 1.
        windows: How many a side, at least 2; their square is how many more forwards a step takes.
        masked: Guide only where windows overlap (M-SWG).
        multiple: Of what a window's sides are multiples, such as the network's factor of downsampling.

    Raises:
        ValueError: An argument out of its range; on use, a sample that is no image, or windows that do not
            overlap or are as large as it.
    """

    scale: Scale
    interval: GuidanceInterval | None = None
    size: Annotated[float, Between(0, 1)] = 0.625
    windows: Annotated[int, AtLeast(2)] = 2
    masked: bool = True
    multiple: Count = 8

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The prediction of each window."""
        windows = self.places(step.sample)
        return tuple(Query(condition=step.condition, sample=step.sample[..., *each]) for each in windows)

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """w m (D - D_windows)."""
        total, count = torch.zeros_like(own.x0), torch.zeros_like(own.x0[:1, :1])
        for (rows, columns), answer in zip(self.places(step.sample), answers, strict=True):
            total[..., rows, columns] += answer.x0
            count[..., rows, columns] += 1
        difference = own.x0 - total / count
        # (1)
        return column(self.scale, own.x0) * (difference * (count > 1) if self.masked else difference)

    def places(self, sample: Tensor) -> list[Window]:
        """The rows and columns of each window of an image, `(batch, channels, ..., height, width)`."""
        if sample.ndim < 4:
            raise ValueError(f"SlidingWindowGuidance is of images, and the sample is {shown(sample)}")
        height, width = sample.shape[-2:]
        sides = [max(int(self.size * side) // self.multiple, 1) * self.multiple for side in (height, width)]
        pairs = list(zip(sides, (height, width), strict=True))
        overlaps = [self.windows * side - whole for side, whole in pairs]
        if min(overlaps) < 0 or not any(overlaps) or any(side >= whole for side, whole in pairs):
            raise ValueError(
                f"{self.windows} windows a side, of {sides[0]} x {sides[1]}, do not overlap in an image of "
                f"{height} x {width}, or fill it: change size, {self.size}, or multiple, {self.multiple}"
            )
        starts = [
            [round(k * (whole - side) / (self.windows - 1)) for k in range(self.windows)]
            for side, whole in pairs
        ]
        return [(slice(y, y + sides[0]), slice(x, x + sides[1])) for y, x in product(*starts)]
