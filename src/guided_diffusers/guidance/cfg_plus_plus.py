"""CFG++: the guided x_0 goes on with the unconditional noise.

    x_0 = D_null + lambda (D_cond - D_null);  x_next = alpha_next x_0 + sigma_next eps_null

A step of DDIM or Euler takes both from one prediction, so the same x_next comes of classifier-free guidance
with

    gamma_t = lambda / (1 - rho_next / rho),    rho = sigma / alpha:                                    (1)

exact under deterministic DDIM and Euler, something else under any other scheduler. lambda is in [0, 1]; no
value of it is neutral.

References:
    Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models"
    (arXiv:2406.08070), algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import broadcast
from guided_diffusers.guidance.base import Query, Step, column
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance


@dataclass(frozen=True)
class CFGPlusPlus(ClassifierFreeGuidance):
    """CFG++, for deterministic DDIM and Euler.

    Args:
        scale: lambda, usually from 0 (unconditional) to 1. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere. Outside it the step is the
            conditional model's.

    Raises:
        ValueError: On use, outside a sampling run, where there is no next level, and of a step that does not
            lower the noise, such as those that PNDM and Heun's method take twice: gamma_t is infinite there.
    """

    neutral: ClassVar[float] = math.nan  # equal to no scale

    @property
    def gamma(self) -> None:
        """None: it is another one at each step."""
        return None

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The prediction under the null condition."""
        if not (_kept(step) < 1).all():
            given = [level.noise_to_signal.tolist() for level in (step.level, step.following)]
            raise ValueError(
                f"CFG++ goes on from noise of {given[0]} to no less, {given[1]}; allowed: a scheduler whose "
                "every step lowers it, such as DDIM or Euler, or an interval without this step"
            )
        return super().queries(step)

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(gamma_t - 1) (D_cond - D_null)."""
        # (1)
        gamma = column(self.scale, own.x0) * broadcast(1 / (1 - _kept(step)), own.x0)
        return ((gamma - 1) * (own.x0 - answers[0].x0)).to(own.x0.dtype)


def _kept(step: Step) -> Tensor:
    """rho_next / rho, finite where alpha is 0."""
    level, following = step.level, step.following
    return following.sigma * level.alpha / (following.alpha * level.sigma)
