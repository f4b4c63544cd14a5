"""How many bits a diffusion model needs for an image: its variational bound, term by term.

The full sum takes one forward an image for each timestep of the chain. The estimate takes K an image: the
decoder's term always, since it is by far the largest, and K - 1 at timesteps stratified over the rest - the
k-th uniform over the k-th part - whose mean, times their number, has the sum as its expectation. Both are
unbiased; the full sum, too, has one draw of the noise a term.

The network's prediction is the same whatever the variance of its reverse steps, so one forward serves every
scheduler that is asked about. Noise and timesteps are functions of (seed, the image's number): no figure
depends on the batch size. Likelihoods need images as they are: nothing mirrored, cropped anew or resized.

    bounds = full_bound(unet, {"learned_range": scheduler}, images)
    bounds["learned_range"].estimate()      # Estimate(value=..., low=..., high=...) in bits a dimension

References:
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), section 3.
    Kingma et al., "Variational Diffusion Models" (arXiv:2107.00630): fewer draws of t, stratified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import (
    check_callable,
    check_finite,
    check_int,
    check_number,
    check_tensor,
    check_that,
)
from guided_diffusers.core.declared import read
from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.core.randomness import Stream, randn_for, seed_for
from guided_diffusers.evaluation.estimate import Confidence, Estimate
from guided_diffusers.evaluation.plotting import new_figure
from guided_diffusers.likelihood.variational import FLOOR, bound_term, prior_term
from guided_diffusers.losses import add_noise
from guided_diffusers.schedulers import GuidedDDPMScheduler

Network = Callable[..., Any]
Schedulers = Mapping[str, GuidedDDPMScheduler]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """The variational bound of some images under one scheduler, in bits a dimension, float64.

    Attributes:
        total: (images,); an unbiased draw of prior + decoder + the sum over L_t.
        prior: (images,), exact.
        decoder: (images,).
        terms: (images, timesteps): L_t, not a number where it was not drawn; the decoder is the last column.
        timesteps: (timesteps,), the noisiest first.
        draws: Forwards an image; `len(timesteps)` is the full sum.
    """

    total: Tensor
    prior: Tensor
    decoder: Tensor
    terms: Tensor
    timesteps: Tensor
    draws: int

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The mean over images with its interval: images and draws are its randomness."""
        return mean_interval(self.total, confidence)

    def mean_terms(self) -> Tensor:
        """The mean over images of each term that was drawn, (timesteps,); not a number where none was."""
        return self.terms.nanmean(0)

    def to_dict(self) -> dict[str, Any]:
        """The means, ready for JSON."""
        return {
            "bits_per_dimension": self.estimate().to_dict(),
            "prior": self.prior.mean().item(),
            "decoder": self.decoder.mean().item(),
            "between": (self.total - self.prior - self.decoder).mean().item(),
            "draws": self.draws,
            "timesteps": len(self.timesteps),
        }


def mean_interval(values: Tensor, confidence: float = 0.95) -> Estimate:
    """A mean with Student's interval, mean +- t s / sqrt(n).

    The quantile t is the normal one with two terms of its expansion in 1 / (n - 1): right to 1% from n = 5.

    Args:
        values: (n,) observations, n at least 2.
        confidence: The interval's coverage, strictly between 0 and 1.

    Raises:
        ValueError: Fewer than two observations, or a confidence out of range.

    References:
        Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), equation 26.7.5.
    """
    check_finite("values", check_tensor("values", values, ("n",)), 1e150)
    check_that(len(values) > 1, "values", values, "at least 2 observations")
    read("confidence", confidence, Confidence)
    values, freedom = values.double(), len(values) - 1
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    half, mean = t * (values.std() / len(values) ** 0.5).item(), values.mean().item()
    return Estimate(value=mean, low=mean - half, high=mean + half, count=len(values))


def with_variance(scheduler: GuidedDDPMScheduler, variance_type: str) -> GuidedDDPMScheduler:
    """The same chain, listed timesteps included, with another `variance_type`."""
    changed = GuidedDDPMScheduler.from_config(scheduler.config, variance_type=variance_type)
    changed.set_timesteps(timesteps=scheduler.timesteps)
    return changed


def full_bound(
    network: Network,
    schedulers: Schedulers,
    images: Tensor,
    *,
    condition: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 100,
    floor: float = FLOOR,
) -> dict[str, Bound]:
    """The full sum over the listed timesteps, one draw of noise a term.

    Args:
        network: `network(sample, timestep, **condition)`, such as a UNet2DModel, on images' device.
        schedulers: By name; they must list the same timesteps with the same noise levels.
        images: (images, channels, height, width) in [-1, 1], on 256 evenly spaced levels.
        condition: More arguments of the network, one row an image, such as `class_labels`.
        seed: The noise is a function of it, an image's number and the term's.
        first_index: The number of the first image, for data done in parts.
        batch_size: Forwards at once.
        floor: The least probability of a pixel, see `distributions.discretised_log_likelihood`.

    Returns:
        A `Bound` a scheduler.

    Raises:
        ValueError: Schedulers of different chains, or no images.
    """
    reference = _checked(schedulers, images, network, condition, (seed, first_index), batch_size, floor)
    places = torch.arange(len(reference.timesteps)).expand(len(images), -1)
    return _bounds(
        network, schedulers, images, places, condition or {}, (seed, first_index), batch_size, floor
    )


def estimated_bound(
    network: Network,
    schedulers: Schedulers,
    images: Tensor,
    draws: int = 50,
    *,
    condition: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 100,
    floor: float = FLOOR,
) -> dict[str, Bound]:
    """An unbiased estimate with `draws` forwards an image; other arguments as of `full_bound`.

    Raises:
        ValueError: Fewer than 2 draws or more than there are timesteps, schedulers of different chains, or no
            images.
    """
    reference = _checked(schedulers, images, network, condition, (seed, first_index), batch_size, floor)
    count = len(reference.timesteps)
    draws = check_int("draws", draws, 2, count)
    seeds = [seed_for(seed_for(seed, Stream.LEVEL), first_index + row) for row in range(len(images))]
    places = torch.stack([stratified_places(each, draws, count) for each in seeds])
    return _bounds(
        network, schedulers, images, places, condition or {}, (seed, first_index), batch_size, floor
    )


def stratified_places(seed: int, draws: int, count: int) -> Tensor:
    """`draws` of the places 0 to `count` - 1: the last, and before it one of each equal part of the rest.

    A place at the border of two parts belongs to each by its share, so that over the seeds the mean of a
    function at the drawn places (but for the last) is its mean over all (but for the last).

    Returns:
        (draws,) int64, ascending.
    """
    parts = draws - 1
    uniform = torch.rand(parts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inner = ((torch.arange(parts) + uniform) * ((count - 1) / parts)).long().clamp(max=count - 2)
    return torch.cat([inner, torch.tensor([count - 1])])


@torch.no_grad()
def _bounds(
    network: Network,
    schedulers: Schedulers,
    images: Tensor,
    places: Tensor,
    condition: Mapping[str, Tensor],
    seed_and_first: tuple[int, int],
    batch_size: int,
    floor: float,
) -> dict[str, Bound]:
    """Every image's terms at its places, (images, draws), the last of which is the decoder's."""
    reference = next(iter(schedulers.values()))
    timesteps, (seed, first_index) = reference.timesteps.cpu(), seed_and_first
    draws, shape, noise_seed = places.shape[1], images.shape[1:], seed_for(seed, Stream.NOISE)
    drawn = {name: torch.empty(places.numel(), dtype=torch.float64) for name in schedulers}
    for numbers in torch.arange(places.numel()).split(batch_size):
        rows = numbers // draws
        timestep = timesteps[places.flatten()[numbers]]
        noise = randn_for(noise_seed, (numbers + first_index * draws).tolist(), shape, device=images.device)
        x0, here = images[rows.to(images.device)], timestep.to(images.device)
        sample = add_noise(x0, noise, reference.noise_level(timestep))
        arguments = {name: value[rows.to(value.device)] for name, value in condition.items()}
        output = network(sample, here, **arguments)
        output = output if isinstance(output, Tensor) else output[0]
        for name, scheduler in schedulers.items():
            drawn[name][numbers] = bound_term(scheduler, output, x0, sample, timestep, floor).double().cpu()
    for name, values in drawn.items():
        if len(wrong := (~values.isfinite()).nonzero()):
            image, place = divmod(int(wrong[0]), draws)
            raise NonFiniteError(
                f"{len(wrong)} of {len(values)} terms of {name} are not finite, the first that of image "
                f"{first_index + image} at timestep {int(timesteps[places[image, place]])}: try the network "
                "in float32, or other weights"
            )
    prior = prior_term(reference, images.cpu().double())
    return {
        name: _gathered(values.view_as(places), places, prior, timesteps) for name, values in drawn.items()
    }


def _gathered(values: Tensor, places: Tensor, prior: Tensor, timesteps: Tensor) -> Bound:
    """A bound from its drawn terms; the mean of those before the decoder stands for each of all of them."""
    count, inner = len(timesteps), values[:, :-1]
    between = inner.mean(1) * (count - 1) if count > 1 else torch.zeros_like(prior)
    sums = torch.zeros(len(places), count, dtype=torch.float64).scatter_add_(1, places, values)
    times = torch.zeros_like(sums).scatter_add_(1, places, torch.ones_like(values))
    return Bound(
        total=prior + between + values[:, -1],
        prior=prior,
        decoder=values[:, -1],
        terms=sums / times,
        timesteps=timesteps,
        draws=places.shape[1],
    )


def plot_terms(bounds: Mapping[str, Bound], path: str | Path) -> None:
    """Draws the mean of each term over its timestep, a line a bound, logarithmic: `path` names the picture.

    The decoder is the point at the least timestep. It needs matplotlib, the extra `eval`.
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    for name, bound in bounds.items():
        means = bound.mean_terms()
        known = means.isfinite()
        label = f"{name}: {bound.total.mean():.3f} bits/dim"
        axes.plot(bound.timesteps[known], means[known], label=label, linewidth=1.2, marker=".", markersize=3)
    axes.set(xscale="symlog", yscale="log", xlabel="timestep", ylabel="term of the bound, bits/dim")
    axes.set_xlim(left=-0.5)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _check_condition(condition: Any, images: int) -> None:
    if condition is None:
        return
    fits = isinstance(condition, Mapping) and all(isinstance(name, str) for name in condition)
    check_that(fits, "condition", condition, "tensors by the network's arguments")
    for name, value in condition.items():
        check_tensor(f"{name} of condition", value, (images, "..."), floating=False)


def _checked(
    schedulers: Schedulers,
    images: Tensor,
    network: Any,
    condition: Any,
    seed_and_first: tuple[Any, Any],
    batch_size: Any,
    floor: Any,
) -> GuidedDDPMScheduler:
    """The first of the schedulers, when all arguments are right."""
    check_callable("network", network)
    check_finite("images", check_tensor("images", images, ("images", "channels", "height", "width")))
    for name, value in zip(("seed", "first_index"), seed_and_first, strict=True):
        check_int(name, value, None, None)
    check_int("batch_size", batch_size, 1)
    check_number("floor", floor, 0, 1)
    fits = isinstance(schedulers, Mapping) and schedulers
    check_that(fits, "schedulers", schedulers, "at least one scheduler by name")
    fits = 0 not in images.shape and images.abs().max() <= 1.1
    check_that(fits, "images", images, "at least one image, in [-1, 1]")
    _check_condition(condition, len(images))
    return _of_one_chain(schedulers)


def _of_one_chain(schedulers: Schedulers) -> GuidedDDPMScheduler:
    """The first of the schedulers, when all have its chain."""
    reference: GuidedDDPMScheduler | None = None
    levels: Sequence[Tensor] = ()
    for name, scheduler in schedulers.items():
        fits = isinstance(scheduler, GuidedDDPMScheduler)
        check_that(fits, f"scheduler {name!r}", scheduler, "a GuidedDDPMScheduler")
        here = scheduler.noise_level(scheduler.timesteps.cpu())
        if reference is None:
            reference, levels = scheduler, (scheduler.timesteps.cpu(), here.alpha)
        else:
            own = (scheduler.timesteps.cpu(), here.alpha)
            alike = all(torch.equal(a, b) for a, b in zip(levels, own, strict=True))
            allowed = "one of the first's timesteps and noise levels: with_variance(first, variance_type)"
            check_that(alike, f"scheduler {name!r}", scheduler, allowed)
    return reference
