"""`guide` on a pipeline as those of diffusers, around an exact network: what is drawn is known."""

from __future__ import annotations

import diffusers
import pytest
import torch
from laws.exact import draw, exact_log_prob
from laws.mixture import MIXTURE, GaussianMixture, MixtureNetwork, levels_of

from guided_diffusers import guide
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance

COUNT = 2048


class ExactPipeline(diffusers.DiffusionPipeline):
    """Labels -1 are the null."""

    def __init__(self, unet, scheduler, coordinates):
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.unet, self.coordinates = unet, coordinates

    @torch.no_grad()
    def __call__(self, labels, noise, steps=40, guidance_scale=2.0, two_calls=False):
        scheduler = self.scheduler
        scheduler.set_timesteps(steps)
        self.unet.levels = levels_of(scheduler, self.coordinates)
        x, null = noise * getattr(scheduler, "init_noise_sigma", 1.0), torch.full_like(labels, -1)
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            if guidance_scale <= 1:
                output = self.unet(given, t, class_labels=labels)
            else:
                if two_calls:
                    positive = self.unet(given, t, class_labels=labels)
                    negative = self.unet(given, t, class_labels=null)
                else:
                    both = self.unet(torch.cat([given] * 2), t, class_labels=torch.cat([null, labels]))
                    negative, positive = both.chunk(2)
                output = negative + guidance_scale * (positive - negative)
            x = scheduler.step(output, t, x).prev_sample
        return x


SCHEDULERS = {
    "ddim": (lambda: diffusers.DDIMScheduler(clip_sample=False), "timestep", "epsilon"),
    "heun": (lambda: diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), "exploding", "epsilon"),
    "solver": (
        lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
        "preserving",
        "epsilon",
    ),
    "flow": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), "flow", "flow_prediction"),
}


def pipeline_of(name, mixture=MIXTURE):
    make, coordinates, prediction_type = SCHEDULERS[name]
    pipeline = ExactPipeline(MixtureNetwork({}, prediction_type, mixture), make(), coordinates)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_within_standard_errors(values, expected, bound=4.5):
    error = (values.mean(0) - expected).abs() / (values.std(0) / COUNT**0.5)
    assert (error < bound).all(), f"{error.tolist()} standard errors"


@pytest.mark.parametrize(("name", "steps"), [("ddim", 200), ("heun", 30), ("solver", 30), ("flow", 150)])
def test_a_classifier_makes_the_unconditional_network_draw_the_class(name, steps):
    pipeline, labels = pipeline_of(name), torch.full((COUNT,), 1)
    with guide(pipeline, ClassifierGuidance(exact_log_prob(labels), 1.0, (0.0, 1e3))) as run:
        x = pipeline(torch.full((COUNT,), -1), draw(COUNT, 2, seed=1), steps, guidance_scale=1.0)
    assert run.calls == [COUNT] * len(run.record)
    assert_within_standard_errors(x, MIXTURE.means[1])
    assert_within_standard_errors((x - MIXTURE.means[1]).square(), MIXTURE.deviations[1] ** 2)


@pytest.mark.parametrize("two_calls", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_plain_guidance_draws_gamma_times_the_mean(name, two_calls):
    """Of N(m, v) with the null N(0, v), guided by gamma, is N(gamma m, v)."""
    mean, deviation, gamma = torch.tensor([0.4, -0.3], dtype=torch.float64), 0.5, 2.5

    class TwoGaussians(GaussianMixture):
        def denoised(self, sample, alpha, sigma, labels=None):
            m = torch.where(labels[:, None] >= 0, mean, 0.0)
            gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
            return m + gain * (sample - alpha * m)

    pipeline = pipeline_of(name, TwoGaussians(MIXTURE.means, MIXTURE.deviations, MIXTURE.weights))
    labels, noise = torch.zeros(COUNT, dtype=torch.long), draw(COUNT, 2, seed=1)
    steps = 150 if name == "ddim" else 40
    with guide(pipeline, ClassifierFreeGuidance(gamma)) as run:
        x = pipeline(labels, noise, steps, 7.0, two_calls)
    assert sum(run.calls) == 2 * COUNT * len(run.record)
    assert_within_standard_errors(x, gamma * mean, 6.0)
    assert_within_standard_errors((x - gamma * mean).square(), deviation**2, 6.0)
    torch.testing.assert_close(x, pipeline(labels, noise, steps, gamma, two_calls), rtol=0, atol=1e-9)


def test_an_unknown_pipeline_that_tells_the_null_last_is_told():
    pipeline, labels = pipeline_of("ddim"), torch.zeros(4, dtype=torch.long)

    class Reversed(ExactPipeline):
        @torch.no_grad()
        def __call__(self, labels, noise, guidance_scale=2.0):
            self.scheduler.set_timesteps(4)
            self.unet.levels, x = levels_of(self.scheduler, self.coordinates), noise
            for t in self.scheduler.timesteps:
                told = torch.cat([labels, torch.full_like(labels, -1)])
                positive, negative = self.unet(torch.cat([x] * 2), t, class_labels=told).chunk(2)
                output = negative + guidance_scale * (positive - negative)
                x = self.scheduler.step(output, t, x).prev_sample
            return x

    other = Reversed(pipeline.unet, pipeline.scheduler, "timestep")
    other.set_progress_bar_config(disable=True)
    for interval in (None, (1e6, None)):  # also where no term is ever active
        with (
            guide(other, ClassifierFreeGuidance(3.0, interval)),
            pytest.raises(ValueError, match="the null where"),
        ):
            other(labels, draw(4, 2))
