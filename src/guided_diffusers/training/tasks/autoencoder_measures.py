"""How good an autoencoder is, and how its latents are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from guided_diffusers.core.distributions import dequantise
from guided_diffusers.core.randomness import Stream, generator_for, rand_for, randn_for, seed_for
from guided_diffusers.evaluation.grid import to_bytes
from guided_diffusers.evaluation.sharpness import laplacian_energy
from guided_diffusers.models.autoencoder import VariationalAutoencoder
from guided_diffusers.training.data.dataset import ImageTextDataset


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, `(batch,)`, for images in [-1, 1] (peak 2)."""
    error = (reconstruction.float().clamp(-1, 1) - images.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


@torch.no_grad()
def measure_reconstructions(
    model: VariationalAutoencoder, data: ImageTextDataset, rows: Sequence[int], batch_size: int = 250
) -> dict[str, float]:
    """Measures reconstructions from the posterior's mean against their originals.

    Returns:
        `psnr`: mean over images, in decibels. `l1`: mean absolute error, of a range of 2. `sharpness`: the
        mean squared Laplacian of the reconstructions over that of the originals, 1 being as sharp as the
        originals.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(rows), batch_size):
        images = data.pixels(rows[start : start + batch_size]).to(model.device)
        output = model(images).sample.float().clamp(-1, 1)
        error = (output - images).abs().flatten(1).mean(1)
        figures = psnr(output, images), error, laplacian_energy(output), laplacian_energy(images)
        sums += torch.stack([values.double().sum().cpu() for values in figures])
    return {
        "psnr": float(sums[0]) / len(rows),
        "l1": float(sums[1]) / len(rows),
        "sharpness": float(sums[2] / sums[3]),
    }


@torch.no_grad()
def measure_bound(
    model: VariationalAutoencoder,
    data: ImageTextDataset,
    rows: Sequence[int],
    noisy: bool,
    seed: int = 0,
    batch_size: int = 250,
) -> dict[str, float]:
    """One draw an image of the evidence bound.

    Args:
        model: with a likelihood.
        data: images, whose bins are filled with noise if `noisy`.
        rows: of them.
        noisy: a density needs it.
        seed: latents and noise are a function of it and the row.
        batch_size: images at once.

    Returns:
        Means over images: `elbo`, nats; `kl`, nats; `bits_per_dim` of the bound.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(rows), batch_size):
        part = list(rows[start : start + batch_size])
        images = data.pixels(part)
        if noisy:
            images = dequantise(images, rand_for(seed, part, data.shape))
        generators = [generator_for(seed_for(seed, Stream.POSTERIOR), row) for row in part]
        bound = model.elbo(images.to(model.device), generators)
        figures = bound.elbo, bound.kl, bound.bits_per_dim
        sums += torch.stack([values.double().sum().cpu() for values in figures])
    return dict(zip(("elbo", "kl", "bits_per_dim"), (sums / len(rows)).tolist(), strict=True))


@torch.no_grad()
def latent_statistics(
    model: VariationalAutoencoder,
    data: ImageTextDataset,
    rows: Sequence[int],
    seed: int = 0,
    batch_size: int = 250,
) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation, a number a channel, of draws from the raw posteriors of some images.

    Returns:
        Two float64 tensors of shape `(latent_channels,)`, for `VariationalAutoencoder.set_latent_statistics`.
    """
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = list(rows[start : start + batch_size])
        posterior = model.posterior(data.pixels(part).to(model.device))
        noise = randn_for(seed, part, posterior.mean.shape[1:], device=model.device)
        latents = (posterior.mean + posterior.std * noise).double().cpu()
        total = total + latents.sum((0, 2, 3))
        squares = squares + latents.square().sum((0, 2, 3))
        count += latents.numel() // latents.shape[1]
    mean = total / count
    return mean, (squares / count - mean.square()).sqrt()


@torch.no_grad()
def save_reconstructions(
    model: VariationalAutoencoder, data: ImageTextDataset, rows: Sequence[int], path: Path, zoom: int = 3
) -> None:
    """Writes a PNG with the originals in the upper row and their reconstructions in the lower one."""
    images = data.pixels(rows)
    output = model(images.to(model.device)).sample.float().cpu().clamp(-1, 1)
    strips = [batch.permute(2, 0, 3, 1).flatten(1, 2) for batch in (images, output)]  # h, batch x w, channels
    pixels = to_bytes(torch.cat(strips)).squeeze(-1)
    picture = Image.fromarray(pixels.numpy())
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)
