"""Everything that needs the inner products of generated and real features, from one pass over them.

Those products are most of the work of a comparison: 1,000 generated images against 10,000 real ones with
1,280 features are 26 GFLOPs a pass, and precision, recall, density, coverage and the kernel distance each
need them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.evaluation.reference import Reference

_BLOCK_ROWS = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbourhood:
    """How generated images lie among real ones.

    Attributes:
        precision_balls: `(generated,)`, in how many real balls (k = 3) an image lies.
        density_balls: `(generated,)`, the same for k = 5.
        recalled: `(real,)` bool, whether a real image lies in a generated ball (k = 3).
        covered: `(real,)` bool, whether a real ball (k = 5) holds a generated image.
        kernel: `(generated,)`, the mean cubic kernel with real images.
    """

    precision_balls: Tensor
    density_balls: Tensor
    recalled: Tensor
    covered: Tensor
    kernel: Tensor


def neighbourhood(real: Reference, generated: Tensor, own_radii: Tensor) -> Neighbourhood:
    """Compare generated features `(count, d)`, with the radii `(count,)` of their own balls, to real ones."""
    generated = generated.double()
    squares, limits = generated.square().sum(1)[:, None], own_radii.square()[:, None]
    precision_balls = torch.zeros(len(generated), dtype=torch.int64)
    density_balls, kernel = precision_balls.clone(), torch.zeros(len(generated), dtype=torch.float64)
    recalled, covered = [], []
    for first in range(0, len(real.features), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        block = real.features[rows]
        inner = generated @ block.T
        squared = (squares + block.square().sum(1) - 2 * inner).clamp_(min=0)
        precision_balls += (squared <= real.precision_radii[rows].square()).sum(1)
        in_coverage = squared <= real.coverage_radii[rows].square()
        density_balls += in_coverage.sum(1)
        covered.append(in_coverage.any(0))
        recalled.append((squared <= limits).any(0))
        kernel += inner.div_(generated.shape[1]).add_(1).pow_(3).sum(1)
    return Neighbourhood(
        precision_balls=precision_balls,
        density_balls=density_balls,
        recalled=torch.cat(recalled),
        covered=torch.cat(covered),
        kernel=kernel / len(real.features),
    )
