"""Trains text-to-image: accelerate launch training/train_text_to_image.py --config FILE.yaml [--key value].

The folder `final/` of the run holds a TextToImagePipeline with averaged weights, or of a transformer the
pipeline of diffusers that draws with it; `snapshots/` the weak networks for autoguidance (the text encoder of
the same moment beside each). Running the same command again resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from guided_diffusers.hub.component import load_network
from guided_diffusers.models.latents import sample_shape
from guided_diffusers.models.parts import check_sample, check_text_width
from guided_diffusers.models.patched_unet import PatchedUNet2DConditionModel
from guided_diffusers.stock.prompted import PROMPTED
from guided_diffusers.training.data.buckets import images_of, open_data
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import load_autoencoder
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.tasks.captions import make_captions
from guided_diffusers.training.tasks.conditioning import DrawingConfig, TextDenoisingConfig
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.lora import LoraConfig, make_denoising_task
from guided_diffusers.training.tasks.measures import MeasuresConfig, make_measures
from guided_diffusers.training.tasks.network import (
    class_named,
    denoiser_field,
    make_network,
    sample_sizes,
)
from guided_diffusers.training.tasks.objective import Objective, ObjectiveConfig, learned_variance
from guided_diffusers.training.tasks.prior import PriorConfig, with_prior
from guided_diffusers.training.tasks.starting import check_start, parts_of, starting_scheduler
from guided_diffusers.training.tasks.stock_captions import make_stock_captions
from guided_diffusers.training.tasks.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig:
    """Train a denoiser on images with captions, in latents or pixels."""

    training: TrainingConfig
    data: DataConfig
    pretrained: str | None = option(None, "folder or Hub id of a pipeline to start from, with all its parts")
    lora: LoraConfig = field(default_factory=LoraConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    autoencoder: str | None = option(None, "a trained one: folder, fashion-32 or Hub id; null: pixels")
    text: TextConfig = field(default_factory=TextConfig)
    unet: dict[str, Any] = arguments(
        "UNet2DConditionModel's arguments, or patch_size beside them", PatchedUNet2DConditionModel
    )
    denoiser: dict[str, Any] = denoiser_field("UNet2DConditionModel", *PROMPTED)
    unet_pretrained: str | None = option(None, "folder or Hub id of a UNet2DConditionModel to start from")
    scheduler: str = option("GuidedDDIMScheduler", "class of ours or of diffusers, saved for sampling")
    scheduler_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    denoising: TextDenoisingConfig = field(default_factory=TextDenoisingConfig)
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    measures: MeasuresConfig = field(default_factory=MeasuresConfig)

    def __post_init__(self) -> None:
        """Check that it says once what training starts from."""
        check_start(self)


def make_unet(config: TextToImageConfig, vae: Any, text: int, pooled: int | None, learned: bool) -> nn.Module:
    """The denoiser, loaded or new; sizes that the other components fix need not be given."""
    if config.unet_pretrained is not None:
        cls = class_named(config.denoiser["class"]) if config.denoiser else UNet2DConditionModel
        return load_network(cls, config.unet_pretrained, "transformer" if config.denoiser else "unet")
    channels, side, _ = sample_shape(vae, config.data.channels, config.data.resolution)
    sizes = sample_sizes(side, channels, learned) | {"text": text, "pooled": pooled}
    return make_network(config.denoiser, config.unet, UNet2DConditionModel, sizes)


def make_task(config: TextToImageConfig, device: torch.device) -> DenoisingTask:
    """Components, cached latents and text, and the task."""
    torch.manual_seed(config.training.seed)
    scheduler, config, stock = starting_scheduler(config), parts_of(config), config.pretrained is not None
    vae = load_autoencoder(config.autoencoder, config.data.channels, own_class=stock)
    data = open_data(config.data, config.training.seed)
    learned, told = learned_variance(scheduler), {"dropout": config.denoising.caption_dropout}
    told |= {"drawing": config.drawing, "base": config.unet_pretrained is not None}
    prompted = PROMPTED.get(getattr(class_named(config.denoiser.get("class", "")), "__name__", ""))
    if prompted is None:
        condition = make_captions(data, config.text, config.training, vae, device, **told)
        text_encoder = condition.components["text_encoder"]
        unet = make_unet(config, vae, text_encoder.config.hidden_size, None, learned)
        of = "an image" if vae is None else "the autoencoder's latent"
        check_sample(unet, "unet", sample_shape(vae, config.data.channels, config.data.resolution), of)
        check_text_width(unet, text_encoder)
    else:
        parts = {"vae": vae, "scheduler": scheduler}
        make = partial(make_unet, config, vae, learned=learned)
        condition = make_stock_captions(
            prompted, data, config.text, config.training, parts, make, device, **told
        )
        unet = condition.stock.transformer
    objective = Objective(config.objective, config.denoising, scheduler)
    images = images_of(data, None if vae is None else vae.to(device), config.training.batch_size)
    measures = make_measures(config.measures, config.data, config.training.seed)
    parts = (unet, images, condition, objective, config.training, measures)
    return with_prior(config, make_denoising_task(config.lora, *parts), device)


if __name__ == "__main__":
    run_script(TextToImageConfig, make_task)
