"""UNets that work on patches: p x p values of the sample become p^2 channels before the first convolution.

Each level of a UNet costs about as much as the next, which has a fourth of the places and twice the channels.
On patches of 2 x 2 the largest level is not there at all, while the widths of the others stay: a network for
16 x 16 latents then trains some 2.5 times as fast on a CPU, an upsampler of pixels 1.5 times. Only the first
and the last convolution are others than in the class of diffusers; blocks, names of weights and forward stay.

References:
    Luhman and Luhman, "Improving Diffusion Model Efficiency Through Patching" (arXiv:2207.04316).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from guided_diffusers.core.checks import check_int, check_that
from guided_diffusers.models.safe import SafeWeightsMixin


class _PatchedMixin:
    """Before the class of a UNet among the bases: `conv_in` and `conv_out` on patches."""

    def __init__(self, *, patch_size: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        size = check_int("patch_size", patch_size, 1)
        self.register_to_config(patch_size=size)  # type: ignore[attr-defined]
        sides = self.config.sample_size
        whole = sides is None or all(side % size == 0 for side in np.atleast_1d(sides))
        check_that(whole, "sample_size", sides, f"a multiple of {size}, the patch_size")
        seen, drawn = (self.config[name] * size**2 for name in ("in_channels", "out_channels"))
        first, last = self.conv_in, self.conv_out
        self.conv_in = nn.Sequential(nn.PixelUnshuffle(size), _like(first, seen, first.out_channels))
        self.conv_out = nn.Sequential(_like(last, last.in_channels, drawn), nn.PixelShuffle(size))
        # By 2^num_upsamplers the forward of diffusers knows which sides do not halve evenly: the patches'.
        self.num_upsamplers = getattr(self, "num_upsamplers", 0) + size.bit_length()


def _like(layer: nn.Conv2d, channels: int, outputs: int) -> nn.Conv2d:
    """A new convolution of other channels."""
    return nn.Conv2d(channels, outputs, layer.kernel_size, padding=layer.padding)


def _with_patch_size(cls: type) -> inspect.Signature:
    """The arguments of a class and `patch_size`: diffusers reads those of a configuration from there."""
    stock = inspect.signature(cls.__init__)
    own = inspect.Parameter("patch_size", inspect.Parameter.KEYWORD_ONLY, default=2, annotation=int)
    return stock.replace(parameters=[*stock.parameters.values(), own])


class PatchedUNet2DModel(SafeWeightsMixin, _PatchedMixin, UNet2DModel):
    """UNet2DModel on patches.

    Args:
        patch_size: p, the side of a patch; the sides of a sample are multiples of it.

    Every other argument is UNet2DModel's, by name; `in_channels`, `out_channels` and `sample_size` are
    those of the sample, not of its patches.
    """

    def __init__(self, *, patch_size: int = 2, **arguments: Any) -> None:
        super().__init__(patch_size=patch_size, **arguments)

    __init__.__signature__ = _with_patch_size(UNet2DModel)  # type: ignore[attr-defined]


class PatchedUNet2DConditionModel(SafeWeightsMixin, _PatchedMixin, UNet2DConditionModel):
    """UNet2DConditionModel on patches.

    Args:
        patch_size: p, the side of a patch; the sides of a sample are multiples of it.

    Every other argument is UNet2DConditionModel's, by name; `in_channels`, `out_channels` and `sample_size`
    are those of the sample, not of its patches.
    """

    def __init__(self, *, patch_size: int = 2, **arguments: Any) -> None:
        super().__init__(patch_size=patch_size, **arguments)

    __init__.__signature__ = _with_patch_size(UNet2DConditionModel)  # type: ignore[attr-defined]


_PATCHED = {UNet2DModel: PatchedUNet2DModel, UNet2DConditionModel: PatchedUNet2DConditionModel}


def unet_class(stock: type[nn.Module], arguments: Mapping[str, Any]) -> type[nn.Module]:
    """The class of a UNet with these arguments: the stock one; with a `patch_size`, its sibling."""
    return _PATCHED[stock] if "patch_size" in arguments else stock
