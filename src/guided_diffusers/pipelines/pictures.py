"""Pictures that people give a pipeline, as tensors: files, PIL images, arrays, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from guided_diffusers.core.checks import check_finite, shown
from guided_diffusers.models.super_resolution import area_averaged
from guided_diffusers.store.image_reader import eight_bit_image, read_image

_KINDS = "a PIL image, a file's path, an array (height, width, channels), a tensor, or a list of these"


def read_pictures(image: Any, channels: int, name: str = "image") -> Tensor:
    """Pictures of one size, `(batch, channels, height, width)` float32 in [-1, 1].

    Args:
        image: PIL images and files of any kind become grey or RGB, as `channels` says. An array is
            `([batch,] height, width[, channels])` and a tensor `([batch,] channels, height, width)`: 8-bit
            integers, or floating-point numbers in [0, 1] as a pipeline's "np" and "pt" give. Or a list.
        channels: Of the result.
        name: The argument's, for messages.

    Raises:
        ValueError: Nothing of these, a file that cannot be read, other channels, values out of range, or
            several sizes.
    """
    several = list(image) if isinstance(image, list | tuple) else [image]
    if not several:
        raise ValueError(f"{name} is an empty list; allowed: {_KINDS}")
    read = [_tensor(each, channels, name) for each in several]
    if len({tuple(each.shape[2:]) for each in read}) > 1:
        sizes = ", ".join(sorted({"x".join(map(str, each.shape[2:])) for each in read}))
        raise ValueError(f"{name} has pictures of different sizes ({sizes}); allowed: one size a call")
    return torch.cat(read)


def _tensor(image: Any, channels: int, name: str) -> Tensor:
    if isinstance(image, str | Path):
        try:
            image = read_image(Path(image), channels)
        except Exception as error:  # Pillow raises anything for a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{name} is {shown(str(image))}, which cannot be read: {reason}") from error
    if isinstance(image, Image.Image):
        if channels not in (1, 3):
            raise ValueError(f"{name} is a picture file, and the network sees {channels}: give a tensor")
        image = np.asarray(eight_bit_image(image, channels))
        image = image[..., None] if channels == 1 else image
    given = shown(image) if isinstance(image, Tensor) else f"an array of shape {np.shape(image)}"
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image))
        image = image[..., None] if image.ndim == 2 else image
        image = image.movedim(-1, -3) if image.ndim in (3, 4) else image
    if not isinstance(image, Tensor):
        raise ValueError(f"{name} is {shown(image)}; allowed: {_KINDS}")
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or 0 in image.shape or image.shape[1] != channels:
        raise ValueError(f"{name} is {given}; allowed: {channels} channels, the network's")
    if image.dtype == torch.uint8:
        return image.float() / 127.5 - 1
    if not image.is_floating_point():
        raise ValueError(f"{name} is {given}; allowed: 8-bit integers, or floating-point numbers in [0, 1]")
    image = check_finite(name, image.float())
    if image.min() < 0 or image.max() > 1:
        low, high = image.min().item(), image.max().item()
        raise ValueError(f"{name} has values from {low:.3g} to {high:.3g}; allowed: 0 to 1")
    return 2 * image - 1


def resized(picture: Tensor, sides: Sequence[int]) -> Tensor:
    """Pictures `(batch, channels, height, width)` at other sides: areas averaged down, bicubic up."""
    if tuple(picture.shape[2:]) == tuple(sides):
        return picture
    factor = picture.shape[2] // sides[0]
    if factor > 1 and tuple(picture.shape[2:]) == tuple(factor * side for side in sides):
        return area_averaged(picture, factor)
    if picture.shape[2] >= sides[0] and picture.shape[3] >= sides[1]:
        return functional.adaptive_avg_pool2d(picture, tuple(sides))
    resized = functional.interpolate(picture, tuple(sides), mode="bicubic", antialias=True)
    return resized.clamp(-1, 1)
