"""What a guidance term is told, may ask, and answers: the values of the algebra of `guidance.base`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from guided_diffusers.core.denoiser import Denoised, Denoiser
from guided_diffusers.core.noise import NoiseLevel


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a sampling run, as a guidance term sees it.

    Attributes:
        sample: x_t, `(batch, ...)`, unscaled.
        level: The noise level of x_t.
        next_level: The level the step arrives at; None outside a sampling run.
        condition: What the denoiser is told.
        memory: Values that last from step to step of one run: the only state a term may have.
        prediction_type: What the run's scheduler reads, and so its model predicts; None outside a run.
        shifts_mean: Whether the run's scheduler takes `step(guidance_gradient=)`: it draws
            x_next ~ N(mu + Sigma g, Sigma) with what terms give as `Shift.mean`.
    """

    sample: Tensor
    level: NoiseLevel
    next_level: NoiseLevel | None = None
    condition: Any = None
    memory: dict[Any, Any] = field(default_factory=dict)
    prediction_type: str | None = None
    shifts_mean: bool = False

    @property
    def following(self) -> NoiseLevel:
        """The next level, for what cannot do without; ValueError outside a sampling run."""
        if self.next_level is None:
            raise ValueError("the guidance needs the next noise level: use it in a sampling run")
        return self.next_level


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A prediction that a term needs.

    Attributes:
        condition: The condition to predict under.
        network: The denoiser to ask; None is the guided denoiser itself.
        sample: Where to ask, of any shape that the network takes, or a function that makes it of the
            denoiser's own answer; None is the step's x_t.
        level: The noise level of that sample; None is the step's.
        view: `with view(): ...` is a context in which the network is perturbed, such as with layers skipped;
            None is the network as it is.
        grad: Keep the graph from the sample to the answer.
    """

    condition: Any
    network: Denoiser | None = None
    sample: Tensor | Callable[[Denoised], Tensor] | None = None
    level: NoiseLevel | None = None
    view: Callable[[], AbstractContextManager[Any]] | None = None
    grad: bool = False


class Shift(NamedTuple):
    """What a term adds at a step.

    Attributes:
        x0: To x_0, `(batch, ...)`; None is nothing.
        mean: What the scheduler's own `step(guidance_gradient=)` shifts its mean by, `(batch, ...)`; given
            only where `Step.shifts_mean`.
    """

    x0: Tensor | None = None
    mean: Tensor | None = None


class Prediction(NamedTuple):
    """A guided prediction.

    Attributes:
        x0: The guided x_0, of the sample's shape.
        extra: Learned-variance channels, from the conditional pass; None where there are none.
        mean: The sum of the terms' `Shift.mean`; None where there is none.
    """

    x0: Tensor
    extra: Tensor | None = None
    mean: Tensor | None = None
