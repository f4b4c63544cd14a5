"""Autoguidance: guide a model with a weaker version of itself.

    x_0 = D_weak + w (D - D_weak) = D + (w - 1) (D - D_weak)

The weak model is a separate network under the same condition, such as an early snapshot of the same training.
Under the null condition instead, D_weak(null) + w (D - D_weak(null)), it guides towards the condition too:
classifier-free guidance whose unconditional model is the weak one, at the price of either alone. The weak
model may be the network itself with some layers perturbed, a view of it (`guidance.views`).

References:
    | Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv:2406.02507), equation 3
    | Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696),
      section 4: a small unconditional network for classifier-free guidance
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from guided_diffusers.core.checks import check_callable
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.guidance.base import Guidance, Query, Scale, Step, column, network_field
from guided_diffusers.guidance.interval import GuidanceInterval
from guided_diffusers.guidance.views import View

_WEAK = "a denoiser, such as ModelDenoiser(weak_unet, prediction_type)"


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """Autoguidance with a separate weak network, or a view of the guided one.

    Args:
        weak: The weak denoiser, such as `ModelDenoiser(weak_unet, prediction_type)`; or a view of the guided
            network, such as `views.skip_layers(unet)`, of which the guided denoiser itself is asked.
        scale: w: 1 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        null: Ask the weak network under the null condition.

    Raises:
        TypeError: A `weak` that cannot be called, and as `checked_scale`.
        ValueError: A `null` that is no bool.
    """

    neutral: ClassVar[float] = 1.0
    weak: Annotated[Callable[..., Any] | None, _WEAK] = network_field()  # None comes with `from_config`
    scale: Scale  # type: ignore[misc]  # a network_field has no default
    interval: GuidanceInterval | None = None
    null: bool = False

    @property
    def needs_null(self) -> bool:
        """Whether the weak network is asked under the null condition."""
        return self.null and not self.idle

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The weak network's prediction under the same condition, or under its null."""
        check_callable("weak", self.weak, _WEAK)
        condition = getattr(step.condition, "null", None) if self.null else step.condition
        if isinstance(self.weak, View):
            return (Query(condition=condition, view=self.weak.perturbed),)
        return (Query(condition=condition, network=self.weak),)

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(w - 1) (D - D_weak)."""
        # equation 3
        return (column(self.scale, own.x0) - 1) * (own.x0 - answers[0].x0)
