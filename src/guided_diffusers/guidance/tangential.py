"""Tangential damping: classifier-free guidance from what the null's output shares with the conditional one.

    v = the direction of the largest singular value of (o_cond, o_null)                                 (1)
    o_null' = <o_null, v> v                                                                             (2)
    o = o_null' + gamma (o_cond - o_null')                                                              (3)

o is the model's output, in whatever it predicts. v is cos(a) o_cond + sin(a) o_null at the angle a that makes
it longest, of unit length: tan(2 a) = 2 <o_cond, o_null> / (|o_cond|^2 - |o_null|^2).

References:
    Kwon et al., "TCFG: Tangential Damping Classifier-free Guidance" (arXiv:2503.18137), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.prediction import from_denoised, to_denoised
from guided_diffusers.guidance.base import Step, column
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance
from guided_diffusers.guidance.rescale import PredictionType, output_type


@dataclass(frozen=True)
class TangentialGuidance(ClassifierFreeGuidance):
    """Tangential damping (TCFG).

    Args:
        scale: gamma: 1 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        prediction_type: What the model predicts; None is what the sampling loop's scheduler reads.

    Raises:
        ValueError: An unknown prediction type; on use, one that nobody names.
    """

    prediction_type: PredictionType | None = None

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """x_0 of the guided output, less D_cond."""
        kind = output_type(self.prediction_type, step)
        conditional, null = (
            from_denoised(answer.x0, step.sample, step.level, kind) for answer in (own, answers[0])
        )
        axes = tuple(range(1, null.ndim))
        product = (conditional * null).sum(axes, keepdim=True)
        longer = ((conditional - null) * (conditional + null)).sum(axes, keepdim=True)
        # (1): longer is |o_cond|^2 - |o_null|^2
        angle = torch.atan2(2 * product, longer) / 2
        shared = angle.cos() * conditional + angle.sin() * null
        # (2)
        squared = shared.square().sum(axes, keepdim=True).clamp(min=1e-24)
        damped = (null * shared).sum(axes, keepdim=True) / squared * shared
        # (3)
        guided = damped + column(self.scale, own.x0) * (conditional - damped)
        return to_denoised(guided, step.sample, step.level, kind) - own.x0
