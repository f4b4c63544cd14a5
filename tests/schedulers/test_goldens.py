"""The schedulers against values of an independent, published implementation (tests/goldens/README.md)."""

import math

import pytest
import torch
from gaussian_goldens import CONFIG, TENSORS, ddpm_for, output_for

from guided_diffusers.core.prediction import from_denoised, to_denoised
from guided_diffusers.schedulers import GuidedDDIMScheduler, GuidedDDPMScheduler

CASES = CONFIG["cases"]
REVERSE = [pytest.param(case, id=case["key"]) for case in CASES if not case["key"].startswith("ddim")]
DDIM = [pytest.param(case, id=case["key"]) for case in CASES if case["key"].startswith("ddim")]


def golden(case, name):
    return TENSORS[f"{case['key']}.{name}"]


def network(sample, timestep):
    return torch.tanh(torch.einsum("oc,bchw->bohw", TENSORS["W"], sample) + timestep / 1000)


def assert_within(bound, actual, expected):
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0)


def test_every_case_is_here():
    assert (len(REVERSE), len(DDIM)) == (48, 8)


@pytest.mark.parametrize("case", REVERSE)
def test_timesteps(case):
    scheduler = ddpm_for(case)
    assert scheduler.timesteps.flip(0)[case["index"]] == case["timestep"]


@pytest.mark.parametrize("case", REVERSE)
def test_reverse_step(case):
    mean, variance, x0 = ddpm_for(case).reverse(
        output_for(case, golden(case, "sample")), case["timestep"], golden(case, "sample")
    )
    assert_within(2e-6, mean, golden(case, "mean"))
    assert_within(2e-6, variance, golden(case, "variance"))
    assert_within(2e-5, x0, golden(case, "pred_xstart"))


@pytest.mark.parametrize("case", REVERSE)
def test_posterior(case):
    mean, variance = ddpm_for(case).posterior(golden(case, "x0"), golden(case, "sample"), case["timestep"])
    assert_within(2e-6, mean, golden(case, "q_mean"))
    assert_within(2e-6, variance, golden(case, "q_variance"))


@pytest.mark.parametrize("case", REVERSE)
def test_algorithm_1(case):
    """The step's draw less its noise, which an unguided draw from the same generator shows."""
    scheduler, sample = ddpm_for(case), golden(case, "sample")
    gradient = 2 * torch.sin(sample)
    arguments = (output_for(case, golden(case, "sample")), case["timestep"], sample)
    mean, variance, _ = scheduler.reverse(*arguments)
    draws = [
        scheduler.step(
            *arguments, generator=torch.Generator().manual_seed(0), guidance_gradient=g
        ).prev_sample
        for g in (gradient, None)
    ]
    assert_within(2e-6, draws[0] - draws[1] + mean, golden(case, "guided_mean"))
    assert_within(2e-6, mean + variance * gradient, golden(case, "guided_mean"))


@pytest.mark.parametrize("case", [p for p in REVERSE if p.values[0]["index"] > 0])
def test_variational_bound(case):
    """KL(posterior || reverse step) from the log-variances; at the clean end the bound is a likelihood."""
    scheduler, sample, timestep = ddpm_for(case), golden(case, "sample"), case["timestep"]
    output = output_for(case, golden(case, "sample"))
    true_mean, _ = scheduler.posterior(golden(case, "x0"), sample, timestep)
    mean, _, _ = scheduler.reverse(output, timestep, sample)
    true_log = GuidedDDPMScheduler.from_config(scheduler.config, variance_type="fixed_small")
    true_log.set_timesteps(int(case["spacing"]))
    a = true_log.log_variance(timestep)
    b = scheduler.log_variance(timestep, output[:, 3:] if output.shape[1] == 6 else None)
    a, b = a.expand_as(mean).double(), b.expand_as(mean).double()
    kl = 0.5 * (b - a - 1 + (a - b).exp() + (true_mean - mean).double().square() * (-b).exp())
    bits = (kl / math.log(2)).flatten(1).mean(1).float()
    torch.testing.assert_close(bits, golden(case, "vb_bits_per_dim"), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("case", DDIM)
def test_guided_ddim(case, clip):
    spacing = "leading" if case["spacing"] == "ddim50" else "linspace"
    scheduler = GuidedDDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(50)
    sample, timestep = golden(case, "sample"), case["timestep"]
    assert scheduler.previous_timestep(timestep) == case["prev_timestep"]
    level = scheduler.noise_level(timestep)
    x0 = to_denoised(network(sample, timestep)[:, :3], sample, level, "epsilon")
    x0 = x0.clamp(-1, 1) if clip else x0
    x0 = x0 + (level.sigma**2 / level.alpha).float() * 2 * torch.sin(sample)
    output = from_denoised(x0, sample, level, "epsilon")
    expected = golden(case, f"clip_{str(clip).lower()}.prev_sample")
    assert_within(5e-5 if clip else 2e-6, scheduler.step(output, timestep, sample).prev_sample, expected)
