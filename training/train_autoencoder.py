"""Trains an autoencoder: accelerate launch training/train_autoencoder.py --config FILE.yaml [--key value].

The folder `final/` of the run holds the model with averaged weights and standardised latents, ready for
`VariationalAutoencoder.from_pretrained`, and `metrics.json`. Running the same command again resumes.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.models.discriminator import PatchDiscriminator
from guided_diffusers.randomness import randn_for
from guided_diffusers.training import autoencoder_losses as losses
from guided_diffusers.training import autoencoder_measures as measures
from guided_diffusers.training.config import TrainingConfig, option, parse_config
from guided_diffusers.training.data import DataConfig, ImageTextDataset
from guided_diffusers.training.engine import Metrics, make_accelerator, make_optimizer, train


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weights of the terms of guided_diffusers.training.autoencoder_losses."""

    squared: float = option(0.0, "share of the squared in the reconstruction error: 0 is L1, 1 is L2")
    kl_weight: float = option(1e-6, "weight of the divergence, a sum over the latent")
    detail_weight: float = option(0.0, "weight of the strength of local detail")
    adversarial_weight: float = option(0.0, "weight of the discriminator; 0: there is none")
    discriminator_start: float = option(0.2, "fraction of training after which the discriminator learns")
    adversarial_start: float = option(0.25, "fraction of training after which the autoencoder learns from it")
    discriminator_learning_rate: float = option(1e-3, "the discriminator's peak learning rate")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Train a KL autoencoder on images."""

    training: TrainingConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    autoencoder: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    discriminator: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    validation_split: str = option("test", "split of the same data that is held out")
    validation_rows: int = option(1000, "of it, so many rows are measured")
    statistics_rows: int = option(10_000, "rows that give the latents' mean and deviation")
    save_float16: bool = option(False, "also write the float16 variant, `fp16`")


class AutoencoderTask:
    """What the engine trains: the autoencoder and, with an adversarial weight, a discriminator."""

    averaged = ("autoencoder",)

    def __init__(self, config: AutoencoderConfig, data: ImageTextDataset, held_out: ImageTextDataset) -> None:
        self.config, self.data, self.held_out, self.num_samples = config, data, held_out, len(data)
        torch.manual_seed(config.training.seed)
        channels = {"in_channels": config.data.channels, "out_channels": config.data.channels}
        sizes = {**channels, "sample_size": config.data.resolution}
        self.autoencoder = VariationalAutoencoder(**{**sizes, **config.autoencoder})
        self.modules: dict[str, nn.Module] = {"autoencoder": self.autoencoder}
        self.optimizers = {"autoencoder": make_optimizer(config.training, self.autoencoder.parameters())}
        if config.loss.adversarial_weight > 0:
            arguments = {"in_channels": config.data.channels, **config.discriminator}
            self.discriminator = PatchDiscriminator(**arguments)
            self.modules["discriminator"] = self.discriminator
            rate = config.loss.discriminator_learning_rate
            group = {"params": self.discriminator.parameters(), "lr": rate, "betas": (0.5, 0.9)}
            self.optimizers["discriminator"] = make_optimizer(config.training, [group])
        factor = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        side = config.data.resolution // factor
        self.latent_shape = (self.autoencoder.config.latent_channels, side, side)

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Images, the noise of their posteriors' samples, and how far training is."""
        config, seed = self.config.training, self.config.training.seed
        step_start = positions[0] // config.batch_size * config.batch_size  # the same on every process
        return {
            "images": self.data.pixels(indices),
            "noise": randn_for(seed, positions, self.latent_shape),
            "progress": step_start / config.num_images,
        }

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The autoencoder's loss, then the discriminator's."""
        images, weights = batch["images"], self.config.loss
        posterior = self.autoencoder.posterior(images)
        output = self.autoencoder.decode(posterior.mean + posterior.std * batch["noise"]).sample.float()
        reconstruction = losses.reconstruction_loss(output, images, weights.squared)
        kl = losses.kl_per_image(posterior.mean, posterior.logvar).mean()
        metrics = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        loss = reconstruction + weights.kl_weight * kl
        if weights.detail_weight > 0:
            metrics["detail"] = losses.detail_loss(output, images)
            loss = loss + weights.detail_weight * metrics["detail"]
        if weights.adversarial_weight > 0 and batch["progress"] >= weights.adversarial_start:
            adversarial = losses.adversarial_loss(self.discriminator(output).float())
            last_layer = self.autoencoder.decoder.conv_out.weight
            adaptive = losses.adaptive_weight(reconstruction, adversarial, last_layer)
            metrics |= {"adversarial": adversarial.detach(), "adaptive_weight": adaptive}
            loss = loss + weights.adversarial_weight * adaptive * adversarial
        yield "autoencoder", loss, {name: torch.as_tensor(value).detach() for name, value in metrics.items()}
        if weights.adversarial_weight > 0 and batch["progress"] >= weights.discriminator_start:
            real, fake = (self.discriminator(batch).float() for batch in (images, output.detach()))
            yield "discriminator", losses.discriminator_loss(real, fake), {}

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Measures reconstructions of held-out images and draws 24 of them."""
        rows = range(min(self.config.validation_rows, len(self.held_out)))
        path = folder / f"{images_seen:012d}.png"
        measures.save_reconstructions(modules["autoencoder"], self.held_out, rows[:24], path)
        return measures.measure_reconstructions(modules["autoencoder"], self.held_out, rows)

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Writes the autoencoder, its latents standardised, and its figures."""
        model = copy.deepcopy(modules["autoencoder"])
        rows = range(min(self.config.statistics_rows, len(self.data)))
        statistics = measures.latent_statistics(model, self.data, rows, self.config.training.seed)
        model.set_latent_statistics(*statistics)
        metrics = measures.measure_reconstructions(model, self.held_out, range(len(self.held_out)))
        (folder / "metrics.json").write_text(json.dumps({**metrics, "images": len(self.held_out)}, indent=2))
        model.save_pretrained(folder)
        if self.config.save_float16:
            model.half().save_pretrained(folder, variant="fp16")


def main() -> None:
    """Parses the configuration and trains."""
    config = parse_config(AutoencoderConfig, sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator: Accelerator = make_accelerator(config.training)
    with accelerator.main_process_first():
        data = ImageTextDataset(config.data)
        held_out = ImageTextDataset(replace(config.data, split=config.validation_split, mirror=False))
    train(AutoencoderTask(config, data, held_out), config.training, config, accelerator)


if __name__ == "__main__":
    main()
