"""Images of classes that have captions: real ones of a parquet file, generated ones, and their figures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation.agreement import agreement
from guided_diffusers.evaluation.estimate import ratio_of_means
from guided_diffusers.evaluation.judge import Judge, judge_images
from guided_diffusers.evaluation.sharpness import high_frequency_energy, laplacian_energy
from guided_diffusers.guidance import Guidance
from guided_diffusers.store.image_reader import read_image


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images (count, channels, height, width) uint8, labels (count,), names and captions by label."""

    images: Tensor
    labels: Tensor
    names: list[str]
    captions: list[list[str]]


def default_guidance(pipeline: Any) -> Guidance:
    """The checkpoint's own guidance.

    Raises:
        ValueError: If it names none.
    """
    config = pipeline.config.default_guidance
    if config is None:
        raise ValueError(
            "the checkpoint's model_index.json has no `default_guidance`: set it before measuring"
        )
    weak = pipeline.weak_denoiser
    return Guidance.from_config(config, **({} if weak is None else {"weak": weak}))


def load_split(path: Path) -> Split:
    """Reads a parquet file that training/data/fashion_mnist.py wrote.

    Raises:
        FileNotFoundError: If there is no such file, with the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no data at {path}; make it with: python training/data/fashion_mnist.py --output {path.parent}"
        )
    from pyarrow import parquet  # of the extra "eval"

    table = parquet.read_table(path).to_pydict()
    arrays = [np.asarray(read_image(image["bytes"], channels=1)) for image in table["image"]]
    labels = torch.tensor(table["label"])
    rows = [table["label"].index(label) for label in range(int(labels.max()) + 1)]
    return Split(
        images=torch.from_numpy(np.stack(arrays))[:, None],
        labels=labels,
        names=[table["name"][row] for row in rows],
        captions=[list(table["text"][row]) for row in rows],
    )


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


class LabelledRuler:
    """Measures a set of labelled images against the real ones."""

    def __init__(self, judge: Judge, real: Split) -> None:
        self.judge, self.real = judge, real
        self.spectral = high_frequency_energy(_scaled(real.images))
        self.laplacian = laplacian_energy(_scaled(real.images))
        self.variance = _variance_within(real.images, real.labels)

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """The judge's agreement, both sharpness ratios, and the ratio of variance within classes."""
        agrees = agreement(judge_images(self.judge, images), labels)
        return {
            "images": len(images),
            "agreement": _rounded(agrees.overall.to_dict()),
            "agreement_per_class": {
                self.real.names[label]: round(estimate.value, 4)
                for label, estimate in agrees.per_class.items()
            },
            "sharpness": _rounded(
                ratio_of_means(high_frequency_energy(_scaled(images)), self.spectral).to_dict()
            ),
            "sharpness_laplacian": _rounded(
                ratio_of_means(laplacian_energy(_scaled(images)), self.laplacian).to_dict()
            ),
            "variance_within_class": round(_variance_within(images, labels) / self.variance, 4),
        }


def _scaled(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1


def _variance_within(images: Tensor, labels: Tensor) -> float:
    """Variance of a pixel over the images of one class, averaged over pixels and classes."""
    classes = [images[labels == label].double() for label in labels.unique()]
    return torch.stack([members.var(dim=0).mean() for members in classes]).mean().item()


def _rounded(values: dict[str, float | int]) -> dict[str, float | int]:
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in values.items()}
