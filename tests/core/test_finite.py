"""A run that stops being finite ends with an error that says where: sampled, decoded, encoded or measured."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    SCMScheduler,
)
from tiny import tiny_autoencoder, tiny_components
from tiny_classifier import tiny_image_unet

from guided_diffusers import (
    GuidedDDPMScheduler,
    ImagePipeline,
    TextToImagePipeline,
    VAEPipeline,
    sampling_loop,
)
from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.likelihood.bound import full_bound
from guided_diffusers.sampling import Run

COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
NOISE = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def spoilt_from(step: int, value: float) -> Any:
    """A denoiser whose answer is not finite at one call."""
    calls = []

    def denoiser(sample: torch.Tensor, level: Any, condition: Any) -> torch.Tensor:
        calls.append(level)
        return torch.full_like(sample, value if len(calls) == step else 0.5)

    return denoiser


@pytest.mark.parametrize(("step", "value"), [(1, torch.nan), (3, torch.inf), (5, -torch.inf)])
def test_a_prediction_that_is_not_finite_is_named_by_its_step(step: int, value: float) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    with pytest.raises(NonFiniteError, match=f"after step {step} of 5 .*neither was the") as caught:
        sampling_loop(spoilt_from(step, value), scheduler, NOISE, num_inference_steps=5)
    assert f"timestep {int(scheduler.timesteps[step - 1])}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_that_is_not_finite_is_its_schedulers() -> None:
    scheduler = EulerAncestralDiscreteScheduler(**COSINE)
    with pytest.raises(NonFiniteError, match="AncestralDiscreteScheduler.step made it so; try more steps"):
        sampling_loop(spoilt_from(0, 0), scheduler, NOISE, num_inference_steps=3)


@pytest.mark.parametrize(
    ("scheduler", "how"),
    [
        (SCMScheduler(), {"num_inference_steps": 3}),
        (LTXEulerAncestralRFScheduler(), {"sigmas": [0.9, 0.5, 0.2, 0.0]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_clean_end_that_is_listed_is_no_step(scheduler: Any, how: Any) -> None:
    with pytest.raises(NonFiniteError, match="after step 2 of 3 "):
        sampling_loop(spoilt_from(2, torch.nan), scheduler, NOISE, **how)


def test_a_callback_mends_it_and_a_run_that_is_left_says_so_when_asked() -> None:
    def mend(index: int, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        return sample.nan_to_num(0.0)

    ddim = DDIMScheduler(clip_sample=False)
    drawn = sampling_loop(spoilt_from(3, torch.nan), ddim, NOISE, num_inference_steps=5, callback=mend)
    assert drawn.isfinite().all()
    for spoilt, expected in ((3, nullcontext()), (1, pytest.raises(NonFiniteError, match="step 1 of 5"))):
        run = Run(spoilt_from(spoilt, torch.nan), ddim, NOISE, num_inference_steps=5)
        run.advance(next(iter(run)))
        with expected:
            run.check()


def overflowing(dtype: torch.dtype, **config: Any) -> Any:
    """An autoencoder whose weights fit into float16, and what it decodes and encodes does not."""
    vae = tiny_autoencoder(**config)
    for last in (vae.decoder.conv_out, vae.encoder.conv_out):
        torch.nn.init.constant_(last.bias, 6e4)
        torch.nn.init.constant_(last.weight, 3e3)
    return vae.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "config", "finite"),
    [
        (torch.float16, {"force_upcast": False}, False),
        (torch.float16, {"force_upcast": True}, True),
        (torch.float32, {"force_upcast": False}, True),
    ],
    ids=str,
)
def test_a_picture_is_decoded_finite(dtype: torch.dtype, config: dict, finite: bool) -> None:
    vae = overflowing(dtype, **config)
    text = TextToImagePipeline(**tiny_components(vae=vae))
    image = ImagePipeline(tiny_image_unet(2), DDIMScheduler(clip_sample=False), vae)
    own = VAEPipeline(vae)
    calls = {
        "decoded picture": [
            lambda: text("ab", num_inference_steps=1, output_type="pt"),
            lambda: image(num_inference_steps=1, output_type="np"),
            lambda: own(2),
        ],
        "encoded latent": [lambda: own.reconstruct(torch.zeros(1, 1, 16, 16))],
    }
    for pipe in (text, image, own):
        pipe.set_progress_bar_config(disable=True)
    for what, several in calls.items():
        for call in several:
            if finite:
                call()
                continue
            with pytest.raises(ValueError, match=f"{what} of VariationalAutoencoder in float16.*float32"):
                call()


def test_a_pipeline_draws_nothing_black() -> None:
    scheduler = EulerAncestralDiscreteScheduler(**COSINE)
    pipe = TextToImagePipeline(**tiny_components(scheduler=scheduler))
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="not finite after step"):
        pipe("ab", num_inference_steps=3)
    pipe.scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
    assert pipe("ab", num_inference_steps=3, output_type="pt").images.std() > 0


def test_likelihoods_name_the_term_and_the_model() -> None:
    scheduler = GuidedDDPMScheduler(num_train_timesteps=8)
    scheduler.set_timesteps(8)
    images = torch.zeros(2, 1, 4, 4)

    def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        spoilt = torch.tensor([0.0, torch.nan])[(timestep == 5).long()]
        return sample + spoilt[:, None, None, None]

    with pytest.raises(NonFiniteError, match="2 of 16 terms of small .*image 0 at timestep 5"):
        full_bound(network, {"small": scheduler}, images)
    vae = tiny_autoencoder(likelihood="bernoulli")
    torch.nn.init.constant_(vae.decoder.conv_out.bias, torch.nan)
    with pytest.raises(NonFiniteError, match="log-likelihood of VariationalAutoencoder"):
        vae.log_likelihood(torch.zeros(1, 1, 16, 16), num_samples=2)
