"""Autoencoder training as a task of the engine: an autoencoder and, if asked for, a discriminator.

A training sample at position p draws its latent, and the noise that dequantises its pixels where that is
asked for, with (seed, p) alone. The trained model speaks raw latents; their mean and deviation are measured
at the end and written into the configuration of what is saved.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from guided_diffusers.core.declared import Amount, Declared, Positive, Share
from guided_diffusers.core.distributions import dequantise
from guided_diffusers.core.randomness import Stream, rand_for, randn_for, seed_for
from guided_diffusers.evaluation.perceptual import perceptual_distance
from guided_diffusers.models.autoencoder import VariationalAutoencoder
from guided_diffusers.models.discriminator import PatchDiscriminator
from guided_diffusers.models.evidence import bound_of
from guided_diffusers.models.parts import check_channels
from guided_diffusers.models.standardised import per_channel
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.config import TrainingConfig, option
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.engine.trainer import make_optimizer
from guided_diffusers.training.tasks import autoencoder_losses as losses
from guided_diffusers.training.tasks import autoencoder_measures as measures
from guided_diffusers.training.tasks.denoised_latents import DenoisedLatents


@dataclass(frozen=True, kw_only=True)
class LossConfig(Declared):
    """The terms of `autoencoder_losses` and their weights."""

    reconstruction: Literal["error", "likelihood"] = option(
        "error", "error: L1 and L2 as `squared` says; likelihood: the evidence bound, of a model with one"
    )
    beta: Amount = option(1.0, "with a likelihood: weight of the divergence, 1 for the bound")
    free_bits: Amount = option(0.0, "with a likelihood: bits a latent channel may use for nothing")
    dequantise: bool = option(False, "uniform noise in the bins of 8-bit pixels, which a density needs")
    squared: Share = option(0.0, "share of the squared in the reconstruction error: 0 is L1, 1 is L2")
    kl_weight: Amount = option(1e-6, "weight of the divergence, a sum over the latent")
    detail_weight: Amount = option(0.0, "weight of the strength of local detail")
    detail_gain: Amount = option(1.0, "the strength of detail to aim at, over that of the originals")
    perceptual_weight: Amount = option(0.0, "weight of the perceptual distance; 0: there is none")
    perceptual_network: str = option(
        "efficientnet-lite0", "what sees the distance: efficientnet-lite0, lpips, or a classifier's file"
    )
    adversarial_weight: Amount = option(0.0, "weight of the discriminator; 0: there is none")
    adaptive: bool = option(True, "times the ratio of gradients at the decoder's last layer")
    discriminator_start: Share = option(0.2, "fraction of training after which the discriminator learns")
    adversarial_start: Share = option(0.25, "fraction of training after which the autoencoder learns from it")
    discriminator_learning_rate: Positive = option(1e-3, "the discriminator's peak learning rate")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is measured on held-out images, and how the result is written."""

    validation_split: str = option("test", "split of the same data that is held out")
    validation_rows: int = option(1000, "of it, so many rows are measured while training; all at the end")
    statistics_rows: int = option(10_000, "training rows that give the latents' mean and deviation")
    float16: bool = option(False, "also write the variant fp16")


class AutoencoderTask:
    """Trains an autoencoder, or its decoder alone.

    Args:
        autoencoder: the model to train, in place.
        discriminator: its opponent; required by an adversarial weight.
        data: training images.
        held_out: images for validation.
        loss: weights of the loss.
        export: what to measure and write.
        training: the engine's configuration.
        decoder_only: leave the encoder, and so all latents and their statistics, as they are.
        denoised: the decoder sees a denoiser's estimates of the latents; with decoder_only.

    Raises:
        ValueError: an adversarial weight without a discriminator, `denoised` without decoder_only, or a loss
            that does not go with the model's likelihood.
    """

    averaged = ("autoencoder",)

    def __init__(
        self,
        autoencoder: VariationalAutoencoder,
        discriminator: PatchDiscriminator | None,
        data: ImageTextDataset | ImageTextStream,
        held_out: ImageTextDataset,
        loss: LossConfig,
        export: ExportConfig,
        training: TrainingConfig,
        decoder_only: bool = False,
        denoised: DenoisedLatents | None = None,
    ) -> None:
        if denoised is not None and not decoder_only:
            raise ValueError("a denoiser's latents are those of one encoder: they need decoder_only")
        if loss.adversarial_weight > 0 and discriminator is None:
            raise ValueError(f"adversarial_weight is {loss.adversarial_weight}: it needs a discriminator")
        _check_likelihood(autoencoder, loss)
        for name in ("in_channels", "out_channels"):
            check_channels(f"autoencoder ({name})", autoencoder.config[name], "the image", data.shape[0])
        self.autoencoder, self.data, self.held_out = autoencoder, data, held_out
        self.source = getattr(data, "source", None)
        self.num_samples = 0 if self.source else len(data)
        self.loss, self.export, self.training, self.decoder_only = loss, export, training, decoder_only
        self.denoised = denoised
        self.perceptual = perceptual_distance(loss.perceptual_network) if loss.perceptual_weight > 0 else None
        self.statistics = (autoencoder.config.latents_mean, autoencoder.config.latents_std)
        if denoised is not None:
            denoised.check_statistics(autoencoder)
        autoencoder.register_to_config(latents_mean=None, latents_std=None)
        if decoder_only:
            autoencoder.encoder.requires_grad_(False)
            if autoencoder.quant_conv is not None:
                autoencoder.quant_conv.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
        self.optimizers = {"autoencoder": make_optimizer(training, _parameter_groups(autoencoder))}
        self.discriminator = discriminator if loss.adversarial_weight > 0 else None
        if self.discriminator is not None:
            self.modules["discriminator"] = self.discriminator
            rate, betas = loss.discriminator_learning_rate, (0.5, 0.9)
            group = {"params": list(self.discriminator.parameters()), "lr": rate, "betas": betas}
            self.optimizers["discriminator"] = make_optimizer(training, [group])
        self.latent_shape = autoencoder.latent_shape(*data.shape[1:])

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Images, the noise of their posteriors' samples, and how far training is."""
        size = self.training.batch_size
        step_start = positions[0] // size * size  # the same on every process
        batch = {
            "images": self.data.pixels(indices),
            "noise": randn_for(self.training.seed, positions, self.latent_shape),
            "progress": step_start / self.training.num_images,
        }
        if self.loss.dequantise:
            stream = seed_for(self.training.seed, Stream.DEQUANTISATION)
            batch["images"] = dequantise(batch["images"], rand_for(stream, positions, self.data.shape))
        if self.denoised is not None:
            batch["level"], batch["level_noise"] = self.denoised.draw(positions, self.latent_shape)
        return batch

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The autoencoder's loss, then the discriminator's."""
        images, weights = batch["images"], self.loss
        posterior, decoded = self._reconstruct(batch)
        output = self.autoencoder.image_of(decoded)
        divergence, metrics = self._fit(posterior, decoded, output, images)
        reconstruction = metrics["reconstruction"]
        loss = reconstruction + divergence
        if weights.detail_weight > 0:
            metrics["detail"] = losses.detail_loss(output, images, weights.detail_gain)
            loss = loss + weights.detail_weight * metrics["detail"]
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual(output, images)
            reconstruction = reconstruction + weights.perceptual_weight * metrics["perceptual"]
            loss = loss + weights.perceptual_weight * metrics["perceptual"]
        if self.discriminator is not None and batch["progress"] >= weights.adversarial_start:
            metrics["adversarial"] = losses.adversarial_loss(self.discriminator(output).float())
            weight = weights.adversarial_weight
            if weights.adaptive:
                last_layer = self.autoencoder.decoder.conv_out.weight
                ratio = losses.adaptive_weight(reconstruction, metrics["adversarial"], last_layer)
                metrics["adaptive_weight"] = ratio
                weight = weight * ratio
            loss = loss + weight * metrics["adversarial"]
        yield "autoencoder", loss, {name: value.detach() for name, value in metrics.items()}
        if self.discriminator is not None and batch["progress"] >= weights.discriminator_start:
            real, fake = (self.discriminator(sample).float() for sample in (images, output.detach()))
            yield "discriminator", losses.discriminator_loss(real, fake), {}

    def _reconstruct(self, batch: dict[str, Any]) -> tuple[DiagonalGaussianDistribution, Tensor]:
        """The posteriors of a batch's images, and what the decoder gives at draws from them."""
        with torch.set_grad_enabled(not self.decoder_only):
            posterior = self.autoencoder.posterior(batch["images"])
        latents = posterior.mean + posterior.std * batch["noise"]
        if self.denoised is not None:
            mean, std = per_channel(*self.statistics, latents)
            estimate = self.denoised((latents - mean) / std, batch["level"], batch["level_noise"])
            latents = (mean + std * estimate).to(latents.dtype)
        return posterior, self.autoencoder.decoder_output(latents).float()

    def _fit(
        self, posterior: DiagonalGaussianDistribution, decoded: Tensor, output: Tensor, images: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The divergence with its weight, and the reconstruction's loss among the metrics."""
        weights = self.loss
        if weights.reconstruction == "likelihood":
            likelihood, size = self.autoencoder.decoder_likelihood, images[0].numel()
            log_prob = likelihood.log_prob(decoded, images)
            bound = bound_of(log_prob, posterior, likelihood, size, weights.beta, weights.free_bits)
            reconstruction = -bound.reconstruction.mean() / size
            metrics = {"reconstruction": reconstruction, "kl": bound.kl.mean()}
            metrics["bits_per_dim"] = bound.bits_per_dim.mean()
            metrics |= {name: value.mean() for name, value in likelihood.named_parameters()}
            return (bound.reconstruction - bound.objective).mean() / size, metrics
        metrics = {"reconstruction": losses.reconstruction_loss(output, images, weights.squared)}
        if self.autoencoder.config.posterior == "deterministic":
            return torch.zeros_like(metrics["reconstruction"]), metrics
        metrics["kl"] = losses.kl_per_image(posterior.mean, posterior.logvar).mean()
        return weights.kl_weight * metrics["kl"], metrics

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Measures reconstructions of held-out images and draws 24 of them."""
        rows = range(min(self.export.validation_rows, len(self.held_out)))
        path = folder / f"{images_seen:012d}.png"
        measures.save_reconstructions(modules["autoencoder"], self.held_out, rows[:24], path)
        return self._measure(modules["autoencoder"], rows)

    def _measure(self, model: VariationalAutoencoder, rows: Sequence[int]) -> dict[str, float]:
        """Of held-out images: the reconstructions, and the evidence bound where there is one."""
        figures = measures.measure_reconstructions(model, self.held_out, rows)
        if self.loss.reconstruction == "likelihood":
            noisy = self.loss.dequantise
            figures |= measures.measure_bound(model, self.held_out, rows, noisy, self.training.seed)
        return figures

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Writes the autoencoder, its latents standardised, and its figures on all held-out images."""
        model = copy.deepcopy(modules["autoencoder"])
        statistics = self.statistics
        if not self.decoder_only:
            count = self.export.statistics_rows
            data = self.data.in_memory(count) if self.source else self.data
            rows = range(min(count, len(data)))
            statistics = measures.latent_statistics(model, data, rows, self.training.seed)
        if any(values is not None for values in statistics):
            model.set_latent_statistics(*statistics)
        figures = self._measure(model, range(len(self.held_out)))
        (folder / "metrics.json").write_text(json.dumps({**figures, "images": len(self.held_out)}, indent=2))
        model.save_pretrained(folder)
        if self.export.float16:
            model.half().save_pretrained(folder, variant="fp16")


def _check_likelihood(model: VariationalAutoencoder, loss: LossConfig) -> None:
    """A likelihood's variance is trained by the bound and by nothing else, and the bound needs both."""
    name, by_bound = model.config.likelihood, loss.reconstruction == "likelihood"
    if by_bound and model.config.posterior == "deterministic":
        raise ValueError("reconstruction is 'likelihood'; posterior is 'deterministic', which has no bound")
    if by_bound and name is None:
        raise ValueError("reconstruction is 'likelihood': it needs an autoencoder.likelihood, which is None")
    if not by_bound and name is not None and list(model.decoder_likelihood.parameters()):
        raise ValueError(
            f"reconstruction is 'error' and would leave the variance of likelihood {name!r} untrained; "
            "allowed: 'likelihood', or an autoencoder without one"
        )


def _parameter_groups(model: VariationalAutoencoder) -> list[dict[str, Any]]:
    """All that is trained; the likelihood's variance without weight decay, which would draw it to 1."""
    likelihood = model.decoder_likelihood
    variance = [] if likelihood is None else list(likelihood.parameters())
    apart = set(map(id, variance))
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups = [{"params": weights}, {"params": variance, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
