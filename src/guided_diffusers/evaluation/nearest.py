"""The nearest training images of generated ones: has a model learned the distribution, or the images?

Distances are Euclidean, between features of a network or between pixels. New real images are the yardstick:

    ratio = mean distance generated -> training / mean distance held-out real -> training

is 1 for a model as far from its training set as fresh data, 0 for one that repeats it. Below 1 is no proof of
memorisation: typical images, such as strong guidance draws, lie nearer to their neighbours too. So `copies`
counts the generated images that are nearer than all but the nearest hundredth of the held-out ones (0.01 is
to be expected), and the picture of the closest pairs shows them.

References:
    Meehan et al., "A Non-Parametric Test to Detect Data-Copying in Generative Models" (arXiv:2004.05675).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_int, check_tensor, check_that
from guided_diffusers.evaluation.estimate import Estimate, ratio_of_means, wilson_estimate
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures

COPY_QUANTILE = 0.01
"""A generated image nearer to training than this quantile of held-out ones counts as a copy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """The nearest references of each query, nearest first.

    Attributes:
        indices: `(queries, k)` int64, rows of the references.
        distances: `(queries, k)` float64, Euclidean.
    """

    indices: Tensor
    distances: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorisation:
    """How near generated images lie to the training set, beside held-out real ones.

    Attributes:
        ratio: Mean distance of generated over that of held-out images, with its bootstrap interval.
        copies: Fraction of generated images nearer than the `COPY_QUANTILE` of held-out ones (0.01 is to be
            expected).
        generated: The nearest training image of each generated one.
        held_out: The nearest training image of each held-out one.
    """

    ratio: Estimate
    copies: Estimate
    generated: Nearest
    held_out: Nearest


@torch.no_grad()
def nearest_images(
    queries: Tensor, references: Tensor, *, k: int = 1, query_block: int = 512, reference_block: int = 8192
) -> Nearest:
    """The k nearest references of each query, block by block: memory is that of one block of distances.

    Args:
        queries: `(count, ...)`: features, or images, of any dtype; all but the first dimension are flattened.
        references: `(others, ...)`, of the queries' shape but for the first dimension.
        k: From 1 to the number of references.
        query_block: Queries at a time.
        reference_block: References at a time. Blocks change nothing.

    Raises:
        ValueError: Shapes that do not fit, none of either, or k out of range.
    """
    for name, value in (("queries", queries), ("references", references)):
        real = not check_tensor(name, value, floating=False).is_complex() and value.dtype != torch.bool
        check_that(real, name, value, "real numbers")
        check_finite(name, value, 1e150)
    for name, value in (("query_block", query_block), ("reference_block", reference_block)):
        check_int(name, value, 1, None)
    fits = queries.ndim > 1 and len(queries) and queries.shape[1:] == references.shape[1:]
    sides = ", ".join(map(str, references.shape[1:]))
    check_that(fits, "queries", queries, f"(count, {sides}) as references, count >= 1")
    check_int("k", k, 1, len(references))
    references = references.flatten(1)
    parts = [
        _of_block(block, references, k, reference_block) for block in queries.flatten(1).split(query_block)
    ]
    indices, distances = (torch.cat(many) for many in zip(*parts, strict=True))
    return Nearest(indices=indices, distances=distances)


def _of_block(queries: Tensor, references: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Indices and distances `(queries, k)`: the best so far, block after block of references."""
    queries = queries.double()
    squared = torch.full((len(queries), 0), torch.inf, dtype=torch.float64)
    indices = torch.empty(len(queries), 0, dtype=torch.int64)
    for first in range(0, len(references), block):
        part = references[first : first + block].double()
        found = part.square().sum(1) - 2 * queries @ part.T  # less |query|^2, the same for all
        numbers = torch.arange(first, first + len(part)).expand(len(queries), -1)
        squared, indices = torch.cat([squared, found], 1), torch.cat([indices, numbers], 1)
        squared, places = squared.topk(min(k, squared.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, places)
    # Once more by differences: the product's rounding would hide how near a copy is.
    distances = torch.stack(
        [
            (query - references[row].double()).square().sum(1).sqrt()
            for query, row in zip(queries, indices, strict=True)
        ]
    )
    distances, order = distances.sort(dim=1, stable=True)
    return indices.gather(1, order), distances


def memorisation(
    generated: Tensor, training: Tensor, held_out: Tensor, *, resamples: int = 2000, seed: int = 0
) -> Memorisation:
    """Compares generated images' distances to the training set with those of held-out real images.

    Args:
        generated: `(count, ...)` features or images.
        training: `(count, ...)` of the images that the model was trained on.
        held_out: `(count, ...)` of real images that it was not trained on.
        resamples: Bootstrap resamples of the ratio.
        seed: Of the resampling.

    Raises:
        ValueError: As `nearest_images`; or held-out images that all lie in the training set.
    """
    ours, theirs = nearest_images(generated, training), nearest_images(held_out, training)
    own, expected = ours.distances[:, 0], theirs.distances[:, 0]
    check_that(expected.any(), "held_out", held_out, "real images of which some are not in training")
    near = own < expected.quantile(COPY_QUANTILE)
    return Memorisation(
        ratio=ratio_of_means(own, expected, resamples=resamples, seed=seed),
        copies=wilson_estimate(int(near.sum()), len(near)),
        generated=ours,
        held_out=theirs,
    )


def closest_pairs(
    generated: Tensor, training: Tensor, found: Nearest, *, count: int = 10, min_pixels: int = 64
) -> Image.Image:
    """A picture of the generated images that lie nearest to a training image, each above it.

    Args:
        generated: `(count, 1 or 3, height, width)`: uint8, or float in [-1, 1].
        training: The training images, as `generated`.
        found: What `nearest_images` found of these two (or of their features), in the same order.
        count: Pairs to show, the closest first, their distances above them.
        min_pixels: Smaller images are enlarged to at least this side.

    Raises:
        ValueError: Not as many generated images as found.
    """
    fits, rows = len(generated) == len(found.indices), len(found.indices)
    check_that(fits, "generated", generated, f"{rows} images, as many as found has rows")
    distances = found.distances[:, 0]
    chosen = distances.argsort(stable=True)[:count]
    rows = [to_pictures(generated[chosen]), to_pictures(training[found.indices[chosen, 0]])]
    headers = [f"{distances[index]:.3g}" for index in chosen.tolist()]
    return labelled_grid(rows, ["generated", "nearest in training"], min_pixels, headers, "distance")
