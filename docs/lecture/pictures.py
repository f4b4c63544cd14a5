"""Draws the lecture's own pictures: of models that are known exactly, and of the shipped checkpoint.

    python docs/lecture/pictures.py --output docs/images

It needs no data and takes half a minute of one core. --only draws some of them, --samples takes a share of
their points.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import checkpoint
import guidance
import theory
import torch
from matplotlib.figure import Figure
from PIL import Image

from guided_diffusers import TextToImagePipeline

Draw = Callable[[float], Figure | Image.Image]


@cache
def _pipeline() -> TextToImagePipeline:
    return checkpoint.load()


PICTURES: dict[str, Draw] = {
    "prior-estimate": lambda share: theory.prior_estimate(round(10_000 * share)),
    "processes": lambda share: theory.processes(round(14 * share)),
    "reverse-step": lambda share: theory.reverse_step(),
    "prediction-types": lambda share: theory.prediction_types(),
    "cascade": lambda share: theory.cascade(round(4000 * share)),
    "noise-aware": lambda share: guidance.noise_aware(round(4000 * share)),
    "classifier": lambda share: guidance.classifier(round(500 * share)),
    "classifier-free": lambda share: guidance.classifier_free(round(20_000 * share)),
    "interval": lambda share: guidance.interval(round(600 * share)),
    "contrastive": lambda share: theory.contrastive(round(10_000 * share)),
    "latents": lambda share: checkpoint.latents(_pipeline()),
    "scales": lambda share: checkpoint.scales(_pipeline()),
}
"""By the name that follows `lecture-`, from the share of its points that is wanted."""


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES), help="some of them")
    parser.add_argument("--samples", type=float, default=1.0, help="share of the points, above 0, at most 1")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if not 0 < arguments.samples <= 1:
        parser.error(f"--samples is {arguments.samples}; allowed: above 0, at most 1")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        path = arguments.output / f"lecture-{name}.png"
        picture = as_image(PICTURES[name](arguments.samples))
        picture.quantize(64).save(path, optimize=True)
        size = path.stat().st_size / 1000
        print(f"{path}: {picture.width} x {picture.height}, {size:.0f} kB", flush=True)


def as_image(picture: Figure | Image.Image) -> Image.Image:
    """A figure of matplotlib as an image; an image as it is."""
    if isinstance(picture, Image.Image):
        return picture
    file = io.BytesIO()
    picture.savefig(file, format="png")
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    main()
