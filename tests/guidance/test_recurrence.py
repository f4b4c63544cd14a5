"""Recurrence: what one more prediction at a level starts from."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from laws.exact import draw, level_at

from guided_diffusers.guidance.recurrence import renoised
from guided_diffusers.schedulers import next_noise_level, noise_level


def test_it_is_a_step_of_ddim_and_new_noise():
    """Algorithm 1 of universal guidance, line 8: sqrt(abar/abar_next) z + sqrt(1 - abar/abar_next) eps'."""
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(20)
    sample, x0, noise, timestep = draw(3, 2), draw(3, 2, seed=1), draw(3, 2, seed=2), scheduler.timesteps[7]
    ratio = scheduler.alphas_cumprod[timestep] / scheduler.alphas_cumprod[timestep - 50]
    stepped = scheduler.step(x0, timestep, sample).prev_sample
    expected = ratio.sqrt() * stepped + (1 - ratio).sqrt() * noise
    levels = noise_level(scheduler, timestep), next_noise_level(scheduler, 7)
    torch.testing.assert_close(renoised(sample, x0, *levels, noise), expected, rtol=0, atol=1e-6)


def test_of_the_true_image_it_is_again_a_noised_one_and_keeps_what_the_step_keeps():
    """Given x_0 the covariance is sigma^2 again, and that with x_t is r sigma^2."""
    count, x0 = 200_000, torch.full((1, 1), 1.5, dtype=torch.float64)
    level, following = level_at(2.0), level_at(1.2)
    epsilon, noise = draw(count, 1), draw(count, 1, seed=1)
    sample = level.alpha * x0 + level.sigma * epsilon
    again = renoised(sample, x0.expand(count, 1), level, following, noise) - level.alpha * x0
    assert abs(again.mean() / level.sigma) < 0.01 and abs(again.std() / level.sigma - 1) < 0.01
    assert abs((again * epsilon).mean() / level.sigma - 1.2 / 2.0) < 0.01


def test_the_step_to_the_clean_end_keeps_nothing_of_the_noise():
    sample, x0, noise = draw(2, 3), draw(2, 3, seed=1), draw(2, 3, seed=2)
    level, clean = level_at(2.0), level_at(0.0)
    together = renoised(sample, x0, level, clean, noise)
    torch.testing.assert_close(together, level.alpha * x0 + level.sigma * noise, rtol=0, atol=1e-12)
