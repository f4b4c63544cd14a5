"""Trains text-to-image: accelerate launch training/train_text_to_image.py --config FILE.yaml [--key value].

The folder `final/` of the run holds a TextToImagePipeline with averaged weights, `snapshots/` the weak
networks for autoguidance (the text encoder of the same moment beside each). Running the same command again
resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from guided_diffusers.hub.component import load_network
from guided_diffusers.models.latents import latent_channels, latent_shape, spatial_factor
from guided_diffusers.models.parts import check_sample, check_text_width
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.images import Images, image_arguments, load_autoencoder
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.engine.setup import make_scheduler
from guided_diffusers.training.tasks.captions import make_captions
from guided_diffusers.training.tasks.conditioning import DrawingConfig, TextDenoisingConfig
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.objective import Objective, ObjectiveConfig, learned_variance
from guided_diffusers.training.tasks.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig:
    """Train a latent denoiser on images with captions."""

    training: TrainingConfig
    data: DataConfig
    autoencoder: str = field(metadata={"help": "a trained one: folder, fashion-32 or Hub id"})
    text: TextConfig = field(default_factory=TextConfig)
    unet: dict[str, Any] = arguments("UNet2DConditionModel's arguments", UNet2DConditionModel)
    unet_pretrained: str | None = option(None, "folder or Hub id of a UNet2DConditionModel to start from")
    scheduler: str = option("GuidedDDIMScheduler", "class of ours or of diffusers, saved for sampling")
    scheduler_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    denoising: TextDenoisingConfig = field(default_factory=TextDenoisingConfig)
    drawing: DrawingConfig = field(default_factory=DrawingConfig)


def make_unet(config: TextToImageConfig, vae: Any, text_encoder: Any, learned: bool) -> UNet2DConditionModel:
    """The denoiser, loaded or new; sizes that the other components fix need not be given."""
    if config.unet_pretrained is not None:
        return load_network(UNet2DConditionModel, config.unet_pretrained, "unet")
    channels = latent_channels(vae.config)
    sizes = {
        "sample_size": config.data.resolution // spatial_factor(vae),
        "in_channels": channels,
        "out_channels": channels * (2 if learned else 1),
        "cross_attention_dim": text_encoder.config.hidden_size,
    }
    return UNet2DConditionModel(**{**sizes, **config.unet})


def make_task(config: TextToImageConfig, device: torch.device) -> DenoisingTask:
    """Components, cached latents and text, and the task."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    data = ImageTextDataset(config.data)
    condition = make_captions(
        data,
        config.text,
        config.training,
        vae,
        device,
        base=config.unet_pretrained is not None,
        dropout=config.denoising.caption_dropout,
        drawing=config.drawing,
    )
    text_encoder = condition.components["text_encoder"]
    scheduler = make_scheduler(config.scheduler, config.scheduler_arguments)
    unet = make_unet(config, vae, text_encoder, learned_variance(scheduler))
    check_sample(unet, "unet", latent_shape(vae, *data.shape[1:]), "the autoencoder's latent")
    check_text_width(unet, text_encoder)
    objective = Objective(config.objective, config.denoising, scheduler)
    images = Images(**image_arguments(data, vae.to(device)))
    return DenoisingTask(unet, images, condition, objective, config.training)


if __name__ == "__main__":
    run_script(TextToImageConfig, make_task)
