"""What an upsampler's network is told: the small picture, noised and scaled up; and words or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int, check_that
from guided_diffusers.core.condition import Condition
from guided_diffusers.core.denoiser import dtype_of
from guided_diffusers.models.super_resolution import LOW_RES, Augmentation, Channels
from guided_diffusers.pipelines.drawing import noise_of
from guided_diffusers.pipelines.prompts import PromptEncoder, Prompts


@dataclass(frozen=True, kw_only=True)
class SmallPictures:
    """What an upsampler's network sees and is told of a small picture: a part that the pipeline holds.

    Attributes:
        channels: How the network's input channels are shared out.
        augmentation: The levels to which it was noised in training; None where it never was.
    """

    channels: Channels
    augmentation: Augmentation | None

    def level(self, level: Any, default: int) -> int:
        """A call's `augmentation_level`; None is the default. ValueError where it is none."""
        if self.augmentation is None:
            check_that(
                level in (None, 0),
                "augmentation_level",
                level,
                "None or 0, because this network was trained on small pictures without noise (it has no "
                "low_res_scheduler)",
            )
            return 0
        level = default if level is None else level
        return check_int("augmentation_level", level, 0, self.augmentation.most)

    def seen(
        self, small: Tensor, level: int, generator: Any, sides: Sequence[int], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Arguments of the network for small pictures at a level, drawn from a generator.

        Args:
            small: `(batch, channels, height, width)`.
            level: Of the noise.
            generator: One, or one a picture.
            sides: Of the sample.
            dtype: The network's.
        """
        if self.augmentation is None:
            return {LOW_RES: self.channels.beside(small, sides, None)}
        noise = noise_of(small.shape, generator, small.device, dtype).to(small.dtype)
        small, drawn = self.augmentation.noised(small, noise, torch.full((len(small),), level))
        told = {} if self.channels.told else {"class_labels": drawn.timestep.to(small.device)}
        return {LOW_RES: self.channels.beside(small, sides, drawn.sigma), **told}


def condition_of(
    unet: Any,
    seen: Mapping[str, Tensor],
    encoder: PromptEncoder,
    prompts: Prompts | None,
    labels: Tensor | None,
    with_null: bool,
) -> Condition:
    """What an upsampler's network is told, and where guidance asks for it, the null of it.

    Args:
        unet: The network.
        seen: What it sees and is told of the small pictures.
        encoder: Of prompts.
        prompts: One for all pictures, or one each; None of a network without text.
        labels: Likewise, of a network of classes.
        with_null: Whether the null is wanted.
    """
    low_res = seen[LOW_RES]
    if prompts is not None:
        dtype, times = dtype_of(unet, torch.float32), len(low_res) // prompts.count
        return encoder.condition(prompts, low_res.device, dtype, times, with_null, None, seen, {})
    if labels is None:
        return Condition(seen, seen)
    labels = labels.to(low_res.device)
    null = torch.full_like(labels, unet.config.num_class_embeds - 1)
    return Condition({**seen, "class_labels": labels}, {**seen, "class_labels": null})
