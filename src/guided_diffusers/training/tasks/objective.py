"""What a denoiser learns: at which noise levels, and the loss of each sample.

The simple loss is the weighted squared error of the network's output. With the hybrid one (twice the channels
of output) the network learns the variances of its reverse steps too, from the variational bound, while the
bound sends no gradient into the prediction. Levels are drawn from a distribution or, as timesteps, in
proportion to the size of their past losses.

References:
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from guided_diffusers.core.declared import Declared, Positive
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.process import VariancePreserving
from guided_diffusers.likelihood.variational import hybrid_terms
from guided_diffusers.losses import (
    LEVEL_DISTRIBUTIONS,
    LevelDistribution,
    denoising_loss,
    min_snr_weight,
    quartile,
    uniform_weight,
)
from guided_diffusers.schedulers import GuidedDDPMScheduler, process_of
from guided_diffusers.schedulers.adapt import prediction_type_of
from guided_diffusers.training.engine.config import option
from guided_diffusers.training.tasks.importance import ImportanceSampler
from guided_diffusers.training.tasks.uncertainty import LogVariance

Weighting = Literal["uniform", "min_snr", "uncertainty"]
WEIGHTING = "weight of the squared error; uncertainty: learned along, for each level one over what is left"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Declared):
    """What the network learns, and at which timesteps."""

    loss: Literal["simple", "hybrid", "bound"] = option(
        "simple", "squared error; with the bound's for the variance; or the bound alone"
    )
    bound_weight: Positive = option(0.001, "lambda: weight of the sum over t of the bound's terms (hybrid)")
    timesteps: Literal["uniform", "importance"] = option("uniform", "importance: by the size of past losses")


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(Declared):
    """The noise levels of training, and the weight of each."""

    levels: LevelDistribution = option("uniform", "distribution of the noise level")
    levels_arguments: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "such as mean, std, shift"}
    )
    weighting: Weighting = option("uniform", WEIGHTING)
    min_snr_gamma: Positive = option(5.0, "SNR above which an error of x_0 counts no more")


def learned_variance(scheduler: Any) -> bool:
    """Whether a scheduler's steps take their variance from the network, which then has twice the channels."""
    return scheduler.config.get("variance_type") in ("learned", "learned_range")


class Objective:
    """Draws noise levels, and gives the loss of each sample.

    Args:
        objective: the loss, and how timesteps are drawn.
        denoising: the levels' distribution, and the weight of the squared error.
        scheduler: its levels, prediction type and variance type.

    Raises:
        ValueError: a loss that does not suit the scheduler's variance, levels or weight.
    """

    def __init__(self, objective: ObjectiveConfig, denoising: DenoisingConfig, scheduler: Any) -> None:
        self.objective, self.scheduler, process = objective, scheduler, process_of(scheduler)
        self.prediction_type = prediction_type_of(scheduler)
        self._check(denoising)
        self.levels = LEVEL_DISTRIBUTIONS[denoising.levels](process, **denoising.levels_arguments)
        weightings = {"uniform": uniform_weight, "min_snr": min_snr_weight(denoising.min_snr_gamma)}
        self.weighting = weightings.get(denoising.weighting, uniform_weight)
        self.uncertainty = LogVariance() if denoising.weighting == "uncertainty" else None
        self.sampler = None
        if objective.timesteps == "importance":
            if not isinstance(process, VariancePreserving):
                raise ValueError(
                    f"objective.timesteps is 'importance' and scheduler {type(scheduler).__name__}, whose "
                    "levels are a continuum: use 'uniform'"
                )
            self.sampler = ImportanceSampler(len(process.abar))

    def _check(self, denoising: DenoisingConfig) -> None:
        loss, variance = self.objective.loss, self.scheduler.config.get("variance_type")
        if learned_variance(self.scheduler) != (loss != "simple"):
            raise ValueError(
                f"objective.loss is {loss!r} with variance_type {variance!r}: use 'simple' "
                "with a fixed variance, 'hybrid' or 'bound' with a learned one"
            )
        if loss != "simple" and not isinstance(self.scheduler, GuidedDDPMScheduler):
            raise ValueError(
                f"objective.loss is {loss!r} and scheduler {type(self.scheduler).__name__}; a learned "
                "variance is of GuidedDDPMScheduler"
            )
        if loss == "bound" and (denoising.weighting, denoising.levels) != ("uniform", "uniform"):
            raise ValueError(
                f"objective.loss is 'bound' with denoising.weighting {denoising.weighting!r} and "
                f"denoising.levels {denoising.levels!r}: it is a bound where both are 'uniform'"
            )
        plain = (loss, self.objective.timesteps) == ("simple", "uniform")
        if denoising.weighting == "uncertainty" and not plain:
            raise ValueError(
                f"denoising.weighting is 'uncertainty' with objective.loss {loss!r} and objective.timesteps "
                f"{self.objective.timesteps!r}: it weighs a 'simple' loss at 'uniform' timesteps"
            )
        if self.objective.timesteps == "importance" and denoising.levels != "uniform":
            raise ValueError(
                f"objective.timesteps is 'importance' and denoising.levels {denoising.levels!r}: they draw "
                "the same thing; leave one of them 'uniform'"
            )

    def draw(self, uniform: Tensor) -> dict[str, Any]:
        """From uniform numbers, (batch,): the `level`, its quartile in `bins`; with importance `weight` too.

        The weight is what undoes the preference of a timestep. Levels are on the CPU, in float64.
        """
        drawn = {}
        if self.sampler is not None:
            timestep, drawn["weight"] = self.sampler.draw(uniform)
            uniform = (timestep + 0.5) / len(self.sampler.counts)
        level = self.levels(uniform)
        return {**drawn, "level": level, "bins": quartile(self.levels, level)}

    def losses(
        self, output: Tensor, x0: Tensor, noise: Tensor, sample: Tensor, level: NoiseLevel
    ) -> dict[str, Tensor]:
        """The `loss` of each sample, (batch,), and its parts: `simple` and `bound` where it has them.

        Args:
            output: of the network at `sample`, (batch, channels, ...); twice the channels with a learned
                variance.
            x0: (batch, channels, ...).
            noise: eps, of x0's shape.
            sample: x_t, of x0's shape.
            level: its noise level, (batch,).
        """
        kind = self.objective.loss
        if kind == "simple":
            error = denoising_loss(output, x0, noise, level, self.prediction_type, self.weighting)
            if self.uncertainty is not None:
                return {"loss": self.uncertainty.weighted(error, level), "simple": error}
            return {"loss": error}
        simple, bound = hybrid_terms(
            self.scheduler, output, x0, noise, sample, level.timestep, kind == "hybrid", self.weighting
        )
        # Nichol and Dhariwal, equation 16
        loss = bound if kind == "bound" else simple + self.objective.bound_weight * bound
        return {"loss": loss, "simple": simple, "bound": bound}
