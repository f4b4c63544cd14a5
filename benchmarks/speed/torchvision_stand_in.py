"""The few image transforms that diffusers' train_text_to_image.py takes from torchvision, for PIL images.

torchvision's wheels from PyPI need the CUDA build of torch and do not import beside the CPU one. These do the
same by the same PIL calls, so that the script runs unmodified; the benchmark says when they were used.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    """Names of PIL's resampling filters."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    """Transforms one after another."""

    def __init__(self, transforms: list[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """The image after all of them."""
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """A function as a transform."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, image: Any) -> Any:
        """The function's value."""
        return self.function(image)


class Resize:
    """The shorter side to `size`; an image that has it is returned as it is."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """The resized image."""
        shorter = min(image.size)
        if shorter == self.size:
            return image
        size = tuple(round(side * self.size / shorter) for side in image.size)
        return image.resize(size, self.interpolation.value)


class CenterCrop:
    """The middle square of side `size`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """The cropped image."""
        left, top = ((side - self.size) // 2 for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class RandomCrop(CenterCrop):
    """A square of side `size` anywhere."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The cropped image."""
        left, top = (random.randint(0, side - self.size) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class RandomHorizontalFlip:
    """Reflects left and right half of the time."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image or its reflection."""
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


class ToTensor:
    """(channels, height, width) float32 in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        """The image's tensor."""
        pixels = torch.from_numpy(np.array(image, copy=True))
        return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """Subtracts a mean and divides by a deviation, one for all channels or one each."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        """The normalised tensor."""
        return (image - self.mean) / self.std
