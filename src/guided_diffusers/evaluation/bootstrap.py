"""Bootstrap intervals of distances: generated images are resampled, real ones are not.

A resample is a vector of counts, one a generated image; Gram matrices are computed once and reweighted. Two
things of the plain bootstrap are wrong for distances and mended here. A pair of copies of one image is no
pair of independent images: the kernel distance of a resample leaves such pairs out. And a resample has fewer
different images, which biases a Frechet distance upwards: its interval is the spread of the resamples about
their own mean, laid around the estimate.

References:
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 10
"""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_int, check_tensor, check_that
from guided_diffusers.evaluation.estimate import Estimate, generator_of, percentiles
from guided_diffusers.evaluation.reference import Reference


def kernel_estimate(
    real: Reference,
    generated: Tensor,
    cross: Tensor | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """The kernel distance (cubic, unbiased) with its interval.

    Args:
        real: The real images.
        generated: `(count, d)`.
        cross: `(count,)`, the mean kernel of each with the real images, where it is known already.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
        confidence: The interval's coverage.

    Raises:
        ValueError: Fewer than three images.
    """
    generated = generated.double()
    count, d = generated.shape
    check_that(count > 2, "generated", generated, "at least three images: resamples of two are the same pair")
    gram = (generated @ generated.T / d + 1) ** 3
    gram.fill_diagonal_(0)
    cross = real.kernel_with(generated) if cross is None else cross

    def distance(weights: Tensor) -> Tensor:
        pairs = weights.sum(1) ** 2 - weights.square().sum(1)
        within = ((weights @ gram) * weights).sum(1) / pairs
        return real.kernel_mean + within - 2 * (weights @ cross) / weights.sum(1)

    counts = _counts(count, resamples, seed)
    counts = counts[counts.amax(1) < count]  # of an image alone there is no pair
    values = torch.cat([distance(part) for part in counts.split(200)])
    value = distance(torch.ones(1, count, dtype=torch.float64)).item()
    return _around(value, values, count, confidence)


def frechet_estimate(
    real: Reference, generated: Tensor, *, resamples: int = 50, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The Frechet distance with its interval; arguments as of `kernel_estimate`.

    Where images are fewer than dimensions, the trace of the root comes from a Gram matrix of images.
    """
    generated = generated.double()
    count, d = generated.shape
    rooted = (generated - real.moments.mean) @ real.covariance_root  # shifted by the real mean: no matter
    small = count < d
    gram = rooted @ rooted.T if small else None
    total = real.moments.covariance.trace()

    def distance(weights: Tensor) -> float:
        chosen = weights > 0
        w = weights[chosen] / weights.sum()
        scale = weights.sum() / (weights.sum() - 1)
        features = generated[chosen]
        mean = w @ features
        variance = scale * (w @ (features - mean).square().sum(1))
        if small:
            inner = gram[chosen][:, chosen]
            along = inner @ w
            centred = inner - along[:, None] - along + w @ along
            spectrum = scale * w.sqrt()[:, None] * centred * w.sqrt()
        else:
            rows = rooted[chosen] - w @ rooted[chosen]
            spectrum = scale * (rows * w[:, None]).T @ rows
        root = torch.linalg.eigvalsh(spectrum).clamp(min=0).sqrt().sum()
        shift = (mean - real.moments.mean).square().sum()
        return max(0.0, (shift + variance + total - 2 * root).item())

    values = torch.tensor([distance(weights) for weights in _counts(count, resamples, seed)])
    value = distance(torch.ones(count, dtype=torch.float64))
    return _around(value, values.double() - values.double().mean() + value, count, confidence, floor=0.0)


def mean_estimate(
    values: Tensor, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The mean of one value an image, with its percentile interval."""
    values = check_finite("values", check_tensor("values", values, ("count",))).double()
    check_that(len(values), "values", values, "at least one")
    counts = _counts(len(values), resamples, seed)
    return _around(values.mean().item(), counts @ values / len(values), len(values), confidence)


def _counts(count: int, resamples: int, seed: int) -> Tensor:
    """How often each image is in each resample, `(resamples, count)` float64."""
    resamples = check_int("resamples", resamples, 1)
    drawn = torch.randint(count, (resamples, count), generator=generator_of(seed))
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(resamples, count)
    )


def _around(
    value: float, values: Tensor, count: int, confidence: float, floor: float = -float("inf")
) -> Estimate:
    low, high = percentiles(values, confidence)
    return Estimate(value=value, low=max(floor, min(low, value)), high=max(high, value), count=count)
