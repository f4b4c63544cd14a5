"""Time-step guidance: away from what the network predicts when it is told another timestep.

    x_0 = D(x_t, t~) + w (D(x_t, t) - D(x_t, t~)),    t~ = t + s t^a n,  n ~ N(0, 1)

Told too early a timestep a network removes too much noise, told too late a one too little. It needs no
condition. This is not the paper's noise: that is on the timestep's embedding, inside the network, each entry
of each sample by itself, s t^a times the embedding's deviation; here it is on the timestep, what is embedded,
so that any network takes it, and the paper's values of s are not these. n is one number a step, the same for
all samples: a function of the seed and of how many steps of the run the term was active in, so that a batch
does not change a sample.

References:
    Sadat et al., "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models"
    (arXiv:2407.02687), section 5, equation 8; its noise in appendix G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from guided_diffusers.core.declared import Amount, Positive
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.guidance.base import Guidance, Query, Scale, Step, column
from guided_diffusers.guidance.interval import GuidanceInterval


@dataclass(frozen=True)
class TimestepGuidance(Guidance):
    """Time-step guidance (TSG).

    Args:
        scale: w: 1 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        noise: s, above 0: at the default exponent the deviation of t~ as a share of t.
        exponent: a, at least 0.
        seed: Of n.

    Where timesteps are integers t~ is one. A denoiser that is told no timestep is asked at a sigma that
    differs by a factor of e^(s n).
    """

    neutral: ClassVar[float] = 1.0
    scale: Scale
    interval: GuidanceInterval | None = None
    noise: Positive = 0.1
    exponent: Amount = 1.0
    seed: int = 0

    def queries(self, step: Step) -> tuple[Query, ...]:
        """The prediction under the same condition, at another timestep."""
        key = (type(self).__name__, self.seed, self.interval)
        step.memory[key] = step.memory.get(key, -1) + 1
        n = torch.randn((), generator=generator_for(self.seed, step.memory[key]), dtype=torch.float64).item()
        return (Query(condition=step.condition, level=self.perturbed(step.level, n)),)

    def perturbed(self, level: NoiseLevel, n: float) -> NoiseLevel:
        """A level as the network is told it."""
        if level.timestep is None:
            return replace(level, sigma=level.sigma * torch.tensor(self.noise * n, dtype=torch.float64).exp())
        given = torch.as_tensor(level.timestep)
        timestep = given.double()
        # section 5: t~, of the timestep where the paper has its embedding
        told = timestep + self.noise * timestep.abs() ** self.exponent * n
        told = torch.where(timestep >= 0, told.clamp(min=0), told)
        return replace(level, timestep=told if given.is_floating_point() else told.round().to(given.dtype))

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(w - 1) (D(x_t, t) - D(x_t, t~))."""
        # equation 8
        return (column(self.scale, own.x0) - 1) * (own.x0 - answers[0].x0)
