"""Clipping of x_0 as a scheduler's configuration asks for it, moved to where guidance does not undo it.

A scheduler clips what it is given, which is guided; the networks were trained to be clipped before. So the
denoiser clips (`ModelDenoiser`'s `clip`), and the scheduler of the run does not.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from guided_diffusers.core.denoiser import DynamicThreshold
from guided_diffusers.schedulers.families import config_of
from guided_diffusers.schedulers.protocol import AnyScheduler

Clip = float | Callable[[Tensor], Tensor]


def clip_before_guidance(scheduler: AnyScheduler, latents: bool) -> tuple[AnyScheduler, Clip | None]:
    """A scheduler that does not clip, and what the denoiser is to do instead.

    Args:
        scheduler: Any scheduler; it is left as it is.
        latents: Samples are latents, which have no range to be clipped to: a `clip_sample`, the default of
            most schedulers, is then switched off. `thresholding`, which somebody asked for, is not.

    Returns:
        The scheduler itself where it does not clip, else a copy of its configuration; and the `clip` of
        `ModelDenoiser`.
    """
    threshold, clips = (config_of(scheduler, name, False) for name in ("thresholding", "clip_sample"))
    if not (threshold or clips):
        return scheduler, None
    config = scheduler.config
    off = {name: False for name in ("thresholding", "clip_sample") if name in config}
    unclipped = type(scheduler).from_config(config, **off)
    if threshold:
        return unclipped, DynamicThreshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    return unclipped, None if latents else float(config.get("clip_sample_range", 1.0))
