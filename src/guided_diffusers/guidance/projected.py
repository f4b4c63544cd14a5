"""Adaptive projected guidance: guide across the conditional prediction, little along it.

    d = D_cond - D_null + beta d_previous                                                               (1)
    d <- d min(1, r / |d|)                                                                              (2)
    d_par = <d, D_cond> / |D_cond|^2 D_cond                                                             (3)
    x_0 = D_cond + (gamma - 1) (d - d_par + eta d_par)                                                  (4)

The part of the difference along the prediction raises saturation, the part across it quality; a negative beta
pushes away from where earlier steps pushed. All in x_0 space.

References:
    Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models"
    (arXiv:2410.02416), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from guided_diffusers.core.declared import Between, Positive, Within
from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.guidance.base import MAX_SCALE, Step, column
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance


@dataclass(frozen=True)
class ProjectedGuidance(ClassifierFreeGuidance):
    """Adaptive projected guidance (APG).

    Args:
        scale: gamma: 1 is unguided and costs nothing. A number, or one a sample.
        interval: Where the term is active, in sigma / alpha; None is everywhere.
        parallel: eta, the weight of the part along D_cond; 1 keeps all of it.
        momentum: beta, the weight of earlier differences, in (-1, 1); 0 has none.
        norm_threshold: r, the largest norm of a sample's difference, above 0; None has no limit.

    Raises:
        ValueError: An argument out of its range.
    """

    parallel: Annotated[float, Within(-MAX_SCALE, MAX_SCALE)] = 0.0
    momentum: Annotated[float, Between(-1, 1)] = -0.5
    norm_threshold: Positive | None = None

    def shift(self, step: Step, own: Denoised, answers: Sequence[Denoised]) -> Tensor:
        """(gamma - 1) times the projected difference."""
        # (1)
        difference = own.x0 - answers[0].x0
        if self.momentum:
            key = (type(self).__name__, self.momentum, self.interval)
            if key in step.memory:
                difference = difference + self.momentum * step.memory[key]
            step.memory[key] = difference.detach()
        axes = tuple(range(1, difference.ndim))
        if self.norm_threshold is not None:
            # (2)
            norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
            difference = difference * (self.norm_threshold / norm.clamp(min=1e-12)).clamp(max=1)
        # (4), with (3) in it
        return (column(self.scale, own.x0) - 1) * across(difference, own.x0, self.parallel)


def across(difference: Tensor, direction: Tensor, parallel: float) -> Tensor:
    """A difference, `(batch, ...)`, of whose part along a direction only the share `parallel` is kept."""
    if parallel == 1:
        return difference
    axes = tuple(range(1, difference.ndim))
    along = (difference * direction).sum(axes, keepdim=True)
    squared = direction.square().sum(axes, keepdim=True).clamp(min=1e-24)
    return difference - (1 - parallel) * along / squared * direction
