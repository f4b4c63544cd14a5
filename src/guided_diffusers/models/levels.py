"""The levels of an ADM network: blocks of one resolution each, and the width of their attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.models.unets.unet_2d_blocks import get_down_block
from torch import nn

from guided_diffusers.core.checks import check_that


def head_widths(
    widths: int | Sequence[int], channels: Sequence[int], types: Sequence[str]
) -> tuple[int, ...]:
    """The width of an attention head at each level, from one number or one a level.

    Args:
        widths: `attention_head_dim`.
        channels: Of each level.
        types: The type of each level's block; only those with attention, and the last level, which the
            middle block shares, need a width that fits.

    Raises:
        ValueError: Another number of widths than levels, or a width that does not divide the channels.
    """
    widths = (widths,) * len(channels) if isinstance(widths, int) else tuple(widths)
    allowed = f"one number, or {len(channels)}, one a level"
    check_that(len(widths) == len(channels), "attention_head_dim", widths, allowed)
    for level, (width, wide) in enumerate(zip(widths, channels, strict=True)):
        attends = types[level].startswith("Attn") or level == len(channels) - 1
        fits = not attends or (width > 0 and wide % width == 0)
        check_that(fits, f"attention_head_dim at level {level}", width, f"what divides {wide} channels")
    return widths


def down_blocks(
    types: Sequence[str],
    channels: Sequence[int],
    widths: Sequence[int],
    downsample_type: str,
    **common: Any,
) -> nn.ModuleList:
    """The blocks of the encoder half, each but the last with a downsampler.

    Args:
        types: "DownBlock2D" or "AttnDownBlock2D", one a level.
        channels: Of each level.
        widths: Of an attention head at each level.
        downsample_type: "resnet" or "conv".
        common: What `get_down_block` takes besides, the same for all levels.
    """
    plain = "ResnetDownsampleBlock2D" if downsample_type == "resnet" else "DownBlock2D"
    before = (channels[0], *channels)
    return nn.ModuleList(
        get_down_block(
            kind if kind.startswith("Attn") else plain,
            in_channels=before[level],
            out_channels=channels[level],
            add_downsample=level < len(channels) - 1,
            downsample_padding=1,
            downsample_type=downsample_type,
            attention_head_dim=widths[level],
            **common,
        )
        for level, kind in enumerate(types)
    )


def set_head_widths(blocks: Sequence[nn.Module], widths: Sequence[int]) -> None:
    """Split the attention of each block into heads of its width; no weight depends on it."""
    for block, width in zip(blocks, widths, strict=True):
        for attention in getattr(block, "attentions", ()):
            if attention is not None:
                attention.heads = attention.sliceable_head_dim = attention.inner_dim // width
                attention.scale = width**-0.5
