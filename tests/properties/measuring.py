"""Calls whose input is checked: distances, agreement, estimates, likelihoods, evidence bounds."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from properties.harness import Target, finite
from properties.strategies import BATCH, SEEDS, generators, integers, numbers, tensors, uniform
from tiny import tiny_autoencoder
from torch import Tensor

from guided_diffusers import GuidedDDPMScheduler
from guided_diffusers.evaluation import frechet_distance, kernel_distance, precision_recall
from guided_diffusers.evaluation.agreement import agreement
from guided_diffusers.evaluation.bootstrap import mean_estimate
from guided_diffusers.evaluation.distances import density_coverage
from guided_diffusers.evaluation.diversity import prompt_diversity
from guided_diffusers.evaluation.estimate import ratio_of_means, wilson_estimate
from guided_diffusers.evaluation.nearest import memorisation, nearest_images
from guided_diffusers.evaluation.sharpness import high_frequency_energy, laplacian_energy
from guided_diffusers.likelihood.bound import estimated_bound, full_bound, mean_interval

FEATURES = tensors(9, 3)
SETS = {"real_features": FEATURES, "generated_features": tensors(7, 3)}
RESAMPLES = {"resamples": st.integers(1, 20), "seed": SEEDS}
CONFIDENCE = st.floats(0.5, 0.99)
IMAGES = uniform(BATCH, 1, 4, 4).map(lambda images: 2 * images - 1)


def network(sample: Tensor, timestep: Tensor, **condition: Any) -> Tensor:
    """No noise at all, it says."""
    return torch.zeros_like(sample)


def scheduler(steps: int = 4) -> GuidedDDPMScheduler:
    """Of a short chain."""
    made = GuidedDDPMScheduler(num_train_timesteps=steps)
    made.set_timesteps(steps)
    return made


@cache
def autoencoder() -> Any:
    """Of grey 4x4 images, with a likelihood."""
    return tiny_autoencoder(likelihood="gaussian", sample_size=4)


def _to_dict(call: Any) -> Any:
    return lambda **given: call(**given).to_dict()


def _bounds(call: Any) -> Any:
    return lambda **given: [bound.total for bound in call(**given).values()]


def _elbo(**given: Any) -> Any:
    bound = autoencoder().elbo(**given)
    return [bound.elbo.detach(), bound.objective.detach(), bound.bits_per_dim.detach()]


LIKELIHOOD = {
    "network": st.just(network),
    "schedulers": st.just({"small": scheduler()}),
    "images": IMAGES,
    "condition": st.none() | st.just({}) | st.just({"class_labels": torch.zeros(BATCH, dtype=torch.int64)}),
    "seed": st.integers(),
    "first_index": st.integers(0, 2**40),
    "batch_size": st.integers(1, 50),
    "floor": st.sampled_from([0.0, 1e-12]),
}

TARGETS: dict[str, Target] = {
    "frechet_distance": Target(call=frechet_distance, arguments=SETS, right=finite),
    "kernel_distance": Target(
        call=kernel_distance,
        arguments={**SETS, "degree": st.integers(1, 4), "gamma": st.none() | st.floats(0.01, 2)},
        right=finite,
    ),
    "precision_recall": Target(
        call=precision_recall, arguments={**SETS, "k": st.integers(1, 6)}, right=finite
    ),
    "density_coverage": Target(
        call=density_coverage, arguments={**SETS, "k": st.integers(1, 8)}, right=finite
    ),
    "prompt_diversity": Target(
        call=lambda **given: prompt_diversity(**given).overall.to_dict(),
        arguments={
            "features": FEATURES,
            "prompts": st.just([0, 0, 1, 1, 1, "a", "a", 2, 2]) | integers(2, 9),
            **RESAMPLES,
            "confidence": CONFIDENCE,
        },
        right=finite,
    ),
    "agreement": Target(
        call=lambda **given: agreement(**given).overall.to_dict(),
        arguments={"logits": tensors(5, 3), "labels": integers(3, 5), "confidence": CONFIDENCE},
        right=finite,
        called={"logits": "labels"},
    ),
    "mean_estimate": Target(
        call=_to_dict(mean_estimate),
        arguments={"values": tensors(5), **RESAMPLES, "confidence": CONFIDENCE},
        right=finite,
    ),
    "wilson_estimate": Target(
        call=_to_dict(wilson_estimate),
        arguments={
            "successes": st.integers(0, 5),
            "trials": st.integers(5, 10**6),
            "confidence": CONFIDENCE,
        },
        right=finite,
        called={"trials": "successes"},
    ),
    "ratio_of_means": Target(
        call=_to_dict(ratio_of_means),
        arguments={
            "numerator": uniform(5),
            "denominator": uniform(4).map(lambda values: values + 1),
            "confidence": CONFIDENCE,
            **RESAMPLES,
        },
        right=finite,
    ),
    "nearest_images": Target(
        call=lambda **given: nearest_images(**given).distances,
        arguments={
            "queries": tensors(3, 4),
            "references": tensors(6, 4),
            "k": st.integers(1, 6),
            "query_block": st.integers(1, 9),
            "reference_block": st.integers(1, 9),
        },
        right=finite,
        called={"references": "queries"},
    ),
    "memorisation": Target(
        call=lambda **given: memorisation(**given).ratio.to_dict(),
        arguments={
            "generated": tensors(3, 4),
            "training": uniform(6, 4),
            "held_out": tensors(5, 4),
            **RESAMPLES,
        },
        right=finite,
        called={"generated": "queries", "training": "references", "held_out": "queries"},
    ),
    "high_frequency_energy": Target(
        call=high_frequency_energy,
        arguments={"images": tensors(BATCH, 1, 6, 5), "cutoff": st.floats(0, 0.49)},
        right=finite,
    ),
    "laplacian_energy": Target(
        call=laplacian_energy, arguments={"images": tensors(BATCH, 3, 4, 3)}, right=finite
    ),
    "mean_interval": Target(
        call=_to_dict(mean_interval),
        arguments={"values": tensors(5), "confidence": CONFIDENCE},
        right=finite,
    ),
    "full_bound": Target(call=_bounds(full_bound), arguments=LIKELIHOOD, right=finite),
    "estimated_bound": Target(
        call=_bounds(estimated_bound), arguments={**LIKELIHOOD, "draws": st.integers(2, 4)}, right=finite
    ),
    "elbo": Target(
        call=_elbo,
        arguments={
            "images": IMAGES,
            "generator": generators(BATCH),
            "beta": numbers(0, 4),
            "free_bits": numbers(0, 2),
        },
        right=finite,
        called={"images": "generator"},
    ),
    "log_likelihood": Target(
        call=lambda **given: autoencoder().log_likelihood(**given),
        arguments={
            "images": IMAGES,
            "num_samples": st.integers(1, 4),
            "method": st.sampled_from(["importance", "prior"]),
            "seed": st.integers(),
            "first_index": st.integers(0, 2**40),
            "chunk": st.integers(1, 9),
        },
        right=finite,
    ),
}
