"""A cap on the norm of the guided output: at most r times the conditional one's.

    o' = o min(1, r |o_cond| / |o|)                                                                     (1)

o is the model's output, in whatever it predicts, under the sum of all terms, and the norms are over one
sample: strong guidance lengthens the output, which shows as saturated colours. Z-Image's pipeline knows it as
`cfg_normalization`.

References:
    Qin et al., "Lumina-Image 2.0: A Unified and Efficient Image Generative Framework" (arXiv:2503.21758):
    CFG-Renorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guided_diffusers.core.declared import Positive
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.prediction import from_denoised, to_denoised
from guided_diffusers.guidance.base import Guidance, Step
from guided_diffusers.guidance.interval import GuidanceInterval
from guided_diffusers.guidance.rescale import PredictionType, output_type


@dataclass(frozen=True)
class NormCap(Guidance):
    """A cap on the norm of the guided output; it corrects the sum of the terms.

    Args:
        maximum: r, above 0: 1 is as long as the conditional output.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        prediction_type: What the model predicts; None is what the sampling loop's scheduler reads.

    Raises:
        ValueError: An argument out of its range; on use, a prediction type that nobody names.
    """

    scale: ClassVar[float] = 1.0  # type: ignore[misc]  # it has none
    maximum: Positive = 1.0
    interval: GuidanceInterval | None = None
    prediction_type: PredictionType | None = None

    def correct(self, step: Step, own: Denoised, guided: Tensor) -> Tensor:
        """x_0 of the shortened output."""
        kind = output_type(self.prediction_type, step)
        axes = tuple(range(1, guided.ndim))
        conditional, output = (from_denoised(x0, step.sample, step.level, kind) for x0 in (own.x0, guided))
        norms = (torch.linalg.vector_norm(each, dim=axes, keepdim=True) for each in (conditional, output))
        most, norm = norms
        # (1)
        factor = (self.maximum * most / norm.clamp(min=1e-12)).clamp(max=1)
        return to_denoised(factor * output, step.sample, step.level, kind)
