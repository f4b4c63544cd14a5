"""Pictures of autoencoders as generative models: samples, a traversal, interpolations, reconstructions."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from figures import decoded, fitted_latents, prior_latents, reconstructions, to_pixels
from PIL import Image
from torch import Tensor

from guided_diffusers import VAEPipeline, VariationalAutoencoder
from guided_diffusers.evaluation.grid import enlarge, labelled_grid, to_pictures

NAMES = {"vector": "vector VAE", "spatial": "spatial VAE", "plain": "plain autoencoder"}
COLUMNS = 10
STEPS = 9  # of a path, and a side of the plane
SPAN = 2.5
PIXELS = 56  # a side of a picture's tile, at least


def draw(
    models: Mapping[str, VariationalAutoencoder],
    test: Tensor,
    plain_codes: Tensor,
    kl_by_channel: Sequence[float],
    arguments: argparse.Namespace,
) -> None:
    """Writes the four pictures into the folder `arguments.pictures`, named after `arguments.output`.

    Args:
        models: The three autoencoders.
        test: Test images, uint8.
        plain_codes: Of the plain one's training images.
        kl_by_channel: Of the vector one's latent dimensions; the two highest are traversed.
        arguments: Of benchmarks/studies/autoencoders/measure.py.
    """
    pipelines = {name: VAEPipeline(model) for name, model in models.items()}
    pictures = {
        "samples": samples(models, test, plain_codes, arguments.seed),
        "traversal": traversal(pipelines["vector"], kl_by_channel),
        "interpolation": interpolation(pipelines, test),
        "reconstructions": copies(models, test),
    }
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = arguments.pictures / f"{arguments.output.stem}-{name}.png"
        picture.convert("L").quantize(64).save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB", flush=True)


def samples(
    models: Mapping[str, VariationalAutoencoder], test: Tensor, plain_codes: Tensor, seed: int
) -> Image.Image:
    """Two rows of each model's samples, the first ones of those that are measured, and of test images."""
    count, labels, tiles = 2 * COLUMNS, [], []
    latents = {name: prior_latents(models[name], count, seed) for name in ("vector", "spatial")}
    latents["plain"] = fitted_latents(models["plain"], plain_codes, count, seed)
    sources = {"vector": "the prior", "spatial": "the prior", "plain": "a Gaussian of codes"}
    for name, values in latents.items():
        labels += [f"{NAMES[name]}:", sources[name]]
        tiles += _rows(decoded(models[name], values))
    spread = test[:: max(1, len(test) // count)][:count]
    return labelled_grid([*tiles, *_rows(spread)], [*labels, "test images", ""], PIXELS)


def traversal(pipeline: VAEPipeline, kl_by_channel: Sequence[float]) -> Image.Image:
    """A plane through the prior's mean, along the two dimensions that carry most."""
    first, second = sorted(range(len(kl_by_channel)), key=lambda dim: -kl_by_channel[dim])[:2]
    grid = pipeline.traverse((first, second), steps=STEPS, span=SPAN).images[0]
    return enlarge(grid, STEPS * PIXELS)


def interpolation(pipelines: Mapping[str, VAEPipeline], test: Tensor) -> Image.Image:
    """Paths between two test images, each between the originals."""
    ends, tiles, labels = to_pixels(test[[0, len(test) // 2]]), [], []
    originals = to_pictures(ends)
    for name in ("vector", "spatial"):
        for method in ("spherical", "linear"):
            path = pipelines[name].interpolate(ends[:1], ends[1:], STEPS, method, output_type="pt").images
            tiles.append([originals[0], *to_pictures(path.float().cpu() * 2 - 1), originals[1]])
            labels.append(f"{NAMES[name]}, {method}")
    heads = ["original", *(f"{step / (STEPS - 1):.2f}" for step in range(STEPS)), "original"]
    return labelled_grid(tiles, labels, PIXELS, heads)


def copies(models: Mapping[str, VariationalAutoencoder], test: Tensor) -> Image.Image:
    """Test images above each model's reconstructions."""
    images = test[:COLUMNS]
    rows = [images, *(reconstructions(model, images) for model in models.values())]
    return labelled_grid(
        [to_pictures(row) for row in rows], ["test images", *(NAMES[name] for name in models)], PIXELS
    )


def _rows(images: Tensor) -> list[list[Image.Image]]:
    """Two rows of pictures."""
    tiles = to_pictures(images)
    half = -(-len(tiles) // 2)
    return [tiles[:half], tiles[half:]]
