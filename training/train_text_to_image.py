"""Trains text-to-image: accelerate launch training/train_text_to_image.py --config FILE.yaml [--key value].

The folder `final/` of the run holds a TextToImagePipeline with averaged weights, `snapshots/` the weak
networks for autoguidance (the text encoder of the same moment beside each). Running the same command again
resumes.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from guided_diffusers.core.condition import sees_padding
from guided_diffusers.hub.component import load_network
from guided_diffusers.models.latents import latent_channels, latent_shape, spatial_factor
from guided_diffusers.models.parts import check_sample, check_text_width
from guided_diffusers.training.data.cache import cached_embeddings, cached_latents
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.images import load_autoencoder
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option, parse_config
from guided_diffusers.training.engine.setup import make_scheduler, run_script
from guided_diffusers.training.engine.trainer import make_accelerator, make_optimizer, train
from guided_diffusers.training.tasks import text_to_image as t2i
from guided_diffusers.training.tasks.text import TextConfig, make_text


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
    denoising: t2i.DenoisingConfig = field(default_factory=t2i.DenoisingConfig)
    drawing: t2i.DrawingConfig = field(default_factory=t2i.DrawingConfig)


def make_unet(config: TextToImageConfig, vae: Any, text_encoder: Any) -> UNet2DConditionModel:
    """The denoiser, loaded or new; sizes that the other components fix need not be given."""
    if config.unet_pretrained is not None:
        return load_network(UNet2DConditionModel, config.unet_pretrained, "unet")
    channels = latent_channels(vae.config)
    sizes = {
        "sample_size": config.data.resolution // spatial_factor(vae),
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": text_encoder.config.hidden_size,
    }
    return UNet2DConditionModel(**{**sizes, **config.unet})


def make_task(config: TextToImageConfig, device: torch.device) -> t2i.TextToImageTask:
    """Components, cached latents and text, and the optimizer."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    data = ImageTextDataset(config.data)
    captions = ["", *(text for text in data.all_captions() if text)]
    tokenizer, text_encoder = make_text(
        config.text, captions, config.training, base=config.unet_pretrained is not None
    )
    components = {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": make_unet(config, vae, text_encoder),
        "scheduler": make_scheduler(config.scheduler, config.scheduler_arguments),
    }
    check_sample(components["unet"], "unet", latent_shape(vae, *data.shape[1:]), "the autoencoder's latent")
    check_text_width(components["unet"], text_encoder)
    latents = cached_latents(vae.to(device), data)
    if config.text.encoder == "joint":
        masked = not sees_padding(text_encoder)
        trained, text = ("unet", "text_encoder"), t2i.JointText(tokenizer, captions, masked)
    else:
        text_encoder.requires_grad_(False).eval()
        embeddings = cached_embeddings(text_encoder.to(device), tokenizer, captions, config.data.cache_dir)
        trained, text = ("unet",), t2i.FrozenText(captions, embeddings)
    parameters = [parameter for name in trained for parameter in components[name].parameters()]
    return t2i.TextToImageTask(
        components,
        trained,
        make_optimizer(config.training, parameters),
        latents,
        lambda indices, positions: data.captions(indices, positions, config.training.seed),
        text,
        config.denoising,
        config.drawing,
        config.training,
    )


def main() -> None:
    """Parse the configuration and train."""
    config = parse_config(TextToImageConfig, sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = make_accelerator(config.training)
    with accelerator.main_process_first():
        task = make_task(config, accelerator.device)
    train(task, config.training, config, accelerator)


if __name__ == "__main__":
    run_script(main)
