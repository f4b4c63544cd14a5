"""Randomness as a function of position: (seed, global sample index) and nothing else.

What a sample is made of must not depend on the rank, the number of processes or the batch it falls into. So
each sample has a generator of its own, seeded by a hash of the run's seed and the sample's global index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from operator import index
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that, shown

_MASK = (1 << 64) - 1
_MOST = 1 << 32


class Stream(IntEnum):
    """What a run draws: `seed_for(seed, Stream.NOISE)` is the seed of one use, independent of the others'.

    The numbers are part of every run that goes on, so they stay as they were first given. Two names of one
    number are uses that no run has both of.
    """

    NOISE = 1
    """eps, and the draw from a latent's posterior."""
    LEVEL = 2
    """The noise level or timestep."""
    DEQUANTISATION = 1
    """The noise in the bins of an autoencoder's pixels, whose posterior is drawn with the run's own seed."""
    POSTERIOR = 1
    """The draws of an autoencoder's measurements."""

    CAPTION_DROPOUT = 3
    PROMPTS_DRAWN = 4
    """The pictures of prompts for validation."""

    IMAGES_DRAWN = 3
    """The pictures for validation of a model without text."""
    CLASS_DROPOUT = 4

    CROP_ROW = 3
    CROP_COLUMN = 4
    MEASURED = 5
    """The noise of a classifier's or CLIP's validation."""
    SUBSET = 6
    """Which rows a classifier learns from."""

    DENOISED_LEVEL = 101
    """Of latents as a denoiser gives them, which an autoencoder's decoder learns from."""
    DENOISED_NOISE = 102

    AUGMENTATION_LEVEL = 103
    """Of the small pictures that an upsampler sees."""
    AUGMENTATION_NOISE = 104
    AUGMENTATION_BLUR = 105
    UPSAMPLER_ROW = 106
    """Where the square lies that an upsampler learns from."""
    UPSAMPLER_COLUMN = 107

    SHARDS = 108
    """The order of a stream's shards in an epoch."""
    BUFFER = 109
    """The order of the rows of a stream's buffer."""
    MIRRORED = 110
    """Which samples of a stream are mirrored."""
    PRIOR = 121
    """Pictures that a pretrained pipeline draws to be kept, and their samples."""
    BUCKETS = 122
    """The order of batches that are each of one size of pictures."""


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a well-mixing bijection of 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def seed_for(seed: int, sample_index: int) -> int:
    """The seed of one sample.

    Args:
        seed: The run's seed, any integer.
        sample_index: The sample's global index, any integer: its place in the whole run, not in a batch or on
            a rank.

    Returns:
        An integer in [0, 2^63), which `torch.Generator.manual_seed` takes as it is.
    """
    return _mix(_mix(index(seed) & _MASK) ^ (index(sample_index) & _MASK)) >> 1


def generator_for(seed: int, sample_index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one sample, seeded by `seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, sample_index))


def randn_for(
    seed: int,
    sample_indices: Sequence[int],
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise with one generator a sample, drawn on the CPU: the same on every device.

    Args:
        seed: The run's seed.
        sample_indices: Global indices, one a sample.
        shape: The shape of one sample.
        device: Where the result goes.
        dtype: Of the result; drawn in it.

    Returns:
        `(len(sample_indices), *shape)`.
    """
    noise = _empty(sample_indices, shape, dtype)
    generator = torch.Generator()
    for row, number in zip(noise, sample_indices, strict=True):
        row.normal_(generator=generator.manual_seed(seed_for(seed, number)))
    return noise.to(device)


def rand_for(
    seed: int,
    sample_indices: Sequence[int],
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1); otherwise as `randn_for`."""
    numbers = _empty(sample_indices, shape, dtype)
    generator = torch.Generator()
    for row, number in zip(numbers, sample_indices, strict=True):
        row.uniform_(generator=generator.manual_seed(seed_for(seed, number)))
    return numbers.to(device)


def check_generator(value: Any, count: int) -> torch.Generator | list[torch.Generator] | None:
    """A generator or a list of one a sample, as `as_generators` gives it; ValueError where it is neither."""
    several = value if isinstance(value, list | tuple) else [value] * count
    right = value is None or all(isinstance(each, torch.Generator) for each in several)
    if not right or len(several) != count:
        given = f"a list of {len(several)} for {count} samples" if right else shown(value)
        raise ValueError(f"generator is {given}; allowed: a torch.Generator, or a list of one a sample")
    return as_generators(value)


def as_generators(value: Any) -> torch.Generator | list[torch.Generator] | None:
    """A source of noise as diffusers takes it: of several generators only a list, never a tuple."""
    return list(value) if isinstance(value, Sequence) else value


def _empty(sample_indices: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    fits = math.prod(shape) * len(sample_indices) <= _MOST
    check_that(fits, "shape", tuple(shape), f"at most {_MOST:,} numbers in all")
    return torch.empty(len(sample_indices), *shape, dtype=dtype)
