"""Squares of large pictures and the same squares of the small ones, for training an upsampler.

Where a square lies is a function of (seed, position in training) alone. The small pictures are the large ones
averaged over areas, whole, so that a square of them is the same as at sampling: its margin is the picture's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, stack
from torch.nn import functional

from guided_diffusers.core.checks import shown
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.models.super_resolution import area_averaged
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.images import Images
from guided_diffusers.training.engine.order import uniform_for

MARGIN = 1
"""Pixels of a small picture around its square: what scaling up bilinearly sees beside it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops(Images):
    """Large pictures or their latents, cut to squares.

    Attributes:
        images: As of `Images`: the source of whole ones.
        shape: Of one whole picture or latent, and after construction of one square.
        data: The large pictures.
        scale: Pixels of a large picture's side that one pixel of the small one has.
        side: Of the squares in pixels of the large picture; None for whole pictures.
        factor: Pixels of a side that one position of a latent has; 1 without latents.
        seed: Of the run.

    Raises:
        ValueError: A square or a picture whose side is no multiple of `scale` and `factor`, or too large.
    """

    data: ImageTextDataset
    scale: int
    side: int | None = None
    factor: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the sides; set the shape of a square."""
        if self.latent and self.source is not None:
            raise ValueError(
                "data.stream is true, and an upsampler cuts squares out of latents that are kept; allowed: "
                "autoencoder null, or data.stream false"
            )
        resolution = self.data.shape[1]
        side = resolution if self.side is None else self.side
        for name, value, most in (("data.resolution", resolution, None), ("crop", side, resolution)):
            if value < 1 or value % self.unit or (most is not None and value > most):
                limit = "" if most is None else f", at most {most}"
                raise ValueError(f"{name} is {shown(value)}; allowed: a multiple of {self.unit}{limit}")
        if self.scale % self.factor:
            raise ValueError(
                f"scale is {self.scale} and the autoencoder's factor {self.factor}; allowed: a multiple of it"
            )
        object.__setattr__(self, "side", side)
        object.__setattr__(self, "shape", (self.shape[0], side // self.factor, side // self.factor))

    @property
    def unit(self) -> int:
        """Squares begin and end at multiples of so many pixels."""
        return math.lcm(self.scale, self.factor)

    def corners(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """Row and column of each square's first pixel, in the large picture."""
        places = (self.data.shape[1] - self.side) // self.unit + 1
        streams = (Stream.UPSAMPLER_ROW, Stream.UPSAMPLER_COLUMN)
        drawn = (uniform_for(seed_for(self.seed, stream), positions) for stream in streams)
        rows, columns = ((numbers * places).long() * self.unit for numbers in drawn)
        return list(zip(rows.tolist(), columns.tolist(), strict=True))

    def at(self, indices: Sequence[int], positions: Sequence[int], noise: Tensor) -> Tensor:
        """The squares of some rows, `(batch, *shape)`; `noise` of that shape draws latents."""
        corners = [(row // self.factor, column // self.factor) for row, column in self.corners(positions)]
        if not self.latent:
            return _cut(self.images.sample(indices, noise), corners, self.shape[1])
        mean, deviation = (_cut(part, corners, self.shape[1]) for part in self.images.moments(indices))
        return mean + deviation * noise

    def small(self, indices: Sequence[int]) -> Tensor:
        """The whole small pictures, `(batch, channels, height, width)` in [-1, 1]."""
        return area_averaged(self.data.pixels(indices), self.scale)

    def small_squares(self, small: Tensor, positions: Sequence[int]) -> Tensor:
        """Of small pictures the squares of `at`, with `MARGIN` pixels around each."""
        padded = functional.pad(small, (MARGIN,) * 4, mode="replicate")
        corners = [(row // self.scale, column // self.scale) for row, column in self.corners(positions)]
        return _cut(padded, corners, self.side // self.scale + 2 * MARGIN)


def _cut(pictures: Tensor, corners: Sequence[tuple[int, int]], side: int) -> Tensor:
    squares = zip(pictures, corners, strict=True)
    return stack([each[:, row : row + side, column : column + side] for each, (row, column) in squares])
