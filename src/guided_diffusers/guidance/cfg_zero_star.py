"""CFG-Zero*: classifier-free guidance on the velocity, the unconditional one scaled to fit.

    s = <v_cond, v_null> / |v_null|^2, one a sample                                                     (1)
    v = s v_null + gamma (v_cond - s v_null)                                                            (2)

and, with zero-init, v = 0 at first. v is the velocity of the process: the derivative of
x_t = alpha x_0 + sigma eps along its own path, which is eps - x_0 for flow matching (alpha + sigma = 1), the
v of v-prediction for variance-preserving processes (the derivative along the angle), and eps where alpha = 1
(along sigma). The paper defines it for flow matching; the others are its reading by the same words.

References:
    Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models" (arXiv:2503.18886),
    equations 7 and 8, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.declared import Whole
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import from_denoised, to_denoised
from guided_diffusers.guidance.base import Step, column
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance


@dataclass(frozen=True)
class CFGZeroStar(ClassifierFreeGuidance):
    """CFG-Zero*.

    Args:
        scale: gamma: 1 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        zero_init_steps: How many first steps of a run have velocity 0; at least 0. The paper uses the first
            few of a hundred, and none for networks that are trained to the end.

    Raises:
        ValueError: `zero_init_steps` below 0.
    """

    zero_init_steps: Whole = 0

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """x_0 of the guided velocity, less D_cond."""
        kind = velocity_type(step.level)
        conditional, null = (
            from_denoised(answer.x0, step.sample, step.level, kind) for answer in (own, answers[0])
        )
        if self._starting(step):
            return to_denoised(torch.zeros_like(conditional), step.sample, step.level, kind) - own.x0
        axes = tuple(range(1, null.ndim))
        squared = null.square().sum(axes, keepdim=True).clamp(min=1e-24)
        # (1)
        fitted = (conditional * null).sum(axes, keepdim=True) / squared * null
        # (2)
        guided = fitted + column(self.scale, own.x0) * (conditional - fitted)
        return to_denoised(guided.to(conditional.dtype), step.sample, step.level, kind) - own.x0

    def _starting(self, step: Step) -> bool:
        """Whether this is one of the first steps of the run; counts it."""
        if not self.zero_init_steps:
            return False
        key = (type(self).__name__, self.zero_init_steps, self.interval)
        done = step.memory.get(key, 0)
        step.memory[key] = done + 1
        return done < self.zero_init_steps


def velocity_type(level: NoiseLevel) -> str:
    """The prediction type whose output is the velocity of the process that a level belongs to."""
    alpha, sigma = level.alpha, level.sigma
    if torch.allclose(alpha + sigma, torch.ones_like(alpha), atol=1e-6):
        return "flow_prediction"
    if torch.allclose(alpha, torch.ones_like(alpha), atol=1e-9):
        return "epsilon"
    return "v_prediction"
