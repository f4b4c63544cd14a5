"""How far two images are apart in the eyes of a network: a loss that a blur does not please.

    d(x, y) = mean over layers l of mean over positions of |f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)||^2

f_l are a frozen network's feature maps, |.| the norm over channels. That is LPIPS without its learned weights
of channels, so any network with feature maps will do: EfficientNet-Lite0, a classifier that our scripts
trained. LPIPS itself is used where the package `lpips` and its weights are at hand.

The network's weights take no gradient, but the reconstruction does: it must not be measured under `no_grad`.

References:
    The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (equation 1), arXiv:1801.03924.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
"""`(reconstruction, images) -> scalar`: of images `(batch, 1 or 3, height, width)` in [-1, 1], float32."""


class MappedNetwork(Protocol):
    """A feature network that shows its feature maps too.

    Attributes:
        network: The module behind it.
    """

    network: nn.Module

    def feature_maps(self, images: Tensor) -> Sequence[Tensor]:
        """Maps, each `(batch, channels, h, w)`, of images `(batch, 1 or 3, height, width)` in [-1, 1]."""


def perceptual_distance(spec: str | Path) -> PerceptualDistance:
    """A distance by the name of its network.

    Args:
        spec: "efficientnet-lite0" (ImageNet), "lpips", or a classifier's file (of `save_judge`).

    Raises:
        ValueError: Nothing of that name, or a network that shows no feature maps.
        ImportError: Its weights are not there; the message says what to install.
    """
    from guided_diffusers.evaluation.features import feature_network

    if spec == "lpips":
        return LPIPSDistance()
    network = feature_network(spec)
    if not hasattr(network, "feature_maps"):
        raise ValueError(
            f"perceptual_network {str(spec)!r} shows no feature maps; allowed: efficientnet-lite0, lpips, or "
            "a classifier's file"
        )
    return FeatureDistance(network)


class FeatureDistance:
    """`feature_distance` on the maps of a network, which is frozen and put into evaluation mode."""

    def __init__(self, features: MappedNetwork) -> None:
        self.features = features
        features.network.eval().requires_grad_(False)

    def __call__(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """The distance, in float32 whatever autocast says; its gradient flows to the reconstruction."""
        self.features.network.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                target = self.features.feature_maps(images.float())
            return feature_distance(self.features.feature_maps(reconstruction.float()), target)


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The distance of two sequences of feature maps, each `(batch, channels, h, w)`: a scalar.

    0 for equal maps, at most 4 (maps of opposite sign), and blind to the scale of the features at a position.
    """
    terms = [
        (_unit(one) - _unit(other)).square().sum(1).mean() for one, other in zip(first, second, strict=True)
    ]
    return torch.stack(terms).mean()


def _unit(features: Tensor) -> Tensor:
    """Features of norm 1 at every position; where all are 0 they stay 0, and the gradient is finite."""
    return features * (features.square().sum(1, keepdim=True) + 1e-6).rsqrt()


class LPIPSDistance:
    """LPIPS itself, by the package `lpips` with its AlexNet.

    Raises:
        ImportError: The package does not import, or its network's weights cannot be had.
    """

    def __init__(self) -> None:
        try:
            import lpips

            self.network = lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                f"perceptual_network lpips needs the package lpips and its weights ({error}): pip install "
                "lpips, or use efficientnet-lite0"
            ) from error

    def __call__(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """The mean distance, in float32 whatever autocast says; its gradient flows to the reconstruction."""
        self.network.to(images.device)
        first, second = (batch.float().expand(-1, 3, -1, -1) for batch in (reconstruction, images))
        with torch.autocast(images.device.type, enabled=False):
            return self.network(first, second).mean()
