"""Real images as the yardstick: their features, cached on disk, and what every comparison needs of them."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guided_diffusers.evaluation.distances import (
    Moments,
    cross_kernel,
    kernel_matrix,
    moments_of,
    neighbour_distances,
    square_root,
)
from guided_diffusers.evaluation.features import FeatureNetwork, extract_features
from guided_diffusers.store.files import cache_folder, write_atomically

PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5


def reference_features(images: Tensor, network: FeatureNetwork, cache: Path | str | None = None) -> Tensor:
    """Features of real images, from the cache where they are there.

    Args:
        images: `(count, channels, height, width)` uint8.
        network: The feature network; its `fingerprint`, where it has one, is part of the key.
        cache: A folder; None is `cache_folder()`.

    Returns:
        `(count, d)` float32.
    """
    digest = hashlib.sha256(images.contiguous().numpy().tobytes())
    digest.update(f"{tuple(images.shape)} {network.name} {getattr(network, 'fingerprint', '')}".encode())
    folder = cache_folder() if cache is None else Path(cache)
    path = folder / "features" / f"{network.name}-{digest.hexdigest()[:24]}.safetensors"
    if path.is_file():
        return load_file(path)["features"]
    features = extract_features(network, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda at: save_file({"features": features.contiguous()}, at))
    return features


class Reference:
    """Features of real images `(count, d)`, and what is computed of them once for many comparisons."""

    def __init__(self, features: Tensor) -> None:
        self.features = features.double()

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        return moments_of(self.features)

    @cached_property
    def covariance_root(self) -> Tensor:
        """The symmetric square root of the covariance, `(d, d)`."""
        return square_root(self.moments.covariance)

    @cached_property
    def kernel_mean(self) -> float:
        """The mean cubic kernel of two different real images."""
        count, d = self.features.shape
        total = sum(
            kernel_matrix(block, self.features, 3, 1 / d).sum().item() for block in self.features.split(2048)
        )
        own = ((self.features.square().sum(1) / d + 1) ** 3).sum().item()
        return (total - own) / (count * (count - 1))

    def kernel_with(self, features: Tensor) -> Tensor:
        """For each row of features its mean cubic kernel with the real images."""
        return cross_kernel(self.features, features)

    @cached_property
    def precision_radii(self) -> Tensor:
        """The distance to the third nearest neighbour, `(count,)`."""
        return neighbour_distances(self.features, PRECISION_NEIGHBOURS)

    @cached_property
    def coverage_radii(self) -> Tensor:
        """The distance to the fifth nearest neighbour, `(count,)`."""
        return neighbour_distances(self.features, COVERAGE_NEIGHBOURS)


def as_reference(real: Reference | Tensor) -> Reference:
    """A Reference of features, or the one that is given."""
    return real if isinstance(real, Reference) else Reference(torch.as_tensor(real))
