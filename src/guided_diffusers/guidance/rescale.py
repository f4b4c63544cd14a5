"""Classifier-free guidance with the model's output rescaled to the conditional one's deviation.

    o = o_null + gamma (o_cond - o_null)                                                                (1)
    o' = phi o std(o_cond) / std(o) + (1 - phi) o                                                       (2)

o is the model's output, in whatever it predicts, and std is over one sample: a strong scale widens the
output, which shows as overexposed images, and rescaling undoes it. It is defined on the output, so x_0 is
converted to that and back.

References:
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891), section
    3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from guided_diffusers.core.checks import check_choice
from guided_diffusers.core.declared import Share
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.prediction import PREDICTION_TYPES, from_denoised, to_denoised
from guided_diffusers.guidance.base import Step
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance


def _known(value: Any) -> str:
    return check_choice("prediction_type", value, PREDICTION_TYPES)


PredictionType = Annotated[str, _known]
"""One of `PREDICTION_TYPES`."""


@dataclass(frozen=True)
class RescaledGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance, rescaled.

    Args:
        scale: gamma: 1 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        rescale: phi in [0, 1]: 0 is plain classifier-free guidance; the paper recommends 0.7.
        prediction_type: What the model predicts; None is what the sampling loop's scheduler reads.

    Raises:
        ValueError: `rescale` outside [0, 1], or an unknown prediction type; on use, one that nobody names.
    """

    rescale: Share = 0.7
    prediction_type: PredictionType | None = None

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """x_0 of the rescaled output, less D_cond."""
        prediction_type = output_type(self.prediction_type, step)
        # (1)
        plain = super().shift(step, own, answers)
        conditional = from_denoised(own.x0, step.sample, step.level, prediction_type)
        guided = from_denoised(own.x0 + plain, step.sample, step.level, prediction_type)
        # (2)
        ratio = _deviation(conditional) / _deviation(guided).clamp(min=1e-12)
        rescaled = guided * (self.rescale * ratio + 1 - self.rescale)
        return to_denoised(rescaled, step.sample, step.level, prediction_type) - own.x0


def output_type(named: str | None, step: Step) -> str:
    """What the model predicts, as a term or else the run says it."""
    kind = named or step.prediction_type
    if kind is None:
        raise ValueError("the term is of the model's output: give prediction_type= outside a sampling run")
    return kind


def _deviation(output: Tensor) -> Tensor:
    """The standard deviation within each sample, `(batch, 1, ...)`."""
    return output.std(dim=tuple(range(1, output.ndim)), keepdim=True)
