"""Runs of the exact denoiser draw from the mixture: class fractions, means and deviations.

With responsibilities r_k(x) = p(k | x) of the clean mixture, E[r_k] = w_k, E[r_k (x - m_k)] = 0 and
E[r_k (x - m_k)_d^2] = w_k v_k hold exactly, overlap or not. Each estimate must lie within 4.5 of its own
standard errors; the seeds are fixed, and the many steps keep the sampler's own error well below.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from laws.exact import draw, exact_denoiser, exact_log_prob
from laws.mixture import MIXTURE

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler, sampling_loop
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance

COUNT = 2048
UNCLIPPED = {"clip_sample": False}


def assert_within_standard_errors(values, expected, what, bound=4.5):
    values = values.reshape(COUNT, -1)
    error = (values.mean(0) - expected).abs() / (values.std(0) / COUNT**0.5)
    assert (error < bound).all(), f"{what}: {error.tolist()} standard errors"


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        (GuidedDDPMScheduler(variance_type="fixed_small", **UNCLIPPED), 400),
        (
            GuidedDDPMScheduler(variance_type="fixed_large", beta_schedule="squaredcos_cap_v2", **UNCLIPPED),
            250,
        ),
        (GuidedDDIMScheduler(**UNCLIPPED), 200),
        (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), 40),
        (diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), 40),
        (diffusers.EDMDPMSolverMultistepScheduler(), 60),
        (diffusers.FlowMatchHeunDiscreteScheduler(), 60),
        (diffusers.KDPM2AncestralDiscreteScheduler(use_karras_sigmas=True), 100),
        (diffusers.SASolverScheduler(use_karras_sigmas=True), 100),
        (diffusers.CogVideoXDPMScheduler(snr_shift_scale=1.0, beta_end=0.02), 200),
        (diffusers.CogVideoXDDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02), 250),
        (diffusers.LTXEulerAncestralRFScheduler(), 200),
        (diffusers.MiniMaxH3Scheduler(shift=3.0), 200),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, shift=3.0), 200),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_fractions_means_and_deviations(scheduler, steps):
    generator = torch.Generator().manual_seed(2)
    x = sampling_loop(exact_denoiser(), scheduler, draw(COUNT, 2, seed=1), None, steps, generator=generator)
    one, zero = torch.ones((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    responsibilities = MIXTURE.log_posterior(x, one, zero).exp()
    for k, (mean, deviation) in enumerate(zip(MIXTURE.means, MIXTURE.deviations, strict=True)):
        r, offset = responsibilities[:, k, None], x - mean
        assert_within_standard_errors(r, MIXTURE.weights[k], f"fraction of class {k}")
        assert_within_standard_errors(r * offset, 0.0, f"mean of class {k}")
        spread = r * (offset.square() - deviation**2)
        assert_within_standard_errors(spread, 0.0, f"deviation of class {k}")


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.LCMScheduler(beta_end=0.02),
        diffusers.FlowMatchLCMScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        diffusers.SCMScheduler(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_consistency_function_draws_its_distribution_in_any_number_of_steps(scheduler, steps):
    """Of N(m, v) it is m + sqrt(v / (alpha^2 v + sigma^2)) (x_t - alpha m); guided by gamma, m is gamma m."""
    mean, deviation, gamma = 0.4, 0.5, 1.5

    def consistent(sample, level, condition=None):
        m = mean if condition else 0.0
        variance = level.alpha**2 * deviation**2 + level.sigma**2
        return m + deviation / variance.sqrt() * (sample - level.alpha * m)

    generator = torch.Generator().manual_seed(2)
    guided = ClassifierFreeGuidance(gamma)(consistent)
    x = sampling_loop(guided, scheduler, draw(COUNT, 2, seed=1), True, steps, generator=generator)
    assert_within_standard_errors(x, gamma * mean, "mean", 6.0)
    assert_within_standard_errors((x - gamma * mean).square(), deviation**2, "variance", 6.0)


def test_guided_samples_are_the_class():
    labels = torch.full((COUNT,), 1)
    guided = ClassifierGuidance(exact_log_prob(labels), 1.0)(exact_denoiser())
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    x = sampling_loop(guided, scheduler, draw(COUNT, 2, seed=1), num_inference_steps=40)
    assert_within_standard_errors(x, MIXTURE.means[1], "mean")
    assert_within_standard_errors((x - MIXTURE.means[1]).square(), MIXTURE.deviations[1] ** 2, "variance")
