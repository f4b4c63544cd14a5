"""Images of classes that have captions, drawn by a text-to-image pipeline: as many of each class."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation.images import ImageSet
from guided_diffusers.guidance import Guidance


def default_guidance(pipeline: Any) -> Guidance:
    """The checkpoint's own guidance.

    Raises:
        ValueError: If it names none.
    """
    if pipeline.config.default_guidance is None:
        raise ValueError(
            "the checkpoint's model_index.json has no `default_guidance`: set it before measuring"
        )
    return pipeline.call_guidance()


def captions_by_class(data: ImageSet) -> list[list[str]]:
    """The captions of each class: those of its first image."""
    labels = data.labels.tolist()
    return [data.captions[labels.index(label)] for label in range(max(labels) + 1)]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Images (count, channels, height, width) uint8, the labels asked for, the seconds it took."""

    images: Tensor
    labels: Tensor
    seconds: float


def generate(
    pipeline: Any,
    captions: list[list[str]],
    *,
    guidance: Guidance,
    images_per_class: int,
    num_inference_steps: int,
    batch_size: int,
    seed: int,
) -> Generated:
    """Draws images for captions in turn: image i of a class has its caption i modulo their number.

    One generator an image, seeded by (seed, its index in the whole set): the images do not depend on the
    batch size, and equal indices start from equal noise under every guidance.
    """
    labels = torch.arange(len(captions)).repeat_interleave(images_per_class)
    prompts = [texts[index % len(texts)] for texts in captions for index in range(images_per_class)]
    parts, start = [], time.perf_counter()
    for first in range(0, len(prompts), batch_size):
        batch = range(first, min(first + batch_size, len(prompts)))
        parts.append(
            pipeline(
                [prompts[index] for index in batch],
                guidance=guidance,
                num_inference_steps=num_inference_steps,
                generator=[generator_for(seed, index) for index in batch],
                output_type="pt",
            ).images
        )
    images = (torch.cat(parts) * 255).round().to(torch.uint8)
    return Generated(images=images, labels=labels, seconds=time.perf_counter() - start)
