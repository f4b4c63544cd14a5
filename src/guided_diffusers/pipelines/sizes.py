"""Sizes of pictures that are made large: of the small picture, of what the network takes, and of tiles."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.core.tiles import TiledDenoiser
from guided_diffusers.models.super_resolution import LOW_RES
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.pictures import resized


def small_of(picture: Tensor, scale: int, height: int | None, width: int | None) -> Tensor:
    """The small picture of a result of the asked size; of none as it is.

    Args:
        picture: `(batch, channels, height, width)`, of any size up to the result's.
        scale: How many times larger the result is.
        height: Of the result, in pixels; None is the picture's times `scale`.
        width: Likewise.

    Returns:
        `(batch, channels, height / scale, width / scale)`.

    Raises:
        ValueError: A size that `scale` does not divide, or a picture that is larger than the result.
    """
    sides = list(picture.shape[2:])
    for axis, (name, target) in enumerate((("height", height), ("width", width))):
        if target is None:
            continue
        inputs.check_size(name, target, scale)
        if sides[axis] > target:
            raise ValueError(
                f"image has {name} {sides[axis]}, larger than the target, {target}; allowed: at most that"
            )
        sides[axis] = target // scale
    for name, side in zip(("height", "width"), sides, strict=True):
        inputs.check_size(f"{name} of the result", side * scale, scale)
    return resized(picture, sides)


def padded(picture: Tensor, unit: int, times: int) -> Tensor:
    """A small picture with its last row and column repeated, up to sides that the network takes.

    Args:
        picture: `(batch, channels, height, width)`.
        unit: Sides of a sample are multiples of this.
        times: Positions of the sample's side for one pixel of the picture's.
    """
    multiple = math.lcm(unit, times) // times
    below, right = (-side % multiple for side in picture.shape[2:])
    return functional.pad(picture, (0, right, 0, below), mode="replicate")


def tiled(
    denoiser: ModelDenoiser, size: Any, overlap: Any, unit: int, factor: int
) -> ModelDenoiser | TiledDenoiser:
    """The denoiser of overlapping tiles; the given one where no size is asked for.

    Args:
        denoiser: Of whole pictures.
        size: Of a tile's side, in pixels; None draws the picture whole.
        overlap: In pixels; None is about a quarter of the side.
        unit: Sides of a sample are multiples of this.
        factor: Pixels of a side for one position of the sample's.

    Raises:
        ValueError: An overlap without a size, or one of them that is not a multiple of what it has to be.
    """
    if size is None:
        if overlap is not None:
            raise ValueError("tile_overlap is given without tile_size; allowed: both, or neither")
        return denoiser
    step = unit * factor
    inputs.check_size("tile_size", size, step)
    if overlap is None:
        overlap = max(size // 4 // step, 1) * step
    inputs.check_size("tile_overlap", overlap, factor)
    return TiledDenoiser(denoiser, size // factor, overlap // factor, unit, (LOW_RES,))
