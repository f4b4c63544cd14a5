"""Trains images without text: accelerate launch training/train_unconditional.py --config FILE [--key value].

Unconditional or by class, in pixels or in the latents of a given autoencoder, with a fixed or a learned
variance. The folder `final/` of the run holds a pipeline with averaged weights: diffusers' DDPMPipeline for
unconditional pixels, else an ImagePipeline. Running the same command again resumes.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from guided_diffusers.hub.component import load_network
from guided_diffusers.models.latents import latent_channels, latent_shape, spatial_factor
from guided_diffusers.models.parts import check_sample
from guided_diffusers.schedulers import GuidedDDPMScheduler
from guided_diffusers.training.data.cache import cached_latents
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.images import Pixels, load_autoencoder
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option, parse_config
from guided_diffusers.training.engine.setup import run_script
from guided_diffusers.training.engine.trainer import make_accelerator, train
from guided_diffusers.training.tasks import unconditional as un
from guided_diffusers.training.tasks.kept import run_labels


@dataclass(frozen=True, kw_only=True)
class UnconditionalConfig:
    """Train a denoiser of images."""

    training: TrainingConfig
    data: DataConfig
    label_column: str | None = option(None, "column of class numbers or names; null: unconditional")
    autoencoder: str | None = option(None, "folder, fashion-32 or Hub id; null: pixels")
    unet: dict[str, Any] = arguments("UNet2DModel's arguments", UNet2DModel)
    unet_pretrained: str | None = option(None, "folder or Hub id of a UNet2DModel to start from")
    scheduler: dict[str, Any] = arguments("GuidedDDPMScheduler's", GuidedDDPMScheduler)
    objective: un.ObjectiveConfig = field(default_factory=un.ObjectiveConfig)
    validation: un.ValidationConfig = field(default_factory=un.ValidationConfig)


def make_unet(config: UnconditionalConfig, vae: Any, learned: bool, classes: int | None) -> UNet2DModel:
    """The denoiser, loaded or new; sizes that the rest of the configuration fixes need not be given."""
    if classes is not None and config.objective.class_dropout > 0:
        classes += 1  # the null class, the last
    if config.unet_pretrained is not None:
        return load_network(UNet2DModel, config.unet_pretrained, "unet")
    factor = 1 if vae is None else spatial_factor(vae)
    channels = config.data.channels if vae is None else latent_channels(vae.config)
    sizes = {
        "sample_size": config.data.resolution // factor,
        "in_channels": channels,
        "out_channels": channels * (2 if learned else 1),
        "num_class_embeds": classes,
    }
    return UNet2DModel(**{**sizes, **config.unet})


def held_out(config: UnconditionalConfig, names: list[str] | None) -> tuple[Tensor, Tensor | None] | None:
    """The held-out images whose bits/dim are estimated while training, and their classes."""
    count = config.validation.bound_images
    if count == 0 or config.autoencoder is not None:
        return None
    split = f"{config.validation.split}[:{count}]"
    data = ImageTextDataset(dataclasses.replace(config.data, split=split, mirror=False))
    labels = None if config.label_column is None else class_labels(data, config.label_column, names)[0]
    return data.pixels(range(len(data))), labels


def make_task(config: UnconditionalConfig, device: torch.device) -> un.UnconditionalTask:
    """Data, networks, and the task."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    data = ImageTextDataset(config.data)
    labels, classes = None, None
    if config.label_column is not None:
        labels, classes = run_labels(data, config.label_column, config.training.output_dir)
    names = None if classes is None else classes.names
    if names is not None:
        logging.info("classes: %s", ", ".join(f"{number} {name}" for number, name in enumerate(names)))
    scheduler = GuidedDDPMScheduler(**config.scheduler)
    learned = scheduler.config.variance_type in ("learned", "learned_range")
    unet = make_unet(config, vae, learned, None if classes is None else classes.count)
    shape = data.shape if vae is None else latent_shape(vae, *data.shape[1:])
    check_sample(unet, "unet", shape, "the image" if vae is None else "the autoencoder's latent")
    return un.UnconditionalTask(
        unet,
        scheduler,
        Pixels(data) if vae is None else cached_latents(vae.to(device), data),
        config.objective,
        config.validation,
        config.training,
        labels=labels,
        vae=vae,
        held_out=held_out(config, names),
        classes=classes,
    )


def main() -> None:
    """Parse the configuration and train."""
    config = parse_config(UnconditionalConfig, sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = make_accelerator(config.training)
    with accelerator.main_process_first():
        task = make_task(config, accelerator.device)
    train(task, config.training, config, accelerator)


if __name__ == "__main__":
    run_script(main)
