"""A denoiser that sees a large sample tile by tile, without seams.

The tiles overlap, and their estimates of x_0 are blended at every step with weights that fall smoothly to a
tile's border. The sample is one, and so is its noise: each tile is denoised in the state that its neighbours
have left, and a border moves nothing.

    x_0 = sum over tiles i of w_i D(x_t in tile i) / sum over i of w_i                          (1)

References:
    Bar-Tal et al., "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation"
    (arXiv:2302.08113), equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int
from guided_diffusers.core.condition import Condition
from guided_diffusers.core.denoiser import Denoised, Denoiser, as_denoised
from guided_diffusers.core.noise import NoiseLevel


class TiledDenoiser:
    """A denoiser of `(batch, channels, height, width)` that asks another about tiles of it.

    Args:
        denoiser: Asked about one tile after another, each `(batch, channels, side, side)`, or as high or wide
            as the sample where that is smaller.
        side: Of a tile, in positions of the sample.
        overlap: Of neighbouring tiles, at least so many positions.
        unit: Tiles begin at multiples of so many positions (the factor by which a network shrinks its input).
        spatial: Arguments of a Condition that are maps of the sample's sides, and cut with it.

    Raises:
        ValueError: A side, overlap or unit that do not go together.
    """

    def __init__(
        self, denoiser: Denoiser, side: int, overlap: int, unit: int = 1, spatial: Sequence[str] = ()
    ) -> None:
        self.denoiser, self.spatial = denoiser, tuple(spatial)
        self.unit = check_int("unit", unit, 1)
        self.side = check_int("tile_size", side, 2 * self.unit)
        self.overlap = check_int("tile_overlap", overlap, self.unit, self.side - self.unit)
        if self.side % self.unit:
            raise ValueError(f"tile_size is {side}; allowed: a multiple of {self.unit}")

    def __call__(self, sample: Tensor, level: NoiseLevel, condition: Any = None) -> Denoised:
        """The blended estimate of x_0."""
        return self.batch(sample, level, [condition])[0]

    def batch(self, sample: Tensor, level: NoiseLevel, conditions: Sequence[Any]) -> list[Denoised]:
        """One blended answer a condition; each tile is asked about all of them at once."""
        rows, columns = (self._starts(length) for length in sample.shape[2:])
        totals: list[list[Tensor]] = [[] for _ in conditions]
        weights = sample.new_zeros(sample.shape[2:])
        for row, column in product(rows, columns):
            place = (..., slice(row, row + self.side), slice(column, column + self.side))
            weight = self._weight(sample[place])
            weights[place] += weight
            cut = [self._cut(condition, place) for condition in conditions]
            for total, answer in zip(totals, self._ask(sample[place], level, cut), strict=True):
                for number, part in enumerate(part for part in answer if part is not None):
                    if number == len(total):
                        total.append(part.new_zeros(*part.shape[:2], *sample.shape[2:]))
                    total[number][place] += weight.to(part) * part
        # (1)
        return [Denoised(*(part / weights.to(part) for part in total)) for total in totals]

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin along a side: as evenly as multiples of the unit are."""
        if length <= self.side:
            return [0]
        last, stride = (length - self.side) // self.unit, max((self.side - self.overlap) // self.unit, 1)
        count = math.ceil(last / stride)
        return [self.unit * round(last * number / count) for number in range(count)] + [length - self.side]

    def _weight(self, tile: Tensor) -> Tensor:
        """The weight of each position: sin^2 along both sides, rising over the overlap."""
        sides = []
        for length in tile.shape[2:]:
            place = torch.arange(length, dtype=torch.float64) + 0.5
            ramp = (torch.minimum(place, length - place) / self.overlap).clamp(max=1)
            sides.append((ramp * math.pi / 2).sin().square())
        return (sides[0][:, None] * sides[1]).to(tile)

    def _cut(self, condition: Any, place: Any) -> Any:
        if not isinstance(condition, Condition):
            return condition
        maps = {name: condition.positive[name][place] for name in self.spatial if name in condition.positive}
        return replace(condition, positive={**condition.positive, **maps})

    def _ask(self, tile: Tensor, level: NoiseLevel, conditions: Sequence[Any]) -> list[Denoised]:
        if hasattr(self.denoiser, "batch"):
            return self.denoiser.batch(tile, level, conditions)
        return [as_denoised(self.denoiser(tile, level, condition)) for condition in conditions]
