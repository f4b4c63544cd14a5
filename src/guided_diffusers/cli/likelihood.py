"""`guided-diffusers likelihood`: the variational bound of a denoiser of pixels, in bits a dimension."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from guided_diffusers import GuidedDDPMScheduler
    from guided_diffusers.likelihood.bound import Bound

Checkpoint = Annotated[
    str,
    typer.Option(help="A pipeline with `unet` and `scheduler`: a folder, shipped, or on the Hub."),
]
Data = Annotated[Path, typer.Option(help="Images: a folder, .npz or .parquet.", exists=True)]
Images = Annotated[int, typer.Option(min=2, help="How many, from the first.")]
Draws = Annotated[int, typer.Option(min=2, help="Forwards an image, at stratified timesteps.")]
Full = Annotated[
    int | None, typer.Option(min=2, help="Instead: the whole sum over the timesteps, of so many images.")
]
Variance = Annotated[
    list[str] | None,
    typer.Option(help="A variance type, repeatable; one forward serves all.", show_default="all it has"),
]
Crop = Annotated[int | None, typer.Option(min=1, help="First cut out the middle square of so many pixels.")]
Steps = Annotated[int | None, typer.Option(min=2, help="Of a shorter chain.", show_default="training's")]
Seed = Annotated[int, typer.Option(min=0, help="Noise and timesteps of an image depend on this alone.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Forwards at once.")]
Device = Annotated[str | None, typer.Option(help="Where.", show_default="cuda, else cpu")]
Plot = Annotated[Path | None, typer.Option(help="Draw the terms over the timesteps into this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def likelihood(
    checkpoint: Checkpoint,
    data: Data,
    images: Images = 100,
    draws: Draws = 50,
    full: Full = None,
    variance: Variance = None,
    crop: Crop = None,
    steps: Steps = None,
    seed: Seed = 0,
    batch_size: BatchSize = 100,
    device: Device = None,
    plot: Plot = None,
    json_output: Json = False,
) -> dict[str, Any]:
    """Measure bits a dimension under a denoiser of pixels.

    The variational bound of each image: an unbiased estimate of it, or with --full the whole sum.
    """
    from guided_diffusers.likelihood.bound import estimated_bound, full_bound, plot_terms, with_variance

    unet, scheduler = load_denoiser(checkpoint, steps, device)
    kinds = variance or variance_types(unet, scheduler)
    pixels, condition = load_images(data, images if full is None else full, crop, unet)
    schedulers = {kind: with_variance(scheduler, kind) for kind in kinds}
    options: dict[str, Any] = {"condition": condition, "seed": seed, "batch_size": batch_size}
    if full is not None:
        bounds = full_bound(unet, schedulers, pixels, **options)
    else:
        bounds = estimated_bound(unet, schedulers, pixels, draws, **options)
    if plot is not None:
        plot_terms(bounds, plot)
    if not json_output:
        for kind, bound in bounds.items():
            typer.echo(line(kind, bound))
    return {
        "checkpoint": checkpoint,
        "data": str(data),
        "images": len(pixels),
        "seed": seed,
        "bounds": {kind: bound.to_dict() for kind, bound in bounds.items()},
    }


def line(kind: str, bound: Bound) -> str:
    """A bound in one line."""
    summary = bound.to_dict()
    whole = summary["bits_per_dimension"]
    return (
        f"{kind}: {whole['value']:.4f} [{whole['low']:.4f}, {whole['high']:.4f}] bits/dim "
        f"(prior {summary['prior']:.2g}, between {summary['between']:.4f}, decoder {summary['decoder']:.4f}; "
        f"{whole['count']} images, {summary['draws']} of {summary['timesteps']} terms each)"
    )


def load_denoiser(
    checkpoint: str, steps: int | None = None, device: str | None = None
) -> tuple[nn.Module, GuidedDDPMScheduler]:
    """The network and the chain of a pipeline of pixels.

    Args:
        checkpoint: A folder, a shipped checkpoint or a Hub repository (owner/name).
        steps: Of the chain; None for those of training.
        device: The default is cuda where there is one, else cpu.

    Raises:
        ValueError: The pipeline has no `unet`; or an autoencoder, whatever its name, so that the likelihood
            would be one of latents; or another network beside those that guide.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging
    from torch import nn

    from guided_diffusers import GuidedDDPMScheduler
    from guided_diffusers.cli.drawing import device_of, local_folder

    logging.disable_progress_bar()  # of loading
    pipeline = DiffusionPipeline.from_pretrained(local_folder(checkpoint) or checkpoint)
    parts = pipeline.components
    others = {n for n, part in parts.items() if isinstance(part, nn.Module)} - {"unet", "classifier", "clip"}
    if parts.get("unet") is None or parts.get("scheduler") is None or others:
        raise ValueError(
            f"checkpoint={checkpoint!r} has {', '.join(name for name, part in parts.items() if part)}: the "
            "bound is of images, so it needs a `unet` of pixels and a `scheduler`, and no autoencoder and no "
            "other network that the denoiser draws with"
        )
    scheduler = GuidedDDPMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps or scheduler.config.num_train_timesteps)
    return pipeline.unet.to(device_of(device)).eval(), scheduler


def variance_types(unet: nn.Module, scheduler: GuidedDDPMScheduler) -> list[str]:
    """The fixed types, and the learned one where the network has the channels and the scheduler says it."""
    learned = unet.config.out_channels == 2 * unet.config.in_channels
    own = scheduler.config.variance_type
    return ["fixed_small", "fixed_large", *([own] if learned and own.startswith("learned") else [])]


def load_images(
    data: Path, count: int, crop: int | None, unet: nn.Module
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Images as the network sees them, (count, channels, height, width) in [-1, 1], and their classes.

    Raises:
        ValueError: Images of another size or number of channels than the network's, or without the classes
            that it asks for: nothing is resized, for that would be another likelihood.
    """
    from guided_diffusers.core.checks import check_that
    from guided_diffusers.evaluation.images import read_images

    found = read_images(data, limit=count)
    pixels = found.images
    if crop is not None:
        top, left = ((side - crop) // 2 for side in pixels.shape[2:])
        allowed = f"at most the size of the images of {data}, {tuple(pixels.shape[2:])}"
        check_that(min(top, left) >= 0, "crop", crop, allowed)
        pixels = pixels[..., top : top + crop, left : left + crop]
    size = unet.config.sample_size or pixels.shape[2:]  # one that does not say it takes any
    expected = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    given, allowed = tuple(pixels.shape[1:]), f"{expected}: give --crop where they were padded"
    check_that(given == expected, f"the size of the images of {data}", given, allowed)
    condition = None
    if unet.class_embedding is not None:
        labels = found.need("labels", f"the network takes classes, and {data} has no column `label` of them")
        condition = {"class_labels": labels.to(unet.device)}
    return (pixels.float() / 127.5 - 1).to(unet.device), condition
