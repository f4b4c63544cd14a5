"""What is measured of a set of generated images: `measure(images, labels)` gives every figure by name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.evaluation.agreement import agreement
from guided_diffusers.evaluation.estimate import ratio_of_means
from guided_diffusers.evaluation.features import FeatureNetwork, extract_features
from guided_diffusers.evaluation.images import ImageSet
from guided_diffusers.evaluation.judge import Judge, judge_images, to_unit_range
from guided_diffusers.evaluation.reference import Reference
from guided_diffusers.evaluation.report import distance_report, figure_names
from guided_diffusers.evaluation.sharpness import high_frequency_energy, laplacian_energy


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Distances to real images in the features of a network, and agreement with the classes asked for.

    Attributes:
        network: The feature network.
        reference: The real images.
        judge: A classifier that the generator has never met; None measures no agreement.
        resamples: Bootstrap resamples of the intervals.
    """

    network: FeatureNetwork
    reference: Reference
    judge: Judge | None = None
    resamples: int = 200

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """Every figure of a set of images by name, each with its interval."""
        features = extract_features(self.network, images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said once by whoever measures
            report = distance_report(self.reference, features, self.network.name, resamples=self.resamples)
        figures = {name: estimate.to_dict() for name, estimate in report.items()}
        if self.judge is not None and labels is not None:
            figures["agreement"] = agreement(judge_images(self.judge, images), labels).overall.to_dict()
        return figures

    def distance(self, kind: str) -> str:
        """The name of the "kernel" or the "frechet" distance among the figures."""
        frechet, kernel = figure_names(self.network.name)
        return {"kernel": kernel, "frechet": frechet}[kind]


class ClassMetrics:
    """Agreement by class, sharpness and variance within classes, over those of real images.

    Args:
        judge: A classifier that the generator has never met.
        real: The real images, with their labels and the classes' names.
    """

    def __init__(self, judge: Judge, real: ImageSet) -> None:
        self.judge, self.names = judge, real.names
        scaled = to_unit_range(real.images.double())
        self.spectral, self.laplacian = high_frequency_energy(scaled), laplacian_energy(scaled)
        self.variance = _variance_within(real.images, real.labels)

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """The judge's agreement, both sharpness ratios, and the ratio of variance within classes."""
        agrees = agreement(judge_images(self.judge, images), labels)
        scaled = to_unit_range(images.double())
        return {
            "images": len(images),
            "agreement": _rounded(agrees.overall.to_dict()),
            "agreement_per_class": {
                self.names[label]: round(estimate.value, 4) for label, estimate in agrees.per_class.items()
            },
            "sharpness": _rounded(ratio_of_means(high_frequency_energy(scaled), self.spectral).to_dict()),
            "sharpness_laplacian": _rounded(
                ratio_of_means(laplacian_energy(scaled), self.laplacian).to_dict()
            ),
            "variance_within_class": round(_variance_within(images, labels) / self.variance, 4),
        }


def _variance_within(images: Tensor, labels: Tensor) -> float:
    """Variance of a pixel over the images of one class, averaged over pixels and classes."""
    classes = [images[labels == label].double() for label in labels.unique()]
    return torch.stack([members.var(dim=0).mean() for members in classes]).mean().item()


def _rounded(values: dict[str, float | int]) -> dict[str, float | int]:
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in values.items()}
