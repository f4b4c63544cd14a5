"""Stable Diffusion's pipeline is the reference: one folder, two classes, the same latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from tiny import stable_diffusion_schedule, tiny_components

from guided_diffusers import TextToImagePipeline

SCHEDULERS: dict[type, dict[str, Any]] = {
    DDIMScheduler: {"clip_sample": False, "set_alpha_to_one": False},
    EulerDiscreteScheduler: {},
    PNDMScheduler: {"skip_prk_steps": True},
    DPMSolverMultistepScheduler: {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What StableDiffusionPipeline saves."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=2,
    )
    scheduler = stable_diffusion_schedule(PNDMScheduler, skip_prk_steps=True)
    components = tiny_components(vae=vae, scheduler=scheduler)
    pipe = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    path = tmp_path_factory.mktemp("stable-diffusion")
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    pipes = StableDiffusionPipeline.from_pretrained(folder), TextToImagePipeline.from_pretrained(folder)
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes


@pytest.mark.parametrize("scale", [1.0, 4.0, 7.5])
@pytest.mark.parametrize("cls", SCHEDULERS)
def test_latents_are_those_of_stable_diffusion(pair: tuple[Any, Any], cls: type, scale: float) -> None:
    results = []
    for pipe in pair:
        pipe.scheduler = stable_diffusion_schedule(cls, **SCHEDULERS[cls])
        results.append(
            pipe(
                ["a boot", "a bag"],
                negative_prompt=["a coat", ""],
                guidance_scale=scale,
                num_inference_steps=20,
                generator=torch.Generator().manual_seed(5),
                output_type="latent",
            ).images
        )
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-4)
    assert results[0].std() > 0.1


@pytest.mark.parametrize(
    "cls",
    [
        diffusers.LCMScheduler,
        diffusers.TCDScheduler,
        diffusers.SASolverScheduler,
        diffusers.KDPM2AncestralDiscreteScheduler,
        diffusers.IPNDMScheduler,
        diffusers.DDIMParallelScheduler,
        diffusers.DDPMParallelScheduler,
        diffusers.CogVideoXDDIMScheduler,
    ],
)
def test_latents_under_further_schedulers_are_those_of_stable_diffusion(
    pair: tuple[Any, Any], cls: type
) -> None:
    results = []
    for pipe in pair:
        own = stable_diffusion_schedule(PNDMScheduler, skip_prk_steps=True)
        pipe.scheduler = cls.from_config(own.config, clip_sample=False)
        generator = torch.Generator().manual_seed(5)
        call = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "latent"}
        results.append(pipe(["a boot", "a bag"], generator=generator, **call).images)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=4e-5)
    assert results[0].std() > 0.1


def test_images_are_those_of_stable_diffusion(pair: tuple[Any, Any]) -> None:
    """Beyond the latents: scaling_factor, decoding, the range of the pixels."""
    images = [
        pipe(
            "a boot", num_inference_steps=3, generator=torch.Generator().manual_seed(5), output_type="np"
        ).images
        for pipe in pair
    ]
    assert images[0].shape == (1, 16, 16, 3)
    assert abs(images[1] - images[0]).max() < 1e-4


def test_folder_of_ours_loads_in_stable_diffusion(folder: Path, tmp_path: Path) -> None:
    """Its component names are ours, so a checkpoint of ours with stock classes goes the other way too."""
    ours = TextToImagePipeline.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    images = [
        pipe(
            "a boot", num_inference_steps=3, generator=torch.Generator().manual_seed(5), output_type="np"
        ).images
        for pipe in (ours, theirs)
    ]
    assert abs(images[1] - images[0]).max() < 1e-4
