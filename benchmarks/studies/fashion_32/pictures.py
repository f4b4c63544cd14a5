"""Draws a Fashion-MNIST checkpoint at work: forward process, reverse trajectory, loss by noise level.

    python training/data/fashion_mnist.py --output data/fashion
    python benchmarks/studies/fashion_32/pictures.py --data data/fashion --output docs/images

With --judge, a classifier of judge.py, the closest pairs of generated and training images
in its features are drawn too. --json keeps what the pictures show in words and numbers, for the model card.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from process_pictures import forward_process, loss_figure, losses_by_level, reverse_process
from torch import Tensor

from guided_diffusers import (
    Condition,
    ModelDenoiser,
    NoiseLevel,
    TextToImagePipeline,
    noise_level,
    pretrained,
)
from guided_diffusers.core.randomness import generator_for, randn_for
from guided_diffusers.evaluation import read_images
from guided_diffusers.evaluation.features import extract_features, feature_network
from guided_diffusers.evaluation.labelled import captions_by_class, default_guidance, generate
from guided_diffusers.evaluation.nearest import closest_pairs, memorisation
from guided_diffusers.schedulers import process_of
from guided_diffusers.schedulers.adapt import prediction_type_of

TIMESTEPS = [50, 100, 200, 300, 450, 600, 800, 999]


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="fashion-32", help="a shipped name or a folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--prompt", default="a photo of a sneaker", help="of the reverse trajectory")
    parser.add_argument("--images", type=int, default=500, help="of the loss by noise level")
    parser.add_argument("--judge", type=Path, help="a classifier's file: draws the closest pairs")
    parser.add_argument("--json", type=Path, help="file of what the pictures show")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.checkpoint)
    drawing = Drawing(
        folder if folder.is_dir() else pretrained(arguments.checkpoint), arguments.data, arguments.seed
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    pictures = {
        "forward": drawing.forward(),
        "reverse": drawing.reverse(arguments.prompt),
        "loss": drawing.loss(arguments.images),
    }
    facts = {"prompt": arguments.prompt, "loss_images": arguments.images}
    if arguments.judge is not None:
        pictures["closest"], facts["memorisation"] = drawing.closest(arguments.judge)
    for name, picture in pictures.items():
        path = arguments.output / f"{Path(arguments.checkpoint).name}-{name}.png"
        picture.quantize(64).save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


class Drawing:
    """A checkpoint, real images, and the pictures of both."""

    def __init__(self, checkpoint: Path, data: Path, seed: int) -> None:
        self.pipeline = TextToImagePipeline.from_pretrained(checkpoint)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler.set_timesteps(1000)
        self.data, self.real, self.seed = data, read_images(data / "test.parquet"), seed
        self.denoiser = ModelDenoiser(self.pipeline.unet, prediction_type_of(self.pipeline.scheduler))

    def forward(self) -> Image.Image:
        """Three test images in pixel space, at the checkpoint's noise levels."""
        rows = [(self.real.labels == label).nonzero()[0].item() for label in (9, 0, 8)]
        levels = [noise_level(self.pipeline.scheduler, timestep) for timestep in TIMESTEPS]
        return forward_process(
            self.real.images[rows].float() / 127.5 - 1,
            [NoiseLevel(alpha=1.0, sigma=0.0), *levels],
            [self.real.names[self.real.labels[row]] for row in rows],
            seed=self.seed,
            min_pixels=64,
        )

    def reverse(self, prompt: str) -> Image.Image:
        """A prompt's latent on its way, decoded."""
        shape = (self.pipeline.unet.config.in_channels, *[self.pipeline.unet.config.sample_size] * 2)
        guided = default_guidance(self.pipeline)(self.denoiser)
        return reverse_process(
            guided,
            self.pipeline.scheduler,
            randn_for(self.seed, [0], shape),
            self._condition([prompt]),
            num_inference_steps=20,
            columns=9,
            generator=generator_for(self.seed, 0),
            decode=self._decode,
            min_pixels=64,
        )

    @torch.no_grad()
    def loss(self, images: int) -> Image.Image:
        """The loss of test latents under their captions, unguided."""
        rows = torch.arange(0, len(self.real.images), len(self.real.images) // images)[:images]
        scaled = self.real.images[rows].float() / 127.5 - 1
        latents = self.pipeline.vae.encode(scaled).latent_dist.mode()
        texts = captions_by_class(self.real)
        captions = [texts[label][0] for label in self.real.labels[rows].tolist()]
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(1000)
        process = process_of(scheduler)
        even = process.at_log_noise_to_signal(torch.linspace(math.log(0.01), math.log(100), 33))
        timesteps = even.timestep.unique().tolist()
        levels = [noise_level(scheduler, timestep) for timestep in timesteps]
        condition = self._condition(captions)
        losses = losses_by_level(self.denoiser, latents, levels, condition, seed=self.seed)
        return loss_figure(losses, f"{images} Fashion-MNIST test latents")

    def closest(self, judge: Path, images_per_class: int = 100) -> tuple[Image.Image, dict[str, Any]]:
        """The generated images nearest to training ones in a classifier's features, and how near."""
        training, network = read_images(self.data / "train.parquet"), feature_network(judge)
        generated = generate(
            self.pipeline,
            captions_by_class(self.real),
            guidance=default_guidance(self.pipeline),
            images_per_class=images_per_class,
            num_inference_steps=20,
            batch_size=100,
            seed=self.seed,
        ).images
        sets = (generated, training.images, self.real.images)
        found = memorisation(*(extract_features(network, images) for images in sets))
        picture = closest_pairs(generated, training.images, found.generated, count=10)
        return picture, {"ratio": found.ratio.to_dict(), "copies": found.copies.to_dict()}

    def _condition(self, prompts: list[str]) -> Condition:
        positive, negative = self.pipeline.encode_prompt(prompts, "cpu", 1, True)
        return Condition({"encoder_hidden_states": positive}, {"encoder_hidden_states": negative})

    def _decode(self, latents: Tensor) -> Tensor:
        return self.pipeline.vae.decode(latents, return_dict=False)[0]


if __name__ == "__main__":
    main()
