"""Latents as a denoiser gives them."""

from __future__ import annotations

import pytest
import torch
from tiny import LATENT, tiny_autoencoder, tiny_components

from guided_diffusers import GuidedDDIMScheduler, TextToImagePipeline
from guided_diffusers.training.tasks.denoised_latents import DenoisedLatents


@pytest.fixture
def pipeline() -> TextToImagePipeline:
    scheduler = GuidedDDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    return TextToImagePipeline(**tiny_components(scheduler=scheduler))


def test_a_level_near_zero_leaves_the_latents(pipeline):
    latents = torch.randn(4, *LATENT, generator=torch.Generator().manual_seed(0))
    near, far = (DenoisedLatents(pipeline, maximum, seed=0) for maximum in (1e-3, 2.0))
    draw = near.draw([0, 1, 2, 3], LATENT)
    error = (near(latents, *draw) - latents).square().mean().sqrt()
    assert error < 0.02  # the lowest level of the schedule
    assert (far(latents, *draw) - latents).square().mean().sqrt() > 5 * error


def test_draws_are_of_the_position_alone(pipeline):
    denoised = DenoisedLatents(pipeline, 1.0, seed=3)
    levels, noise = denoised.draw([5, 6, 7], LATENT)
    level, one = denoised.draw([6], LATENT)
    assert torch.equal(levels[1:2], level) and torch.equal(noise[1:2], one)
    assert ((levels > 0) & (levels <= 1)).all()
    latents = torch.randn(3, *LATENT)
    together = denoised(latents, levels, noise)
    torch.testing.assert_close(denoised(latents[1:2], level, one), together[1:2], rtol=0, atol=1e-5)
    assert not together.requires_grad


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"latents_std": (0.9, 1.4)}, "latents of mean and deviation .*0.9, 1.3.*0.9, 1.4"),
        ({"scaling_factor": 0.18215}, "latents of mean and deviation"),
        ({"latent_channels": 1, "latents_mean": None, "latents_std": None}, "takes 2 channels .* has 1"),
    ],
)
def test_it_is_of_the_autoencoder_that_is_trained(pipeline, other, word):
    denoised = DenoisedLatents(pipeline, 1.0, seed=0)
    denoised.check_statistics(tiny_autoencoder())
    with pytest.raises(ValueError, match=word):
        denoised.check_statistics(tiny_autoencoder(**other))


def test_the_level_must_be_positive(pipeline):
    with pytest.raises(ValueError, match="maximum is 0"):
        DenoisedLatents(pipeline, 0, seed=0)
