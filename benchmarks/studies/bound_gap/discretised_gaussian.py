"""Images whose likelihood and denoiser are known exactly: independent pixels of a discretised Gaussian.

A pixel is a Gaussian of deviation 0.5 whose mass is put on the 256 levels of [-1, 1], what lies beyond on the
ends. Its -log p is that mass; E[x_0 | x_t] and Var[x_0 | x_t] are means over 256 levels. So nothing is
learned, and a gap between the bound and -log p is the chain's own: its reverse steps are Gaussian,
and few.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from guided_diffusers.schedulers import GuidedDDPMScheduler

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
DEVIATION = 0.5
VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned")
GRID = 2048


def log_masses() -> Tensor:
    """The logarithm of each level's mass, (256,)."""
    edges = (LEVELS[:-1] + LEVELS[1:]) / (2 * DEVIATION)
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    return torch.special.ndtr(torch.cat([ends[:1], edges, ends[1:]])).diff().log()


def draw(count: int, shape: tuple[int, int, int] = (1, 4, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images, (count, *shape), and the exact -log2 p of each in bits a pixel, (count,)."""
    log_mass, generator = log_masses(), torch.Generator().manual_seed(seed)
    levels = torch.multinomial(log_mass.exp(), count * math.prod(shape), True, generator=generator)
    bits = -log_mass[levels].view(count, -1).mean(1) / math.log(2)
    return LEVELS[levels].view(count, *shape), bits


def scheduler_of(steps: int) -> GuidedDDPMScheduler:
    """A cosine chain of `steps` of 1000 timesteps, both ends included."""
    scheduler = GuidedDDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    return scheduler


def exact_network(scheduler: GuidedDDPMScheduler) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact mean of x_0, and for `learned` the exact log-variance of the reverse step, as two channels.

    Both are read from a table over x_t, 2048 points a timestep, by linear interpolation.
    """
    listed = scheduler.timesteps.tolist()
    tables, reaches = zip(*(_table(scheduler, timestep) for timestep in listed), strict=True)
    table, reach = torch.stack(tables), torch.tensor(reaches, dtype=torch.float64)
    place_of = {timestep: place for place, timestep in enumerate(listed)}

    def network(sample: Tensor, timestep: Tensor) -> Tensor:
        rows = torch.tensor([place_of[t] for t in timestep.tolist()])
        limit = reach[rows].view(-1, 1, 1, 1)
        position = ((sample.double() / limit + 1) / 2 * (GRID - 1)).clamp(0, GRID - 1 - 1e-9)
        left, share = position.long(), position.frac()
        index = rows.view(-1, 1, 1, 1).expand_as(left)
        channels = [torch.lerp(of[index, left], of[index, left + 1], share) for of in table.unbind(1)]
        return torch.cat(channels, dim=1)

    return network


def _table(scheduler: GuidedDDPMScheduler, timestep: int) -> tuple[Tensor, float]:
    """Mean and log-variance over a grid of x_t, (2, GRID), and how far the grid reaches."""
    level = scheduler.noise_level(timestep)
    reach = (level.alpha + 7 * level.sigma).item()
    points = torch.linspace(-reach, reach, GRID, dtype=torch.float64)
    distance = ((points[:, None] - level.alpha * LEVELS) / level.sigma).square()
    weight = (log_masses() - distance / 2).softmax(-1)
    mean = weight @ LEVELS
    spread = (weight @ LEVELS.square() - mean.square()).clamp_min(1e-7)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    of_x0, variance = scheduler.posterior(one, zero, timestep)  # the mean is linear in x_0
    return torch.stack([mean, (variance + of_x0.square() * spread).log().squeeze(0)]), reach
