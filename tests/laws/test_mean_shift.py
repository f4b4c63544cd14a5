"""The mean-shift form is Algorithm 1 of Dhariwal and Nichol, mu + s Sigma g, with the posterior variance."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import diffusers
import pytest
import torch
from laws.exact import draw, exact_denoiser, exact_log_prob

from guided_diffusers import Denoised, GuidedDDPMScheduler, from_denoised, sampling_loop
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.schedulers import next_noise_level, noise_level, prediction_type_of

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SCALE = 1.7


def gradient_at(sample, level):
    with torch.enable_grad():
        sample = sample.detach().requires_grad_()
        return torch.autograd.grad(exact_log_prob(LABELS)(sample, level).sum(), sample)[0]


class InDenoisedSpace(GuidedDDPMScheduler):
    """It takes no shift of its mean: all that guidance does is in x_0."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return super().step(model_output, timestep, sample, generator, return_dict)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_under_ddpm_it_is_the_schedulers_own_algorithm_1_at_every_step(prediction_type, spacing):
    def make(cls):
        config = {"timestep_spacing": spacing, "clip_sample": False, "variance_type": "fixed_small"}
        return cls(prediction_type=prediction_type, **config)

    noise, path = draw(6, 2), []
    guidance = ClassifierGuidance(exact_log_prob(LABELS), SCALE, form="mean_shift")
    generator = torch.Generator().manual_seed(1)
    sampling_loop(
        guidance(exact_denoiser()),
        make(InDenoisedSpace),
        noise,
        num_inference_steps=12,
        generator=generator,
        callback=lambda index, timestep, sample: path.append(sample) or sample,
    )

    scheduler, sample, generator = make(GuidedDDPMScheduler), noise, torch.Generator().manual_seed(1)
    scheduler.set_timesteps(12)
    for timestep, expected in zip(scheduler.timesteps, path, strict=True):
        level = noise_level(scheduler, timestep)
        output = from_denoised(exact_denoiser()(sample, level), sample, level, prediction_type)
        gradient = SCALE * gradient_at(sample, level)
        sample = scheduler.step(output, timestep, sample, generator, guidance_gradient=gradient).prev_sample
        torch.testing.assert_close(expected, sample, rtol=0, atol=1e-9)


def test_under_euler_ancestral_it_moves_the_mean_by_the_variance_of_the_step():
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(10)
    sample = draw(6, 2) * float(scheduler.init_noise_sigma)
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        scheduler.scale_model_input(sample, timestep)
        level, following = noise_level(scheduler, timestep), next_noise_level(scheduler, index)
        # Its noise has the posterior's variance for x_t = x_0 + sigma eps.
        variance = following.sigma**2 * (level.sigma**2 - following.sigma**2) / level.sigma**2
        gradient = SCALE * gradient_at(sample, level)
        x0 = exact_denoiser()(sample, level)
        arrived = []
        for estimate in (x0, x0 + following.sigma**2 / following.alpha * gradient):
            output = from_denoised(estimate, sample, level, prediction_type_of(scheduler))
            same_noise = torch.Generator().manual_seed(index)
            arrived.append(deepcopy(scheduler).step(output, timestep, sample, same_noise).prev_sample)
        moved = arrived[1] - arrived[0]
        torch.testing.assert_close(moved, variance * gradient, rtol=1e-4, atol=1e-6)  # its tables are float32
        sample = scheduler.step(output, timestep, sample, torch.Generator().manual_seed(index)).prev_sample


@pytest.mark.parametrize("at", ["sample", "mean"])
@pytest.mark.parametrize(
    "kind", ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]
)
def test_with_any_variance_the_loop_leaves_it_to_the_schedulers_algorithm_1(kind, at):
    """The hand-written loop of Algorithm 1, Sigma being what the scheduler draws with."""
    config = {"timestep_spacing": "linspace", "clip_sample": False, "variance_type": kind}

    def denoise(sample, level, condition=None):
        extra = torch.tanh(sample) - (3 if kind == "learned" else 0)
        return Denoised(exact_denoiser()(sample, level), extra if kind.startswith("learned") else None)

    guidance = ClassifierGuidance(exact_log_prob(LABELS), SCALE, form="mean_shift", at=at)
    arguments = {"num_inference_steps": 12, "generator": torch.Generator().manual_seed(1)}
    sampled = sampling_loop(guidance(denoise), GuidedDDPMScheduler(**config), draw(6, 2), **arguments)

    scheduler, sample = GuidedDDPMScheduler(**config), draw(6, 2)
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(1)
    for index, timestep in enumerate(scheduler.timesteps):
        level = noise_level(scheduler, timestep)
        x0, extra = denoise(sample, level)
        output = from_denoised(x0, sample, level, "epsilon")
        output = output if extra is None else torch.cat([output, extra], dim=1)
        mean, variance, _ = scheduler.reverse(output, timestep, sample)
        last = index == 11
        where = (sample, level) if at == "sample" or last else (mean, next_noise_level(scheduler, index))
        noise = torch.randn(6, 2, generator=generator, dtype=torch.float64) if not last else 0.0
        sample = mean + variance * SCALE * gradient_at(*where) + variance.sqrt() * noise
    torch.testing.assert_close(sampled, sample, rtol=0, atol=1e-9)


def test_outside_its_interval_and_beside_other_terms_the_scheduler_gets_the_sum():
    received = []

    class Recording(GuidedDDPMScheduler):
        def step(self, *args, guidance_gradient=None, **kwargs):
            received.append(guidance_gradient)
            return super().step(*args, guidance_gradient=guidance_gradient, **kwargs)

    ones = ClassifierGuidance(lambda x, level, condition: x.sum(1), 1.0, form="mean_shift")
    guidance = replace(ones, interval=(0.5, 2.0)) + replace(ones, scale=10.0, interval=(1.0, 5.0))
    scheduler = Recording(clip_sample=False)
    sampling_loop(guidance(exact_denoiser()), scheduler, draw(6, 2), num_inference_steps=20)
    ratios = [float(noise_level(scheduler, t).noise_to_signal) for t in scheduler.timesteps]
    expected = [(0.5 < ratio <= 2) + 10 * (1 < ratio <= 5) for ratio in ratios]
    assert [0 if each is None else each.unique().item() for each in received] == expected
    assert {0, 1, 10, 11} == set(expected)


@pytest.mark.parametrize(("steps", "ratio"), [(1000, 1.006), (250, 1.03), (50, 1.13), (25, 1.28)])
def test_how_far_the_two_forms_are_apart_at_few_steps(steps, ratio):
    scheduler = GuidedDDPMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    now = noise_level(scheduler, scheduler.timesteps[steps // 2])
    following = next_noise_level(scheduler, steps // 2)
    measured = (now.sigma**2 / now.alpha) / (following.sigma**2 / following.alpha)
    assert float(measured) == pytest.approx(ratio, rel=0.015)


@pytest.mark.parametrize(("steps", "ratio"), [(1000, 2.2), (25, 223)])
def test_how_far_they_are_apart_at_the_last_noisy_step(steps, ratio):
    scheduler = GuidedDDPMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    now, following = (noise_level(scheduler, t) for t in scheduler.timesteps[-2:])
    measured = (now.sigma**2 / now.alpha) / (following.sigma**2 / following.alpha)
    assert float(measured) == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("option", [{"form": "mean_shift"}, {"at": "mean"}])
def test_it_needs_a_run(option):
    guided = ClassifierGuidance(exact_log_prob(LABELS), 1.0, **option)(exact_denoiser())
    scheduler = GuidedDDPMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        guided(draw(6, 2), noise_level(scheduler, scheduler.timesteps[0]))
