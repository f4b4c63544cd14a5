"""Trains images without text: accelerate launch training/train_unconditional.py --config FILE [--key value].

Unconditional or by class, in pixels or in the latents of a given autoencoder, with a fixed or a learned
variance. The folder `final/` of the run holds a pipeline with averaged weights: diffusers' DDPMPipeline for
unconditional pixels, its DiTPipeline of a DiT, else an ImagePipeline. Running the same command again resumes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from guided_diffusers.core.checks import check_that
from guided_diffusers.hub.component import load_network
from guided_diffusers.models.latents import sample_shape
from guided_diffusers.models.parts import check_sample
from guided_diffusers.models.patched_unet import PatchedUNet2DModel
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import Images, image_arguments, load_autoencoder
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.data.stream import open_data, open_held_out
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.engine.setup import make_scheduler
from guided_diffusers.training.tasks.conditioning import ClassObjectiveConfig, Labels, ValidationConfig
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.kept import run_labels
from guided_diffusers.training.tasks.measures import MeasuresConfig, make_measures
from guided_diffusers.training.tasks.network import (
    class_rows,
    component_of,
    denoiser_field,
    make_network,
    sample_sizes,
)
from guided_diffusers.training.tasks.objective import DenoisingConfig, Objective, learned_variance


@dataclass(frozen=True, kw_only=True)
class UnconditionalConfig:
    """Train a denoiser of images."""

    training: TrainingConfig
    data: DataConfig
    label_column: str | None = option(None, "column of class numbers or names; null: unconditional")
    autoencoder: str | None = option(None, "folder, fashion-32 or Hub id; null: pixels")
    unet: dict[str, Any] = arguments("UNet2DModel's arguments, or patch_size beside them", PatchedUNet2DModel)
    denoiser: dict[str, Any] = denoiser_field("UNet2DModel", "DiTTransformer2DModel")
    unet_pretrained: str | None = option(None, "folder or Hub id of a UNet2DModel to start from")
    scheduler_class: str = option("GuidedDDPMScheduler", "class of ours or of diffusers, saved for sampling")
    scheduler: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    objective: ClassObjectiveConfig = field(default_factory=ClassObjectiveConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    measures: MeasuresConfig = field(default_factory=MeasuresConfig)

    def __post_init__(self) -> None:
        """Check the scheduler's arguments."""
        self.make_scheduler()

    def make_scheduler(self) -> Any:
        """The scheduler, new."""
        return make_scheduler(self.scheduler_class, self.scheduler, ("scheduler_class", "scheduler"))


def make_unet(config: UnconditionalConfig, vae: Any, learned: bool, classes: int | None) -> nn.Module:
    """The denoiser, loaded or new; sizes that the rest of the configuration fixes need not be given."""
    if classes is not None and config.objective.class_dropout > 0:
        classes += 1  # the null class, the last
    if config.unet_pretrained is not None:
        check_that(not config.denoiser, "denoiser", config.denoiser, "nothing beside unet_pretrained")
        return load_network(UNet2DModel, config.unet_pretrained, "unet")
    channels, side, _ = sample_shape(vae, config.data.channels, config.data.resolution)
    sizes = sample_sizes(side, channels, learned) | {"classes": classes}
    return make_network(config.denoiser, config.unet, UNet2DModel, sizes)


def held_out(config: UnconditionalConfig, names: list[str] | None) -> tuple[Tensor, Tensor | None] | None:
    """The held-out images whose bits/dim are estimated while training, and their classes."""
    count = config.validation.bound_images
    if count == 0 or config.autoencoder is not None:
        return None
    data = open_held_out(config.data, config.validation.split, count)
    labels = None if config.label_column is None else class_labels(data, config.label_column, names)[0]
    return data.pixels(range(len(data))), labels


def make_task(config: UnconditionalConfig, device: torch.device) -> DenoisingTask:
    """Data, networks, and the task."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    data = open_data(config.data, config.training.seed)
    labels, classes = None, None
    if config.label_column is not None:
        labels, classes = run_labels(data, config.label_column, config.training.output_dir)
    names = None if classes is None else classes.names
    if names is not None:
        logging.info("classes: %s", ", ".join(f"{number} {name}" for number, name in enumerate(names)))
    scheduler = config.make_scheduler()
    unet = make_unet(config, vae, learned_variance(scheduler), None if classes is None else classes.count)
    shape = sample_shape(vae, *data.shape[:2])
    check_sample(unet, "unet", shape, "the image" if vae is None else "the autoencoder's latent")
    condition = Labels(
        labels=labels,
        num_class_embeds=class_rows(unet),
        dropout=config.objective.class_dropout,
        validation=config.validation,
        vae=vae,
        held_out=held_out(config, names),
        classes=classes,
        transformer=component_of(unet) == "transformer",
    )
    objective = Objective(config.objective, config.denoising, scheduler)
    images = Images(**image_arguments(data, None if vae is None else vae.to(device)))
    measures = make_measures(config.measures, config.data, config.training.seed, config.label_column)
    return DenoisingTask(unet, images, condition, objective, config.training, measures)


if __name__ == "__main__":
    run_script(UnconditionalConfig, make_task)
