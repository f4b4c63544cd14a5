"""Learning rate as a function of the images seen."""

from __future__ import annotations

import math

_DECAYS = {
    "constant": lambda images, warmup, total: 1.0,
    "cosine": lambda images, warmup, total: 0.5 + 0.5 * math.cos(math.pi * _progress(images, warmup, total)),
    "linear": lambda images, warmup, total: 1 - _progress(images, warmup, total),
    "inverse_sqrt": lambda images, warmup, total: min(1.0, (10 * max(warmup, 1) / max(images, 1)) ** 0.5),
}


def learning_rate_factor(schedule: str, images_seen: int, warmup_images: int, num_images: int) -> float:
    """The learning rate as a fraction, in [0, 1], of its peak.

    Args:
        schedule: constant, cosine (to 0), linear (to 0) or inverse_sqrt (from 10 warm-ups on; Karras et al.,
            Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv:2312.02696, eq. 67).
        images_seen: images seen when the step ends.
        warmup_images: the factor first rises linearly from 0 over so many images.
        num_images: images of the whole training.
    """
    warmup = min(1.0, images_seen / warmup_images) if warmup_images else 1.0
    return warmup * _DECAYS[schedule](images_seen, warmup_images, num_images)


def _progress(images: int, warmup: int, total: int) -> float:
    return min(1.0, max(0.0, (images - warmup) / max(total - warmup, 1)))
