"""How different the images of one prompt are: strong guidance buys agreement with it.

    diversity = mean over prompts of the mean distance |f(x) - f(y)| of two different images of the prompt

in the space of a feature network, whose scale the figure has: compare it with that of real images of the same
classes, under the same network only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_tensor, check_that
from guided_diffusers.evaluation.bootstrap import mean_estimate
from guided_diffusers.evaluation.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """The mean pairwise distance of images of one prompt.

    Attributes:
        overall: Its mean over prompts; the interval is that of drawing other prompts.
        per_prompt: Of each prompt with at least two images, in the order in which they first appear.
    """

    overall: Estimate
    per_prompt: dict[Hashable, float]


def prompt_diversity(
    features: Tensor,
    prompts: Sequence[Hashable] | Tensor,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Diversity:
    """The diversity of images that share a prompt.

    Pairs of one prompt share images and are not independent, so the bootstrap resamples prompts. Of a single
    prompt nothing can be said about others: its interval is a point.

    Args:
        features: `(count, d)`, of any feature network.
        prompts: The prompt (or class) of each image; one with a single image is left out.
        resamples: Bootstrap resamples of prompts.
        seed: Of the resampling.
        confidence: The interval's coverage.

    Raises:
        ValueError: Shapes that do not fit, or no prompt with two images.
    """
    check_finite("features", check_tensor("features", features, ("count", "d")))
    listed = prompts.tolist() if isinstance(prompts, Tensor) else prompts
    names = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str | bytes) else []
    fits = len(names) == len(features) and all(isinstance(name, Hashable) for name in names)
    check_that(fits, "prompts", prompts, f"{len(features)} prompts or classes, one an image")
    members: dict[Hashable, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    per_prompt = {
        name: mean_pairwise_distance(features[rows]) for name, rows in members.items() if len(rows) > 1
    }
    check_that(per_prompt, "prompts", prompts, "some that are there twice, for at least two images")
    values = torch.tensor(list(per_prompt.values()), dtype=torch.float64)
    overall = mean_estimate(values, resamples=resamples, seed=seed, confidence=confidence)
    return Diversity(overall=overall, per_prompt=per_prompt)


def mean_pairwise_distance(features: Tensor) -> float:
    """The mean Euclidean distance of two different rows of `(count, d)`, count at least 2."""
    check_finite("features", check_tensor("features", features, ("count", "d")))
    check_that(len(features) > 1 and features.shape[1], "features", features, "(count, d), count >= 2")
    return torch.nn.functional.pdist(features.double()).mean().item()
