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
from guided_diffusers.guidance.base import Step, column
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance


@dataclass(frozen=True)
class CFGPlusPlus(ClassifierFreeGuidance):
    """CFG++, for deterministic DDIM and Euler.

    Args:
        scale: lambda, usually from 0 (unconditional) to 1. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere. Outside it the step is the
            conditional model's.

    Raises:
        ValueError: On use, outside a sampling run, where there is no next level.
    """

    neutral: ClassVar[float] = math.nan  # equal to no scale

    @property
    def gamma(self) -> None:
        """None: it is another one at each step."""
        return None

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(gamma_t - 1) (D_cond - D_null)."""
        level, following = step.level, step.following
        # (1), with rho_next / rho finite where alpha is 0
        ratio = following.sigma * level.alpha / (following.alpha * level.sigma)
        gamma = column(self.scale, own.x0) * broadcast(1 / (1 - ratio), own.x0)
        return ((gamma - 1) * (own.x0 - answers[0].x0)).to(own.x0.dtype)
