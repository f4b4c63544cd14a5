"""Classifier guidance: shift x_0 along the gradient of a classifier's log-probability.

With g = grad_x log p(y | x_t) and scale s, Bayes' rule for scores gives, in x_0 space,

    score form:       x_0 += s sigma^2 / alpha g, the same as eps -= s sigma g                          (1)
    mean-shift form:  x_0 += s sigma_next^2 / alpha_next g: Algorithm 1, of the posterior variance      (2)

The second is Algorithm 1 of the paper, x_next ~ N(mu + s Sigma g, Sigma), written as a change of x_0: under
an ancestral step the mean's coefficient of x_0 times sigma_next^2 / alpha_next is exactly the posterior
variance. A scheduler that shifts its own mean (`GuidedDDPMScheduler`, whose `step` takes `guidance_gradient`)
is handed s g instead and shifts by its own Sigma: fixed_small is the formula above, fixed_large and a learned
variance move the mean by what they draw with.

How scales relate. The score form moves an ancestral step's mean by beta / sqrt(1 - beta) s g, with beta the
variance of one forward step of the listed chain; the mean-shift form by Sigma s g. The ratio of the two,
by which one form's scale becomes the other's, is near 1 only where steps are small. Against the posterior
variance it is, mid-chain, 1.006 at 1000 steps, 1.03 at 250, 1.13 at 50 and 1.28 at 25, and at the last noisy
step 2.2 at 1000 steps and 223 at 25 (linspace spacing). Against fixed_large, Sigma = beta, it is
1 / sqrt(1 - beta) at every step but the last. So a scale is not portable between the forms at few steps, and
at an equal one the score form is the stronger.

Near pure noise the score form's factor is huge, and with it whatever a trained classifier gets wrong there,
where the exact g vanishes like alpha / sigma. The cosine schedule with trailing spacing begins at sigma /
alpha = 20,291: a barely trained classifier moved x_0 by 593 there and by 0.6 at the next of 25 steps (rms,
s = 1). An interval, such as (0, 100], leaves such steps out; `max_gradient_norm` bounds them.

Where g is taken. At x_t itself, as the paper's code does (at="sample"); or, as its derivation has it, at the
mean of the step (at="mean"): g = grad_x log p(y | x) at x = mu, the mean of q(x_next | x_t, x_0) of
`core/posterior.py` with the denoiser's x_0 before any guidance, and the classifier is told the next level.

References:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 4.
    Bansal et al., "Universal Guidance for Diffusion Models" (arXiv:2302.07121): through the predicted x_0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from guided_diffusers.core.checks import a_kind_of, check_callable, shown
from guided_diffusers.core.declared import Above
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.posterior import posterior_mean
from guided_diffusers.guidance.base import Guidance, Query, Scale, Shift, Step, column, network_field
from guided_diffusers.guidance.gradient import gradient_of
from guided_diffusers.guidance.interval import GuidanceInterval

_LOG_PROB = "a function (sample, level, condition) -> (batch,)"
_FOR_CLEAN = "allowed: through='denoised', LossGuidance, or a noise-aware classifier"


def _of_three(log_prob: Any) -> Any:
    """A function of three arguments, as far as Python knows its signature."""
    check_callable("log_prob", log_prob, _LOG_PROB)
    try:
        inspect.signature(log_prob).bind(None, None, None)
    except ValueError:  # of a function whose signature Python does not know
        return log_prob
    except TypeError:
        given = f"log_prob is {shown(log_prob)}, which does not take three arguments"
        allowed = f"{_LOG_PROB}; a function of images alone is a loss of LossGuidance"
        raise ValueError(f"{given}; allowed: {allowed}") from None
    return log_prob


LogProb = Annotated[Callable[[Tensor, NoiseLevel, Any], Tensor], _of_three]
FORMS = ("score", "mean_shift")


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Classifier guidance in either form, through a noise-aware classifier or through the predicted x_0.

    Args:
        log_prob: `(sample, level, condition) -> (batch,)`, log p(y | sample) in nats. The sample is x_t,
            unscaled: the classifier applies `level.input_scale`. With `through="denoised"` it receives the
            predicted x_0 instead, with `at="mean"` the step's mean and the next level.
        scale: s: 0 is unguided and costs nothing, 1 is Bayes' rule. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha of x_t; None is everywhere.
        form: "score", for any scheduler, or "mean_shift", for ancestral ones.
        through: "classifier" needs one backward through the classifier only; "denoised" one through the
            denoiser too.
        at: "sample", x_t; or "mean", the mean of the step (for `through="classifier"` only). A step to the
            clean end, for which the classifier has no timestep, takes g at x_t.
        max_gradient_norm: The largest |sigma g| of a sample, above 0; None is no limit. |.| is the Euclidean
            norm over all of a sample's entries, and sigma g, before the scale s, the gradient in nats per
            standard deviation of the noise (the noise of where g is taken): at scale 1 it is what the score
            form subtracts from epsilon, and the same number in every process. A longer g is shortened to it.

    At alpha = 0 (the first step of flow matching and of zero-terminal-SNR schedules) the score form's factor
    is infinite and the classifier's gradient zero: the term is left out there.

    Raises:
        ValueError: An unknown `form`, `through` or `at`, or two that exclude each other; a scale or a
            `max_gradient_norm` out of range; on use, "mean_shift" or "mean" outside a sampling run, a step
            whose mean is not defined, or a `log_prob` that does not give one value a sample.
    """

    neutral: ClassVar[float] = 0.0
    log_prob: LogProb | None = network_field()  # None where it is only written down
    scale: Scale  # type: ignore[misc]  # a network_field has no default
    interval: GuidanceInterval | None = None
    form: Literal["score", "mean_shift"] = "score"
    through: Literal["classifier", "denoised"] = "classifier"
    at: Literal["sample", "mean"] = "sample"
    max_gradient_norm: Annotated[float, Above(0, finite=False)] | None = None

    def __post_init__(self) -> None:
        """Check that the options go together."""
        super().__post_init__()
        if self.log_prob is not None and self.through == "classifier":
            check_sees_noise(self._network)
        if self.at == "mean" and self.through == "denoised":
            raise ValueError("at is 'mean' and through is 'denoised'; allowed: at='sample', or 'classifier'")

    @property
    def _network(self) -> Any:
        """The network whose method `log_prob` is; of a function, itself."""
        return getattr(self.log_prob, "__self__", self.log_prob)

    def check_scheduler(self, scheduler: Any) -> None:
        """Raise ValueError where the classifier was trained for another noise process, or an unknown one."""
        if self.through == "classifier" and not self.idle:
            check_sees_noise(self._network, scheduler)

    def queries(self, step: Step) -> tuple[Query, ...]:
        """None for a noise-aware classifier; the prediction with its graph for one of clean images."""
        return (Query(condition=step.condition, grad=True),) if self.through == "denoised" else ()

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor | Shift:
        """`s sigma^2 / alpha g` of this level or the next; `s g` where the scheduler shifts its own mean."""
        for name, value, other in (("form", "mean_shift", "score"), ("at", "mean", "sample")):
            if step.next_level is None and getattr(self, name) == value:
                remedy = f"use it in a sampling run, or {other!r}"
                raise ValueError(f"{name} {value!r} needs the next noise level: {remedy}")
        gradient = column(self.scale, own.x0) * self._gradient(step, own, answers)
        if self.form == "mean_shift" and step.shifts_mean:
            # algorithm 1: the scheduler's own mu + Sigma s g
            return Shift(mean=gradient)
        # (1) of this level, (2) of the next
        level = step.level if self.form == "score" else step.following
        factor = torch.where(level.alpha > 0, level.sigma**2 / level.alpha, 0.0)
        return broadcast(factor, gradient) * gradient

    def _gradient(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """`g`, at x_t or at the step's mean, no longer than allowed."""
        log_prob = check_callable("log_prob", self.log_prob, _LOG_PROB)
        sample, level = step.sample, step.level
        if self.at == "mean" and step.following.timestep is not None and (step.following.sigma > 0).all():
            sample, level = posterior_mean(own.x0, sample, level, step.following), step.following
        gradient = gradient_of(
            "log_prob",
            lambda images: log_prob(images, level, step.condition),
            sample,
            answers[0].x0 if answers else None,
        )
        if self.max_gradient_norm is None:
            return gradient
        norm = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), keepdim=True)
        allowed = self.max_gradient_norm / (broadcast(level.sigma, gradient) * norm)  # infinite for 0
        return gradient * allowed.clamp(max=1)


def check_sees_noise(network: Any, scheduler: Any = None) -> None:
    """Raise ValueError where a network cannot judge x_t, as far as can be known.

    Args:
        network: What gives log p. Known to be of clean images only are models of transformers, and those of
            which `sees_noise` is False.
        scheduler: Where it is given, a network with `check_scheduler` compares its process with this one's.
    """
    if type(network).__module__.startswith("transformers.") or not getattr(network, "sees_noise", True):
        given = f"through is 'classifier', and log_prob is of {a_kind_of(network)}"
        raise ValueError(f"{given}, which knows clean images only; {_FOR_CLEAN}")
    if scheduler is not None and hasattr(network, "check_scheduler"):
        network.check_scheduler(scheduler)
