"""What the autoencoders of Fashion-MNIST are measured by: likelihoods, reconstructions, samples.

Every likelihood is of the same dequantised images: image i's noise, its posterior's draws and sample i of a
prior are functions of (seed, i), whatever the model, the part or the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guided_diffusers import VariationalAutoencoder
from guided_diffusers.core.distributions import bits_per_dim, dequantise
from guided_diffusers.core.randomness import generator_for, rand_for, randn_for, seed_for
from guided_diffusers.evaluation.distances import moments_of, square_root
from guided_diffusers.likelihood.bound import mean_interval
from guided_diffusers.models.evidence import kl_by_channel
from guided_diffusers.training.tasks.autoencoder_measures import psnr

TEST_NOISE, TRAINING_NOISE, POSTERIOR, IMPORTANCE, SAMPLES = range(5)  # streams of randomness
BATCH = 50  # on a CPU twice as fast as 250: the decoder's maps stay in its cache


def load_autoencoder(run: Path, device: str = "cpu", **expected: Any) -> VariationalAutoencoder:
    """The trained model of a run's folder.

    Args:
        run: Folder of training/train_autoencoder.py.
        device: Where it goes.
        expected: Options of the model's configuration that the run must have had.

    Raises:
        ValueError: It had others.
    """
    model = VariationalAutoencoder.from_pretrained(run / "final")
    for name, value in expected.items():
        if model.config[name] != value:
            raise ValueError(f"{name} of {run} is {model.config[name]!r}; wanted here: {value!r}")
    return model.to(device).eval()


def crop(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """The middle of images (count, channels, height, width), without the padding of the stored ones."""
    height, width = sides
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    if min(top, left) < 0:
        raise ValueError(f"the images are {tuple(images.shape[2:])} and the autoencoders' {sides}")
    return images[..., top : top + height, left : left + width].contiguous()


def to_pixels(images: Tensor) -> Tensor:
    """In [-1, 1] of uint8."""
    return images.float() / 127.5 - 1


def to_levels(pixels: Tensor) -> Tensor:
    """The reverse, rounded, on the CPU; what lies beyond [-1, 1] is clamped."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def dequantised(images: Tensor, seed: int, first: int = 0, stream: int = TEST_NOISE) -> Tensor:
    """Pixels of uint8 images with noise that fills their bins; `first` is the first one's number."""
    numbers = range(first, first + len(images))
    return dequantise(to_pixels(images), rand_for(seed_for(seed, stream), numbers, images.shape[1:]))


@torch.no_grad()
def likelihoods(
    model: VariationalAutoencoder, images: Tensor, first: int, draws: int, seed: int, batch: int = BATCH
) -> dict[str, list[float]]:
    """Nats of each dequantised image, in lists: `elbo` of one draw, its `kl`, and `iwae` of `draws`.

    Beside them `kl_by_channel`, a sum over the images for each latent channel.
    """
    found: dict[str, list[Tensor]] = {"elbo": [], "kl": [], "iwae": [], "kl_by_channel": []}
    for start, part in _batches(dequantised(images, seed, first), batch):
        numbers, pixels = range(first + start, first + start + len(part)), part.to(model.device)
        generators = [generator_for(seed_for(seed, POSTERIOR), number) for number in numbers]
        bound = model.elbo(pixels, generators)
        found["elbo"].append(bound.elbo)
        found["kl"].append(bound.kl)
        found["kl_by_channel"].append(kl_by_channel(model.posterior(pixels)).sum(0, keepdim=True))
        options = {"seed": seed_for(seed, IMPORTANCE), "first_index": numbers[0], "chunk": batch}
        found["iwae"].append(model.log_likelihood(pixels, draws, **options))
    by_channel = torch.cat(found.pop("kl_by_channel")).double().sum(0)
    values = {name: torch.cat(parts).double().tolist() for name, parts in found.items()}
    return {**values, "kl_by_channel": by_channel.tolist()}


def in_both_units(nats: Tensor, dimensions: int) -> dict[str, Any]:
    """The mean log-density of images (count,) with its interval, in nats an image and in bits/dim."""
    bits = bits_per_dim(nats, dimensions, density=True)
    return {"nats": mean_interval(nats).to_dict(), "bits_per_dim": mean_interval(bits).to_dict()}


@torch.no_grad()
def reconstructions(model: VariationalAutoencoder, images: Tensor, batch: int = BATCH) -> Tensor:
    """Pixels of uint8 images (count, channels, height, width) decoded from their posteriors' means."""
    parts = (model(to_pixels(part).to(model.device)).sample for _, part in _batches(images, batch))
    return torch.cat([part.float().cpu() for part in parts])


def reconstruction_psnr(model: VariationalAutoencoder, images: Tensor) -> list[float]:
    """Decibels of each image."""
    return psnr(reconstructions(model, images), to_pixels(images)).double().tolist()


@torch.no_grad()
def codes(model: VariationalAutoencoder, images: Tensor, batch: int = BATCH) -> Tensor:
    """The raw means of the posteriors of uint8 images, (count, numbers in a latent)."""
    parts = (model.posterior(to_pixels(part).to(model.device)).mean for _, part in _batches(images, batch))
    return torch.cat([part.flatten(1).cpu() for part in parts])


def prior_latents(model: VariationalAutoencoder, count: int, seed: int) -> Tensor:
    """Draws of N(0, I), (count, channels, h, w)."""
    return randn_for(seed_for(seed, SAMPLES), range(count), model.latent_shape())


def fitted_latents(model: VariationalAutoencoder, found: Tensor, count: int, seed: int) -> Tensor:
    """Draws of a Gaussian with the mean and the full covariance of codes, as `prior_latents`."""
    moments, noise = moments_of(found), prior_latents(model, count, seed).flatten(1).double()
    latents = moments.mean + noise @ square_root(moments.covariance)
    return latents.float().unflatten(1, model.latent_shape())


@torch.no_grad()
def decoded(model: VariationalAutoencoder, latents: Tensor, batch: int = BATCH) -> Tensor:
    """The images, uint8, of raw latents: the means of p(x | z), without its pixel noise."""
    parts = (model.decode_raw(part.to(model.device)) for _, part in _batches(latents, batch))
    return torch.cat([to_levels(part) for part in parts])


def _batches(values: Tensor, batch: int) -> Iterator[tuple[int, Tensor]]:
    """Parts of values and where each begins."""
    return ((start, values[start : start + batch]) for start in range(0, len(values), batch))
