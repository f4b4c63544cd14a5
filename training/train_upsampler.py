"""Trains an upsampler: accelerate launch training/train_upsampler.py --config FILE.yaml [--key value].

A denoiser of large pictures, in pixels or in an autoencoder's latents, that sees the small picture, noised to
a random level, beside its sample: told a caption, a class or neither. It learns on squares of the pictures
and draws any size. The folder `final/` of the run holds an UpsamplePipeline with averaged weights. Running
the same command again resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from guided_diffusers.core.declared import AtLeast
from guided_diffusers.hub.component import load_network
from guided_diffusers.models.latents import sample_shape, spatial_factor
from guided_diffusers.models.parts import check_text_width
from guided_diffusers.models.patched_unet import PatchedUNet2DConditionModel, PatchedUNet2DModel, unet_class
from guided_diffusers.models.super_resolution import Channels
from guided_diffusers.training.data.crops import Crops
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import image_arguments, load_autoencoder
from guided_diffusers.training.data.stream import open_data
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.engine.setup import make_scheduler
from guided_diffusers.training.tasks.captions import make_captions
from guided_diffusers.training.tasks.conditioning import (
    DrawingConfig,
    Labels,
    TextDenoisingConfig,
    ValidationConfig,
)
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.kept import run_labels
from guided_diffusers.training.tasks.objective import Objective, ObjectiveConfig, learned_variance
from guided_diffusers.training.tasks.text import TextConfig
from guided_diffusers.training.tasks.upsampler import (
    AugmentationConfig,
    NoCondition,
    SmallPicture,
    UpsamplerDrawingConfig,
    held_out_pictures,
)


@dataclass(frozen=True, kw_only=True)
class UpsamplerConfig:
    """Train a denoiser of large pictures that sees small ones."""

    training: TrainingConfig
    data: DataConfig
    scale: Annotated[int, AtLeast(2)] = option(4, "how many times larger the result is")
    crop: Annotated[int, AtLeast(1)] | None = option(None, "side of the squares to learn on; null: whole")
    told: Literal["nothing", "captions", "classes"] = option("nothing", "what it is told beside the picture")
    label_column: str = option("label", "column of the classes, where it is told them")
    autoencoder: str | None = option(None, "folder, fashion-32 or Hub id; null: pixels")
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: dict[str, Any] = arguments(
        "UNet2D(Condition)Model's arguments and patch_size", PatchedUNet2DModel, PatchedUNet2DConditionModel
    )
    unet_pretrained: str | None = option(None, "folder or Hub id of a network to start from")
    scheduler: str = option("GuidedDDIMScheduler", "class of ours or of diffusers, saved for sampling")
    scheduler_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    denoising: TextDenoisingConfig = field(default_factory=TextDenoisingConfig)
    drawing: UpsamplerDrawingConfig = field(default_factory=UpsamplerDrawingConfig)


def make_unet(config: UpsamplerConfig, vae: Any, encoder: Any, classes: int | None, learned: bool) -> Any:
    """The denoiser, loaded or new; sizes that the other components fix need not be given."""
    cls = UNet2DModel if encoder is None else UNet2DConditionModel
    if config.unet_pretrained is not None:
        return load_network(cls, config.unet_pretrained, "unet")
    told = config.augmentation.max_level > 0
    channels, side, _ = sample_shape(vae, config.data.channels, config.data.resolution)
    sizes = {
        "sample_size": side,
        "in_channels": channels + config.data.channels + (told and classes is not None),
        "out_channels": channels * (2 if learned else 1),
        **({} if encoder is None else {"cross_attention_dim": encoder.config.hidden_size}),
    }
    if classes is not None:
        sizes["num_class_embeds"] = classes + (config.denoising.caption_dropout > 0)
    elif told and "num_class_embeds" not in config.unet:
        sizes["class_embed_type"] = "timestep"
    return unet_class(cls, config.unet)(**{**sizes, **config.unet})


def make_task(config: UpsamplerConfig, device: torch.device) -> DenoisingTask:
    """Data, networks, and the task."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    data, inner, classes = open_data(config.data, config.training.seed), NoCondition(), None
    components: dict[str, Any] = {"vae": vae}
    scheduler = make_scheduler(config.scheduler, config.scheduler_arguments)
    if config.told == "captions":
        inner = make_captions(
            data,
            config.text,
            config.training,
            vae,
            device,
            base=config.unet_pretrained is not None,
            dropout=config.denoising.caption_dropout,
            drawing=DrawingConfig(),
        )
        components = inner.components
    elif config.told == "classes":
        labels, classes = run_labels(data, config.label_column, config.training.output_dir)
    encoder = components.get("text_encoder")
    unet = make_unet(config, vae, encoder, classes and classes.count, learned_variance(scheduler))
    check_text_width(unet, encoder)
    if config.told == "classes":
        inner = Labels(
            labels=labels,
            num_class_embeds=unet.config.num_class_embeds,
            dropout=config.denoising.caption_dropout,
            validation=ValidationConfig(images=0),
            classes=classes,
        )
    crops = Crops(
        **image_arguments(data, None if vae is None else vae.to(device)),
        data=data,
        scale=config.scale,
        side=config.crop,
        factor=1 if vae is None else spatial_factor(vae),
        seed=config.training.seed,
    )
    condition = SmallPicture(
        crops=crops,
        channels=Channels.of(unet.config, vae),
        config=config.augmentation,
        drawing=config.drawing,
        inner=inner,
        components=components,
        held_out=held_out_pictures(config.data, config.drawing, config.scale, config.told),
        num_classes=classes and classes.count,
    )
    objective = Objective(config.objective, config.denoising, scheduler)
    return DenoisingTask(unet, crops, condition, objective, config.training)


if __name__ == "__main__":
    run_script(UpsamplerConfig, make_task)
