"""Every distance of a set of generated images to real ones, each with its interval and its network's name."""

from __future__ import annotations

import warnings

from torch import Tensor

from guided_diffusers.evaluation.bootstrap import frechet_estimate, kernel_estimate, mean_estimate
from guided_diffusers.evaluation.distances import neighbour_distances
from guided_diffusers.evaluation.estimate import Estimate, wilson_estimate
from guided_diffusers.evaluation.neighbours import neighbourhood
from guided_diffusers.evaluation.reference import (
    COVERAGE_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    Reference,
    as_reference,
)

FRECHET_IMAGES = 10_000
"""Below this many images a Frechet distance says more about their number than is usually thought."""


def figure_names(network_name: str) -> tuple[str, str]:
    """The names of the Frechet and the kernel distance: FID and KID for the standard's Inception only."""
    return ("FID", "KID") if network_name == "inception" else (f"FD-{network_name}", f"KD-{network_name}")


def distance_report(
    real: Reference | Tensor,
    generated_features: Tensor,
    network_name: str,
    *,
    resamples: int = 1000,
    frechet_resamples: int = 50,
    seed: int = 0,
) -> dict[str, Estimate]:
    """All distances.

    Args:
        real: Features of real images `(count, d)`, or their Reference, which saves work over several calls.
        generated_features: `(count, d)`, more than 5 rows.
        network_name: The feature network's name, which the figures' names carry.
        resamples: Bootstrap resamples of generated images.
        frechet_resamples: The same for the Frechet distance, whose resamples cost an eigendecomposition each.
        seed: Of the resampling.

    Returns:
        "FD-<network>", "KD-<network>", precision, recall (k = 3), density, coverage (k = 5). Recall and
        coverage are fractions of real images, so their intervals (Wilson's) are those of drawing real images.

    Warns:
        UserWarning: Below 10,000 generated images, where the Frechet distance's bias is large.
    """
    real, generated = as_reference(real), generated_features.double()
    frechet, kernel = figure_names(network_name)
    if len(generated) < FRECHET_IMAGES:
        warnings.warn(
            f"{frechet} of {len(generated)} images is biased upwards (below {FRECHET_IMAGES:,} by a lot): "
            f"compare it only at equal numbers of images, and see {kernel}, which is unbiased",
            stacklevel=2,
        )
    own_radii = neighbour_distances(generated, PRECISION_NEIGHBOURS)
    seen = neighbourhood(real, generated, own_radii)
    dense = seen.density_balls.double() / COVERAGE_NEIGHBOURS
    return {
        frechet: frechet_estimate(real, generated, resamples=frechet_resamples, seed=seed),
        kernel: kernel_estimate(real, generated, seen.kernel, resamples=resamples, seed=seed),
        "precision": _fraction(seen.precision_balls > 0),
        "recall": _fraction(seen.recalled),
        "density": mean_estimate(dense, resamples=resamples, seed=seed),
        "coverage": _fraction(seen.covered),
    }


def _fraction(hits: Tensor) -> Estimate:
    return wilson_estimate(int(hits.sum()), len(hits))
