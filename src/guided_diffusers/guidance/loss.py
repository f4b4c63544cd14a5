"""Loss guidance: shift x_0 to where a function of the predicted image is small.

A loss l(x_0) stands for a likelihood exp(-l(x_0)) in nats, so that scale s = 1 is Bayes' rule: the draw is of
p(x_0) exp(-l(x_0)), normalised. With D the predicted x_0, tilted by Tweedie's formula,

    E[x_0 | x_t, y] = D + sigma^2 / alpha grad_{x_t} log E[exp(-l(x_0)) | x_t],

and both forms put the loss of the predicted image in the place of -log E[exp(-l(x_0)) | x_t]:

    through="denoised":  x_0 += -s sigma^2 / alpha grad_{x_t} l(D(x_t)) = -s Cov[x_0 | x_t] grad l      (1)
    through="x0":        x_0 += -s c grad l,    c = sigma^2 / (alpha^2 + sigma^2)                       (2)

The second takes c, what Cov[x_0 | x_t] is of white data of variance 1 (standardised latents; pixels in
[-1, 1] have less), and so needs no backward through the network. c is 1 at pure noise and falls to 0 with the
noise: the shift is in units of x_0 all along, whatever the scheduler. (1) is a shift of the denoiser's own
x_0, as `ClassifierGuidance(through="denoised")` with log_prob = -l; (2) is taken at the sum of all shifts, so
that an image is measured with its text guidance in it.

What it draws. Of Gaussian data N(0, v) and the loss (x - y)^2 / (2 d^2), with r = v / d^2, (1) draws
N(y sqrt(2 r) F(sqrt(r / 2)), v exp(-r)) as steps grow, F being Dawson's integral, and so does (2) for v = 1.
The posterior is N(y r / (1 + r), v / (1 + r)), the same to first order in r. A sharp loss is overdone, for
the loss of the mean of x_0 is not the mean likelihood: r = 1 gives 0.72 y and 0.37 v for 0.5 y and 0.5 v. A
loss may have `marginal(images, variance)`, its -log E[exp(-l)] over N(images, variance I), and is then asked
for that. A linear measurement (`steering.Measurement`) has it, and of data of variance 1 the draw *is* the
posterior at any d. Of a mixture it is near it by (1); by (2) what was not measured learns nothing of what was
but through the next prediction.

References:
    Chung et al., "Diffusion Posterior Sampling" (arXiv:2209.14687), equation 16: (1). Its step
        zeta / |y - A(D)| on the squared error is this term with loss = |y - A(D)| and s = 2 zeta.
    Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems" (ICLR 2023): marginal, and c.
    He et al., "Manifold Preserving Guided Diffusion" (arXiv:2311.16424), algorithm 1: (2).
    Bansal et al., "Universal Guidance for Diffusion Models" (arXiv:2302.07121): recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_callable
from guided_diffusers.core.declared import Count, Positive
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import broadcast
from guided_diffusers.guidance.base import Guidance, Query, Scale, Shift, Step, column, network_field
from guided_diffusers.guidance.gradient import gradient_of
from guided_diffusers.guidance.interval import GuidanceInterval

_LOSS = "a function (images) -> (batch,)"
Loss = Annotated[Callable[[Tensor], Tensor], _LOSS]
Decode = Annotated[Callable[[Tensor], Tensor], "a function (x_0) -> images"]


@dataclass(frozen=True)
class LossGuidance(Guidance):
    """Guidance by any differentiable function of the predicted image.

    Args:
        loss: `images -> (batch,)`, to be made small, in nats; an image's value may depend on no other image.
            `guided_diffusers.steering` has classifiers, CLIP, feature distances and measurements.
        scale: s: 0 is unguided and costs nothing, 1 is Bayes' rule. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha of x_t; None is everywhere.
        decode: From x_0 `(batch, ...)` to the images that `loss` takes, differentiable, such as
            `steering.decoder(vae)`; None where they are x_0 itself.
        through: "x0", equation (2), needs a backward through `loss` and `decode` only; "denoised",
            equation (1), one through the denoiser too.
        recurrence: How often each level is predicted, with new noise in between: k times the compute.
        max_norm: The largest root mean square of a sample's shift, in units of sqrt(c), what is still
            unknown of x_0 at that level; above 0. A longer shift is shortened to it. None is no limit.

    Raises:
        ValueError: An argument out of range; on use, a `loss` that does not give one value a sample or has no
            gradient.
    """

    neutral: ClassVar[float] = 0.0
    loss: Loss | None = network_field()  # None where it is only written down
    scale: Scale  # type: ignore[misc]  # a network_field has no default
    interval: GuidanceInterval | None = None
    decode: Decode | None = network_field(default=None)
    through: Literal["x0", "denoised"] = "x0"
    recurrence: Count = 1
    max_norm: Positive | None = None

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The prediction with its graph, where the gradient goes through it."""
        return (Query(condition=step.condition, grad=True),) if self.through == "denoised" else ()

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor | Shift:
        """What is added to the denoiser's own x_0 through the denoiser."""
        if self.through == "x0":
            return Shift()
        level = step.level
        # (1): at alpha = 0 the gradient is 0 too
        factor = torch.where(level.alpha > 0, level.sigma**2 / level.alpha, 0.0)
        return self._moved(step, factor, self._gradient(step, step.sample, answers[0].x0))

    def correct(self, step: Step, own: Denoised, guided: Tensor) -> Tensor:
        """The sum of all shifts, moved by the gradient there."""
        if self.through == "denoised":
            return guided
        # (2)
        return guided + self._moved(step, _unknown(step), self._gradient(step, guided))

    def _gradient(self, step: Step, at: Tensor, through: Tensor | None = None) -> Tensor:
        loss = check_callable("loss", self.loss, _LOSS)
        marginal = getattr(loss, "marginal", None)

        def measured(x0: Tensor) -> Tensor:
            images = x0 if self.decode is None else self.decode(x0)
            return loss(images) if marginal is None else marginal(images, _unknown(step))

        return gradient_of("loss", measured, at, through)

    def _moved(self, step: Step, factor: Tensor, gradient: Tensor) -> Tensor:
        moved = -column(self.scale, gradient) * broadcast(factor, gradient) * gradient
        if self.max_norm is None:
            return moved
        size = moved.square().mean(tuple(range(1, moved.ndim)), keepdim=True).sqrt()
        allowed = self.max_norm * broadcast(_unknown(step).sqrt(), moved) / size  # infinite for 0
        return moved * allowed.clamp(max=1)


def _unknown(step: Step) -> Tensor:
    """c, the variance of x_0 given x_t of white data of variance 1."""
    return step.level.sigma**2 / (step.level.alpha**2 + step.level.sigma**2)
