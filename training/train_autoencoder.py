"""Trains an autoencoder: accelerate launch training/train_autoencoder.py --config FILE.yaml [--key value].

The folder `final/` of the run holds the model with averaged weights and standardised latents, ready for
`VariationalAutoencoder.from_pretrained`, and `metrics.json`. Running the same command again resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from guided_diffusers import TextToImagePipeline
from guided_diffusers.hub.component import find_component
from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.models.discriminator import PatchDiscriminator
from guided_diffusers.store.checkpoints import pipeline_source
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.stream import open_data, open_held_out
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.tasks.autoencoder import AutoencoderTask, ExportConfig, LossConfig
from guided_diffusers.training.tasks.denoised_latents import DenoisedLatents


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Train a KL autoencoder on images."""

    training: TrainingConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    autoencoder: dict[str, Any] = arguments("VariationalAutoencoder's arguments", VariationalAutoencoder)
    discriminator: dict[str, Any] = arguments("PatchDiscriminator's arguments", PatchDiscriminator)
    pretrained: str | None = option(None, "folder, shipped name or Hub id of an autoencoder to start from")
    decoder_only: bool = option(False, "train the decoder alone: latents stay what they are in `pretrained`")

    denoiser: str | None = option(None, "folder or Hub id of a TextToImagePipeline whose latents to decode")
    denoiser_maximum: float = option(1.0, "the highest sigma / alpha it denoises from")

    def __post_init__(self) -> None:
        """Check that there is an encoder to leave alone."""
        if self.decoder_only and self.pretrained is None:
            raise ValueError("decoder_only needs a trained encoder: name one in `pretrained`")
        if self.denoiser is not None and not self.decoder_only:
            raise ValueError("denoiser needs decoder_only: its latents are those of one encoder")


def make_autoencoder(config: AutoencoderConfig) -> VariationalAutoencoder:
    """The model, loaded or new; what the data fixes need not be given."""
    if config.pretrained is not None:
        classes = ("VariationalAutoencoder", "AutoencoderKL")
        return VariationalAutoencoder.from_pretrained(**find_component(config.pretrained, "vae", classes))
    channels = config.data.channels
    sizes = {"in_channels": channels, "out_channels": channels, "sample_size": config.data.resolution}
    return VariationalAutoencoder(**{**sizes, **config.autoencoder})


def make_denoised(config: AutoencoderConfig) -> DenoisedLatents | None:
    """The denoiser whose estimates the decoder sees, if there is one."""
    if config.denoiser is None:
        return None
    pipeline = TextToImagePipeline.from_pretrained(pipeline_source(config.denoiser))
    return DenoisedLatents(pipeline, config.denoiser_maximum, config.training.seed)


def make_task(config: AutoencoderConfig, device: torch.device) -> AutoencoderTask:
    """Data, networks, and the task."""
    data = open_data(config.data, config.training.seed)
    held_out = open_held_out(config.data, config.export.validation_split)
    torch.manual_seed(config.training.seed)
    return AutoencoderTask(
        make_autoencoder(config),
        PatchDiscriminator(**{"in_channels": config.data.channels, **config.discriminator}),
        data,
        held_out,
        config.loss,
        config.export,
        config.training,
        config.decoder_only,
        make_denoised(config),
    )


if __name__ == "__main__":
    run_script(AutoencoderConfig, make_task)
