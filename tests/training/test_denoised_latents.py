"""Latents as a denoiser gives them."""

from __future__ import annotations

import pytest
import torch
from tiny import LATENT, tiny_components

from guided_diffusers import GuidedDDIMScheduler, TextToImagePipeline
from guided_diffusers.training.denoised_latents import DenoisedLatents


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


def test_the_level_must_be_positive(pipeline):
    with pytest.raises(ValueError, match="maximum is 0"):
        DenoisedLatents(pipeline, 0, seed=0)
