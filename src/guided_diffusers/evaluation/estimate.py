"""Figures with their uncertainty: a value and the interval around it.

A fraction gets Wilson's score interval, which stays inside [0, 1] and is sound near 0 and 1; a ratio of two
means gets the percentile interval of the bootstrap.

References:
    | Probable Inference, the Law of Succession, and Statistical Inference (Wilson, 1927)
    | An Introduction to the Bootstrap (Efron & Tibshirani, 1993), chapter 13
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Annotated

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_int, check_tensor, check_that
from guided_diffusers.core.declared import Between, read

Confidence = Annotated[float, Between(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure, the two ends of its confidence interval, and the number of observations behind it."""

    value: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, float | int]:
        """The four fields under their names, ready for JSON."""
        return asdict(self)


def wilson_estimate(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """A fraction with Wilson's score interval.

    Args:
        successes: How many trials succeeded, 0 to `trials`.
        trials: How many there were, at least 1.
        confidence: The interval's coverage, strictly between 0 and 1.

    Raises:
        ValueError: If a number is outside its range.
    """
    check_int("trials", trials, 0, 2**53)
    check_that(trials, "trials", trials, f"at least one trial of which {successes} are successes")
    check_int("successes", successes, 0, trials)
    z = NormalDist().inv_cdf(0.5 + read("confidence", confidence, Confidence) / 2)
    fraction = successes / trials
    shrink = 1 + z * z / trials
    centre = (fraction + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(fraction * (1 - fraction) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Estimate(value=fraction, low=low, high=high, count=trials)


def ratio_of_means(
    numerator: Tensor, denominator: Tensor, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """mean(numerator) / mean(denominator) with a bootstrap interval, both samples resampled independently.

    Args:
        numerator: (n,) observations, such as the energy of each generated image.
        denominator: (m,) observations, such as the energy of each real image; their mean must not be 0.
        confidence: The interval's coverage, strictly between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: If a sample is empty or not one-dimensional, or the denominator's mean is 0.
    """
    for name, values in (("numerator", numerator), ("denominator", denominator)):
        check_finite(name, check_tensor(name, values, ("n",)), 1e150)
        check_that(len(values), name, values, "at least one number")
    top, bottom = numerator.double().cpu(), denominator.double().cpu()
    check_that(bottom.mean() != 0, "denominator", denominator, "observations whose mean is not 0")
    check_int("resamples", resamples, 1)
    generator = generator_of(seed)

    def resampled_means(values: Tensor) -> Tensor:
        count = values.numel()
        at_once = max(1, 1_000_000 // count)
        sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
        draws = (torch.randint(count, (size, count), generator=generator) for size in sizes)
        return torch.cat([values[index].mean(dim=1) for index in draws])

    ratios = resampled_means(top) / resampled_means(bottom)
    low, high = percentiles(ratios, confidence)
    return Estimate(value=(top.mean() / bottom.mean()).item(), low=low, high=high, count=top.numel())


def percentiles(values: Tensor, confidence: float) -> tuple[float, float]:
    """The ends of the interval that holds the middle share `confidence` of some resamples' values."""
    tail = (1 - read("confidence", confidence, Confidence)) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def generator_of(seed: int) -> torch.Generator:
    """The generator of a resampling, its seed from 0 to 2^63 - 1."""
    return torch.Generator().manual_seed(check_int("seed", seed, 0, 2**63 - 1))
