"""Dynamic thresholding of the guided x_0: each image is clipped to a quantile of |x_0|, and divided by it.

The paper does it to the guided prediction, where strong guidance leaves the range of images; before guidance
it is `ModelDenoiser(clip=DynamicThreshold())`. For pixels in [-1, 1]: latents have no such range.

References:
    Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
    (arXiv:2205.11487), section 2.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from guided_diffusers.core.declared import AtLeast, Within
from guided_diffusers.core.denoiser import Denoised, DynamicThreshold
from guided_diffusers.guidance.base import Guidance, Step
from guided_diffusers.guidance.interval import GuidanceInterval


@dataclass(frozen=True)
class DynamicThresholding(Guidance):
    """Dynamic thresholding; it corrects the sum of the terms.

    Args:
        quantile: In (0, 1].
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        maximum: The largest threshold, at least 1, at which this is clipping to [-1, 1]; None has no limit.

    Raises:
        ValueError: An argument out of its range.
    """

    scale: ClassVar[float] = 1.0  # type: ignore[misc]  # it has none
    quantile: Annotated[float, Within(0, 1, "(]")] = 0.995
    interval: GuidanceInterval | None = None
    maximum: Annotated[float, AtLeast(1)] | None = None

    def correct(self, step: Step, own: Denoised, guided: Tensor) -> Tensor:
        """The guided x_0, thresholded."""
        return DynamicThreshold(self.quantile, math.inf if self.maximum is None else self.maximum)(guided)
