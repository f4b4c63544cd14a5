"""The lecture's pictures of the checkpoint that ships with the package: its latents, its scales."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from guided_diffusers import TextToImagePipeline, pretrained
from guided_diffusers.core.randomness import generator_for, randn_for
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance, GuidanceSum

COLUMNS = 10
GAMMAS = (0.0, 1.0, 2.0, 4.0, 8.0)
PROMPTS = ("a photo of a sandal", "a photo of a bag")
PIXELS = 64
STEPS = 20


def load() -> TextToImagePipeline:
    """The pipeline, without progress bars."""
    pipeline = TextToImagePipeline.from_pretrained(pretrained("fashion-32"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: TextToImagePipeline) -> Image.Image:
    """Latents of N(0, I), of the denoiser without a prompt and with one, each above its decoded image."""
    noise = randn_for(0, range(COLUMNS), (pipeline.unet.config.in_channels, 8, 8))
    sources = {
        "latents of N(0, I)": noise,
        "of the denoiser, no prompt": _drawn(pipeline, [""] * COLUMNS, GuidanceSum()),
        f"{PROMPTS[0]}, gamma = 2": _drawn(pipeline, [PROMPTS[0]] * COLUMNS, ClassifierFreeGuidance(2.0)),
    }
    rows, labels = [], []
    for name, values in sources.items():
        rows += [to_pictures(_tiled(values)), to_pictures(decoded(pipeline, values))]
        labels += [name, "decoded"]
    return labelled_grid(rows, labels, PIXELS)


def scales(pipeline: TextToImagePipeline) -> Image.Image:
    """Plain classifier-free guidance over gamma: two prompts, the same seeds in every row."""
    prompts = [prompt for prompt in PROMPTS for _ in range(COLUMNS // len(PROMPTS))]
    rows = []
    for gamma in GAMMAS:
        rows.append(to_pictures(decoded(pipeline, _drawn(pipeline, prompts, ClassifierFreeGuidance(gamma)))))
    return labelled_grid(rows, [f"gamma = {gamma:g}" for gamma in GAMMAS], PIXELS)


@torch.no_grad()
def decoded(pipeline: TextToImagePipeline, values: Tensor) -> Tensor:
    """The images of standardised latents, (count, 1, 32, 32)."""
    return pipeline.vae.decode(values.to(pipeline.vae.dtype)).sample


def _drawn(pipeline: TextToImagePipeline, prompts: list[str], guidance: Guidance) -> Tensor:
    """Latents of prompts; the column alone says with which noise."""
    generators = [generator_for(0, column) for column in range(len(prompts))]
    options = {"num_inference_steps": STEPS, "generator": generators, "output_type": "latent"}
    return pipeline(prompts, guidance=guidance, **options).images


def _tiled(values: Tensor) -> Tensor:
    """The four channels of latents as one image, two beside two, a deviation of 3 as black or white."""
    top, bottom = (torch.cat([values[:, a : a + 1], values[:, a + 1 : a + 2]], dim=3) for a in (0, 2))
    return torch.cat([top, bottom], dim=2) / 3
