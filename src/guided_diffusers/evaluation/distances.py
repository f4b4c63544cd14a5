"""Distances between two sets of images in the space of a feature network.

All functions take features of real images first and of generated ones second, `(count, d)`; nothing is said
about the network, so a figure must carry its name. They depend neither on the order of rows nor on batches.

References:
    | Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (arXiv:1706.08500): Frechet distance
    | Binkowski et al., "Demystifying MMD GANs" (arXiv:1801.01401): kernel distance, unbiased
    | Kynkaanniemi et al., "Improved Precision and Recall Metric" (arXiv:1904.06991)
    | Naeem et al., "Reliable Fidelity and Diversity Metrics" (arXiv:2002.09797): density and coverage
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_int, check_number, check_that, shown

_BLOCK_ROWS = 2048
_MOST = 1e30  # its cubes and squares are finite in float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean `(d,)` and unbiased covariance `(d, d)` of a set of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments_of(features: Tensor) -> Moments:
    """Mean and covariance of features `(count, d)`, count at least 2."""
    features = _checked("features", features).double()
    return Moments(mean=features.mean(0), covariance=torch.cov(features.T).reshape(features.shape[1], -1))


def frechet_distance(real_features: Tensor, generated_features: Tensor) -> float:
    """The Frechet distance between Gaussians fitted to both sets (FID's formula, with these features).

        |m_r - m_g|^2 + tr C_r + tr C_g - 2 tr (C_r C_g)^(1/2)

    It is biased upwards for few images, the more the fewer: compare only equal numbers.

    Args:
        real_features: `(count, d)`, at least 2 rows.
        generated_features: `(count, d)`, at least 2 rows.

    Raises:
        ValueError: Shapes that do not fit, too few rows, or values that are not finite.
    """
    real, generated = _both(real_features, generated_features)
    return frechet_distance_of_moments(moments_of(real), moments_of(generated))


def frechet_distance_of_moments(real: Moments, generated: Moments) -> float:
    """`frechet_distance` of given means and covariances."""
    root = square_root(real.covariance)
    cross = torch.linalg.eigvalsh(root @ generated.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (real.mean - generated.mean).square().sum()
    distance = shift + real.covariance.trace() + generated.covariance.trace() - 2 * cross
    return max(0.0, distance.item())


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance, also of a singular one."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(
    real_features: Tensor, generated_features: Tensor, *, degree: int = 3, gamma: float | None = None
) -> float:
    """The squared maximum mean discrepancy under the kernel `(gamma x.y + 1)^degree`: KID's, on all rows.

    Unbiased whatever the number of images, so it may be negative where the sets are equally distributed.

    Args:
        real_features: `(count, d)`, at least 2 rows.
        generated_features: `(count, d)`, at least 2 rows.
        degree: Of the polynomial, 1 to 4.
        gamma: Above 0; 1 / d by default.

    Raises:
        ValueError: As `frechet_distance`.
    """
    real, generated = _both(real_features, generated_features)
    real, generated = real.double(), generated.double()
    degree = check_int("degree", degree, 1, 4)
    gamma = 1 / real.shape[1] if gamma is None else check_number("gamma", gamma, 0, 1e6, above=True)
    within = sum(_mean_off_diagonal(features, degree, gamma) for features in (real, generated))
    return (within - 2 * cross_kernel(real, generated, degree, gamma).mean()).item()


def kernel_matrix(a: Tensor, b: Tensor, degree: int, gamma: float) -> Tensor:
    """The polynomial kernel of every pair of rows, `(len(a), len(b))`."""
    return (gamma * (a @ b.T) + 1) ** degree


def cross_kernel(real: Tensor, generated: Tensor, degree: int = 3, gamma: float | None = None) -> Tensor:
    """For each generated row the mean of its kernel with all real rows, `(len(generated),)`."""
    gamma = 1 / real.shape[1] if gamma is None else gamma
    total = sum(kernel_matrix(block, generated, degree, gamma).sum(0) for block in real.split(_BLOCK_ROWS))
    return total / len(real)


def _mean_off_diagonal(features: Tensor, degree: int, gamma: float) -> Tensor:
    """The mean kernel of two different rows of one set."""
    total = sum(kernel_matrix(block, features, degree, gamma).sum() for block in features.split(_BLOCK_ROWS))
    own = ((gamma * features.square().sum(1) + 1) ** degree).sum()
    return (total - own) / (len(features) * (len(features) - 1))


def precision_recall(real_features: Tensor, generated_features: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall: the fraction of one set inside the other's k-nearest-neighbour balls.

    Args:
        real_features: `(count, d)`, more than k rows.
        generated_features: `(count, d)`, more than k rows.
        k: Which neighbour's distance is a ball's radius, at least 1.

    Returns:
        Precision (generated images that look real) and recall (real images that could be generated).

    Raises:
        ValueError: As `frechet_distance`, or k out of range.
    """
    real, generated = _both(real_features, generated_features)
    precision = inside_balls(generated, real, neighbour_distances(real, k)) > 0
    recall = inside_balls(real, generated, neighbour_distances(generated, k)) > 0
    return precision.double().mean().item(), recall.double().mean().item()


def density_coverage(real_features: Tensor, generated_features: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage: precision and recall's steadier kin, both with the real set's balls.

    Args:
        real_features: `(count, d)`, more than k rows.
        generated_features: `(count, d)`, at least 2 rows.
        k: Which neighbour's distance is a ball's radius, at least 1.

    Returns:
        Density (mean number of real balls around a generated image, over k; may exceed 1) and coverage (the
        fraction of real balls that hold a generated image).

    Raises:
        ValueError: As `precision_recall`.
    """
    real, generated = _both(real_features, generated_features)
    radii = neighbour_distances(real, k)
    density = inside_balls(generated, real, radii).double().mean() / k
    return density.item(), covered(real, radii, generated).double().mean().item()


def neighbour_distances(features: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other row, `(count,)`."""
    check_int("k", k, 1, len(features) - 1)
    parts = []
    for first in range(0, len(features), _BLOCK_ROWS):
        squared = _squared_distances(features[first : first + _BLOCK_ROWS], features)
        rows = torch.arange(len(squared))
        squared[rows, first + rows] = 0  # a row's own distance, without the rounding
        parts.append(squared.kthvalue(k + 1, dim=1).values)
    return torch.cat(parts).sqrt()


def inside_balls(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """In how many balls each point lies, `(len(points),)`."""
    limit = radii.square()
    return torch.cat(
        [(_squared_distances(block, centres) <= limit).sum(1) for block in points.split(_BLOCK_ROWS)]
    )


def covered(centres: Tensor, radii: Tensor, points: Tensor) -> Tensor:
    """Whether each ball holds a point, `(len(centres),)` bool."""
    blocks = zip(centres.split(_BLOCK_ROWS), radii.square().split(_BLOCK_ROWS), strict=True)
    return torch.cat([_squared_distances(block, points).min(1).values <= limit for block, limit in blocks])


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances `(len(a), len(b))` in float64, by one matrix product."""
    a, b = a.double(), b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_(min=0)


def _both(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    real, generated = _checked("real_features", real), _checked("generated_features", generated)
    allowed = f"as many dimensions as real_features has, {real.shape[1]}: features of one network"
    check_that(real.shape[1] == generated.shape[1], "generated_features", generated, allowed)
    return real, generated


def _checked(name: str, features: Tensor) -> Tensor:
    try:
        features = torch.as_tensor(features).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is {shown(features)}; allowed: a tensor (count, dimensions)") from None
    real = not features.is_complex() and features.dtype != torch.bool
    fits = real and features.ndim == 2 and len(features) > 1 and features.shape[1] > 0
    check_that(fits, name, features, "real numbers (count, dimensions), count >= 2")
    check_finite(name, features, _MOST)
    return features if features.is_floating_point() else features.double()
