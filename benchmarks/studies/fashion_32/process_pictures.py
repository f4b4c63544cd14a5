"""Pictures of a diffusion model at work: forward process, reverse trajectory, loss by noise level.

Noise levels are written as sigma/alpha, the noise-to-signal ratio. A noisy sample is shown as
x_t / sqrt(alpha^2 + sigma^2): as it is in a variance-preserving process, at the same contrast in others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from guided_diffusers.core.checks import check_int, check_that
from guided_diffusers.core.denoiser import Denoiser, as_denoised
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.randomness import randn_for
from guided_diffusers.evaluation.bootstrap import mean_estimate
from guided_diffusers.evaluation.estimate import Estimate
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.plotting import as_image, new_figure
from guided_diffusers.sampling import Run

Decode = Callable[[Tensor], Tensor]
_CORNER = "sigma / alpha"


@torch.no_grad()
def forward_process(
    x0: Tensor,
    levels: Sequence[NoiseLevel],
    labels: Sequence[str] | None = None,
    *,
    seed: int = 0,
    decode: Decode | None = None,
    min_pixels: int = 96,
) -> Image.Image:
    """Images on their way to noise: a row an image, a column a noise level, the noise the same in a row.

    Args:
        x0: `(count, channels, height, width)`: images in [-1, 1], or latents.
        levels: Noise levels, each 0-dim, from clean to noisy.
        labels: What stands beside each image; None is "image 1" and so on.
        seed: Of the noise.
        decode: `(count, ...) latents -> images` in [-1, 1]; for images None.
        min_pixels: Smaller images are enlarged to at least this side.

    Returns:
        An RGB image, labelled with sigma/alpha.

    Raises:
        ValueError: No levels, or latents without `decode`.
    """
    check_that(levels, "levels", levels, "at least one noise level")
    noise = randn_for(seed, range(len(x0)), x0.shape[1:], device=x0.device, dtype=x0.dtype)
    noisy = [
        broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * noise if level.sigma else x0
        for level in levels
    ]
    columns = [
        _pictures(_at_unit_contrast(sample, level), decode)
        for sample, level in zip(noisy, levels, strict=True)
    ]
    rows = list(zip(*columns, strict=True))
    labels = [f"image {row + 1}" for row in range(len(rows))] if labels is None else labels
    return labelled_grid(rows, labels, min_pixels, [_ratio(level) for level in levels], _CORNER)


def reverse_process(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    condition: Any = None,
    *,
    num_inference_steps: int = 50,
    columns: int = 8,
    decode: Decode | None = None,
    min_pixels: int = 96,
    **loop_arguments: Any,
) -> Image.Image:
    """One sample on its way from noise: x_t above, the estimate of x_0 that is made of it below.

    Args:
        denoiser: Guided or plain.
        scheduler: As of `sampling_loop`.
        noise: Standard normal, `(1, channels, height, width)`.
        condition: What the denoiser is told.
        num_inference_steps: Steps of the run.
        columns: Steps to show, evenly chosen, the first and the last among them; then the result.
        decode: `(count, ...) latents -> images` in [-1, 1]; for images None.
        min_pixels: Smaller images are enlarged to at least this side.
        loop_arguments: More arguments of `Run`, such as `generator`.

    Returns:
        An RGB image, labelled with sigma/alpha.

    Raises:
        ValueError: More than one sample, fewer than 2 columns, or latents without `decode`.
    """
    check_that(len(noise) == 1, "noise", noise, "one sample")
    check_int("columns", columns, 2)
    run = Run(
        denoiser, scheduler, noise, condition, num_inference_steps=num_inference_steps, **loop_arguments
    )
    seen = [(step, run.advance(step).x0) for step in run]
    places = sorted({round(place * (len(seen) - 1) / (columns - 1)) for place in range(columns)})
    steps, estimates = zip(*(seen[place] for place in places), strict=True)
    samples = [_at_unit_contrast(step.sample, step.level) for step in steps]
    upper = _pictures(torch.cat([*samples, run.sample]), decode)
    lower = _pictures(torch.cat([*estimates, run.sample]), decode)
    headers = [_ratio(step.level) for step in steps] + ["result"]
    return labelled_grid([upper, lower], ["x_t", "estimate of x_0"], min_pixels, headers, _CORNER)


@dataclass(frozen=True, kw_only=True)
class LevelLoss:
    """The squared error of a denoiser at one noise level, averaged over elements and samples.

    Attributes:
        noise_to_signal: sigma/alpha.
        of_x0: |D(x_t) - x_0|^2, the variance that x_t leaves of x_0 for a perfect denoiser.
        of_noise: The same as an error of the noise: (alpha / sigma)^2 of it.
    """

    noise_to_signal: float
    of_x0: Estimate
    of_noise: Estimate


@torch.no_grad()
def losses_by_level(
    denoiser: Denoiser,
    x0: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Any = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> list[LevelLoss]:
    """The loss at each noise level, fresh noise at each, with bootstrap intervals over samples.

    Args:
        denoiser: Guided or plain.
        x0: `(count, ...)`: images, or latents for a denoiser of latents.
        levels: Noise levels, each 0-dim with alpha > 0 and sigma > 0.
        condition: What the denoiser is told, batch first.
        seed: Of the noise: a function of it, the level's place and the sample's.
        resamples: Bootstrap resamples.

    Raises:
        ValueError: A level without signal or without noise.
    """
    losses = []
    for place, level in enumerate(levels):
        fits, allowed = level.alpha > 0 and level.sigma > 0, "sigma / alpha above 0 and finite"
        check_that(fits, f"levels[{place}]", level.noise_to_signal.item(), allowed)
        indices = range(place * len(x0), (place + 1) * len(x0))
        noise = randn_for(seed, indices, x0.shape[1:], device=x0.device, dtype=x0.dtype)
        sample = broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * noise
        error = as_denoised(denoiser(sample, level, condition)).x0.double() - x0.double()
        of_x0 = error.square().flatten(1).mean(1).cpu()
        to_noise = (level.alpha / level.sigma).square().item()
        losses.append(
            LevelLoss(
                noise_to_signal=level.noise_to_signal.item(),
                of_x0=mean_estimate(of_x0, resamples=resamples, seed=seed),
                of_noise=mean_estimate(to_noise * of_x0, resamples=resamples, seed=seed),
            )
        )
    return losses


def loss_figure(losses: Sequence[LevelLoss], title: str = "") -> Image.Image:
    """The loss by noise level as a figure, both axes logarithmic, with 95% bands. Needs the extra `eval`.

    Args:
        losses: What `losses_by_level` gave.
        title: Above the figure.

    Raises:
        ValueError: No losses.
    """
    check_that(losses, "losses", losses, "what losses_by_level returns for at least one level")
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    ordered = sorted(losses, key=lambda loss: loss.noise_to_signal)
    ratios = [loss.noise_to_signal for loss in ordered]
    for name, label, line in (("of_x0", "of x₀", "-"), ("of_noise", "of the noise ε", "--")):
        estimates = [getattr(loss, name) for loss in ordered]
        (drawn,) = axes.plot(ratios, [e.value for e in estimates], line, marker="o", ms=3, label=label)
        low, high = [e.low for e in estimates], [e.high for e in estimates]
        axes.fill_between(ratios, low, high, alpha=0.25, color=drawn.get_color(), linewidth=0)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlabel("noise level σ/α (clean left, noisy right)")
    axes.set_ylabel("mean squared error an element")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_image(figure)


def _at_unit_contrast(sample: Tensor, level: NoiseLevel) -> Tensor:
    return sample / broadcast(torch.hypot(level.alpha, level.sigma), sample)


def _pictures(samples: Tensor, decode: Decode | None) -> list[Image.Image]:
    with torch.no_grad():
        return to_pictures(samples if decode is None else decode(samples))


def _ratio(level: NoiseLevel) -> str:
    ratio = level.noise_to_signal.item()
    return f"{ratio:.2g}" if math.isfinite(ratio) and ratio < 100 else f"{ratio:.0f}"
