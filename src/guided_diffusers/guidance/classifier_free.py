"""Classifier-free guidance: extrapolate from the unconditional prediction through the conditional one.

    x_0 = D_null + gamma (D_cond - D_null) = D_cond + (gamma - 1) (D_cond - D_null)

gamma = 1 is the conditional model, gamma = 0 the unconditional one. The paper's w is gamma - 1: its
(1 + w) eps_cond - w eps_null is this with gamma = 1 + w. The form is the same for x_0, epsilon and v, which
are linear in one another at a given x_t.

References:
    Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), equation 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.guidance.base import Guidance, Query, Scale, Step, column
from guided_diffusers.guidance.interval import GuidanceInterval


@dataclass(frozen=True)
class ClassifierFreeGuidance(Guidance):
    """Classifier-free guidance in the gamma form.

    Args:
        scale: gamma: 1 is unguided and costs nothing, 0 unconditional. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.

    It needs the condition's null (`Condition.negative`); the null of a condition without `.null` is None.
    """

    neutral: ClassVar[float] = 1.0
    scale: Scale
    interval: GuidanceInterval | None = None

    @property
    def gamma(self) -> Scale | None:
        """The scale."""
        return self.scale

    @property
    def needs_null(self) -> bool:
        """Whether the scale is not 1."""
        return not self.idle

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The prediction under the null condition."""
        return (Query(condition=getattr(step.condition, "null", None)),)

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(gamma - 1) (D_cond - D_null)."""
        # equation 6
        return (column(self.scale, own.x0) - 1) * (own.x0 - answers[0].x0)
