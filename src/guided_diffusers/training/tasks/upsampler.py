"""What an upsampler is told in training: the small picture at a random level of noise, captions, classes.

The task is that of every denoiser, `denoiser.DenoisingTask`; this is its condition. The level s of the small
picture's noise is uniform on 0, 1, ..., `max_level`, and the noise is that of the small picture's own size:
z_s is scaled up as at sampling (`models.super_resolution`).

References:
    Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation" (arXiv:2106.15282), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from guided_diffusers.core.declared import AtLeast, Declared, Share
from guided_diffusers.core.randomness import Stream, randn_for, seed_for
from guided_diffusers.models.super_resolution import (
    LOW_RES,
    Augmentation,
    Channels,
    SuperResolutionNetwork,
    area_averaged,
    blurred,
)
from guided_diffusers.pipelines.upsample import UpsamplePipeline
from guided_diffusers.training.data.crops import MARGIN, Crops
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.stream import open_held_out
from guided_diffusers.training.engine.config import arguments, option
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.tasks.conditioning import Conditioning, Labels

BLUR = (0.4, 0.6)
"""Deviations of the blur in pixels of the small picture (arXiv:2106.15282, section 4.3)."""


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Declared):
    """How small pictures are changed in training, so that drawn ones will do at sampling."""

    max_level: Annotated[int, AtLeast(0)] = option(350, "levels are 0 to this timestep; 0: no noise")
    process: dict[str, Any] = arguments("DDPMScheduler's: the process of the levels", DDPMScheduler)
    blur: Share = option(0.0, "share of small pictures that are blurred a little")
    default_level: Annotated[int, AtLeast(0)] = option(50, "at sampling, saved with the checkpoint")

    @property
    def scheduler(self) -> DDPMScheduler | None:
        """The process of the levels; None for none."""
        if self.max_level == 0:
            return None
        return DDPMScheduler(**{"beta_schedule": "squaredcos_cap_v2", **self.process})


@dataclass(frozen=True, kw_only=True)
class UpsamplerDrawingConfig:
    """What is drawn for validation, and how the result is written."""

    images: Annotated[int, AtLeast(0)] = option(8, "held-out pictures to make large; 0: none")
    split: str = option("test", "where they are from")
    num_inference_steps: int = option(20, "steps; also saved as the checkpoint's default")
    guidance_scale: float | None = option(None, "gamma, also saved as the default; null: no guidance")
    export_dtype: Literal["float32", "float16"] = option("float32", "of unet and vae in final/")


class NoCondition(Conditioning):
    """Nothing but the small picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SmallPicture(Conditioning):
    """The small picture beside another condition; ends in an UpsamplePipeline.

    Attributes:
        crops: the large pictures' squares, and the small ones'.
        channels: how the network's input is shared out.
        config: of the augmentation.
        drawing: what is drawn for validation.
        inner: captions, classes or nothing.
        components: of the pipeline beside the denoiser: vae, text_encoder, tokenizer.
        held_out: validation pictures and what they show, as the pipeline's arguments.
        num_classes: of a class-conditional network.
    """

    crops: Crops
    channels: Channels
    config: AugmentationConfig
    drawing: UpsamplerDrawingConfig
    inner: Conditioning
    components: Mapping[str, Any]
    held_out: Mapping[str, Any]
    num_classes: int | None = None
    drawing_stream = Stream.IMAGES_DRAWN

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """Those of the inner condition."""
        return self.inner.trained

    @property
    def posterior_first(self) -> bool:
        """As of the inner condition."""
        return self.inner.posterior_first

    @property
    def export_dtype(self) -> str:
        """As configured."""
        return self.drawing.export_dtype

    @property
    def further_channels(self) -> int:
        """The small picture's, and that of its level."""
        return self.channels.further

    @property
    def augmentation(self) -> Augmentation | None:
        """The levels; None for none."""
        scheduler = self.config.scheduler
        return None if scheduler is None else Augmentation(scheduler, self.config.max_level)

    def check(self, unet: nn.Module) -> None:
        """Raise ValueError where the network cannot be told the level, or the classes."""
        _ = self.augmentation  # of a level that the process has not, this is the place to say so
        by_label, most = self.config.max_level > 0 and not self.channels.told, self.config.max_level
        if isinstance(self.inner, Labels):
            if by_label:
                raise ValueError(
                    f"augmentation.max_level is {most}, and class_labels are classes: the level needs one "
                    f"input channel more, unet.in_channels {self.channels.sample + self.channels.picture + 1}"
                )
            return self.inner.check(unet)
        if by_label == (unet.class_embedding is None):
            raise ValueError(
                f"augmentation.max_level is {most}, and the level is told by class_labels: allowed is "
                "unet.class_embed_type 'timestep' (or num_class_embeds) above 0, and None at 0"
            )

    def network(self, unet: nn.Module) -> nn.Module:
        """The network with the small picture beside x_t."""
        return SuperResolutionNetwork(unet)

    def begin(self, folder: Any) -> None:
        """As the inner condition."""
        self.inner.begin(folder)

    def rows(self, indices: list[int], positions: list[int], seed: int) -> dict[str, Any]:
        """Squares of the noised small pictures, their levels, and what the inner condition says."""
        small = self.crops.small(indices)
        if self.config.blur > 0:
            drawn = uniform_for(seed_for(seed, Stream.AUGMENTATION_BLUR), positions)
            low, high = BLUR
            deviation = low + (high - low) * drawn / self.config.blur
            small = blurred(small, torch.where(drawn < self.config.blur, deviation, 0.0))
        rows: dict[str, Any] = {"inner": self.inner.rows(indices, positions, seed)}
        if (augmentation := self.augmentation) is not None:
            uniform = uniform_for(seed_for(seed, Stream.AUGMENTATION_LEVEL), positions)
            noise = randn_for(seed_for(seed, Stream.AUGMENTATION_NOISE), positions, small.shape[1:])
            # arXiv:2106.15282, algorithm 1: z_s ~ q(z_s | z)
            small, level = augmentation.noised(small, noise, (uniform * (augmentation.most + 1)).long())
            rows |= {"level": level.timestep, "sigma": level.sigma.float()}
        return {**rows, LOW_RES: self.crops.small_squares(small, positions)}

    def inputs(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        """The small pictures at the sample's sides, their level, and what the inner condition says."""
        times = self.crops.scale // self.crops.factor
        sides = [times * side for side in rows[LOW_RES].shape[2:]]
        large = self.channels.beside(rows[LOW_RES], sides, rows.get("sigma"))
        margin = times * MARGIN
        told = {} if self.channels.told or "level" not in rows else {"class_labels": rows["level"]}
        low_res = large[..., margin:-margin, margin:-margin]
        return {LOW_RES: low_res, **told, **self.inner.inputs(rows["inner"])}

    def pipeline(self, modules: Mapping[str, nn.Module], scheduler: Any) -> UpsamplePipeline:
        """With the scale, the process of the augmentation and the defaults of the drawing."""
        most, drawing = self.config.max_level, self.drawing
        return UpsamplePipeline(
            **{**self.components, **modules, "scheduler": scheduler},
            low_res_scheduler=self.config.scheduler,
            scale=self.crops.scale,
            image_size=self.crops.data.shape[1],
            max_noise_level=most,
            augmentation_level=min(self.config.default_level, most),
            num_inference_steps=drawing.num_inference_steps,
            num_classes=self.num_classes,
            default_guidance=1.0 if drawing.guidance_scale is None else drawing.guidance_scale,
        )

    def pictures(self) -> tuple[dict[str, Any], int, int]:
        """Held-out pictures, in rows of at most four."""
        count = len(self.held_out.get("image", ()))
        return dict(self.held_out), count, next(n for n in range(4, 0, -1) if count % n == 0)


def held_out_pictures(
    data: DataConfig, drawing: UpsamplerDrawingConfig, scale: int, told: str
) -> dict[str, Any]:
    """The first pictures of the held-out split, small, and their captions: an UpsamplePipeline's arguments.

    Of an upsampler that is told classes there are none: the run draws nothing.
    """
    if drawing.images == 0 or told == "classes":
        return {}
    held_out = open_held_out(data, drawing.split, drawing.images)
    rows = range(len(held_out))
    small = area_averaged(held_out.pixels(rows), scale)
    return {
        "image": (small + 1) / 2,
        **({"prompt": held_out.captions(rows, rows)} if told == "captions" else {}),
    }
