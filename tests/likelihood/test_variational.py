"""The bound's terms against an independent implementation's values, and the laws of the hybrid loss."""

import math

import pytest
import torch
from gaussian_goldens import CONFIG, TENSORS, ddpm_for, output_for

from guided_diffusers.core.distributions import discretised_log_likelihood, gaussian_kl
from guided_diffusers.likelihood.variational import (
    bound_term,
    hybrid_terms,
    prior_term,
)
from guided_diffusers.losses import add_noise
from guided_diffusers.schedulers import GuidedDDPMScheduler

CASES = [case for case in CONFIG["cases"] if not case["key"].startswith("ddim")]
CLEAN = [pytest.param(case, id=case["key"]) for case in CASES if case["index"] == 0]
BETWEEN = [pytest.param(case, id=case["key"]) for case in CASES if case["index"] > 0]


def bits_for(case):
    x0, sample = (TENSORS[f"{case['key']}.{name}"] for name in ("x0", "sample"))
    timestep = torch.full((len(x0),), case["timestep"])
    return bound_term(ddpm_for(case), output_for(case, sample), x0, sample, timestep)


def published_log_likelihood(x0, mean, log_variance):
    """The formula as its papers' code has it: differences of float32 cumulative masses."""

    def cumulative(value):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    scale = torch.exp(-0.5 * log_variance)
    above, below = (cumulative(scale * (x0 - mean + edge)) for edge in (1 / 255, -1 / 255))
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return mass.clamp_min(1e-12).log()


@pytest.mark.parametrize("case", BETWEEN)
def test_a_term_between_the_ends_equals_the_published_implementations(case):
    """The absolute bound is what float32 leaves of the reference's: terms of 1 that cancel to 1e-6."""
    expected = TENSORS[f"{case['key']}.vb_bits_per_dim"].double()
    torch.testing.assert_close(bits_for(case), expected, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("case", CLEAN)
def test_the_decoder_equals_the_published_implementations(case):
    """The reference subtracts masses in float32, which is zero or noise this far out: repeated so, to 1e-5.

    Where the mass is not lost to rounding, ours has the same value (`test_the_mass_of_a_bin...`), and its
    figure here differs from the reference's by no more than the reference's own rounding.
    """
    x0, sample = (TENSORS[f"{case['key']}.{name}"] for name in ("x0", "sample"))
    expected = TENSORS[f"{case['key']}.vb_bits_per_dim"]
    scheduler, output = ddpm_for(case), output_for(case, sample)
    mean, _, _ = scheduler.reverse(output, case["timestep"], sample)
    log_variance = scheduler.log_variance(case["timestep"], output[:, 3:] if output.shape[1] == 6 else None)
    nats = -published_log_likelihood(x0, mean, log_variance.float()).flatten(1).mean(1)
    torch.testing.assert_close(nats / math.log(2), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(bits_for(case), expected.double(), rtol=5e-3, atol=0)


def test_the_prior_equals_the_published_implementations():
    bits, expected = prior_term(GuidedDDPMScheduler(), TENSORS["prior.x0"]), TENSORS["prior.bits_per_dim"]
    torch.testing.assert_close(bits, expected, rtol=1e-5, atol=0)
    precise = prior_term(GuidedDDPMScheduler(), TENSORS["prior.x0"].double())
    torch.testing.assert_close(precise, expected.double(), rtol=0, atol=1e-9)


def test_the_mass_of_a_bin_is_the_published_formulas_where_that_has_digits():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (4000,), generator=generator).double() / 127.5 - 1
    log_variance = -12 * torch.rand(4000, generator=generator, dtype=torch.float64)
    mean = x0 + (0.5 * log_variance).exp() * torch.randn(4000, generator=generator, dtype=torch.float64)
    expected = published_log_likelihood(x0, mean, log_variance)
    assert (expected > -20).all() and (x0 == -1).any() and (x0 == 1).any()
    torch.testing.assert_close(
        discretised_log_likelihood(x0, mean, log_variance), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("log_variance", [-14.0, -8.0, -2.0, 2.0])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.4, 1.0])
def test_the_masses_of_all_bins_add_up_to_one(mean, log_variance):
    bins = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    parameters = (torch.full_like(bins, mean), torch.full_like(bins, log_variance))
    assert discretised_log_likelihood(bins, *parameters, floor=0).exp().sum().item() == pytest.approx(1)


def test_a_mass_too_small_to_subtract_has_a_logarithm_and_a_gradient():
    mean = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
    value = discretised_log_likelihood(torch.zeros(1).double(), mean, torch.tensor([-9.0]).double(), floor=0)
    value.backward()
    assert value.isfinite() and value < math.log(1e-12) and mean.grad.isfinite() and mean.grad < 0


def test_the_divergence_is_torchs():
    generator = torch.Generator().manual_seed(1)
    a, log_a, b, log_b = torch.randn(4, 100, generator=generator, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(a, (0.5 * log_a).exp()), torch.distributions.Normal(b, (0.5 * log_b).exp())
    )
    torch.testing.assert_close(gaussian_kl(a, log_a, b, log_b), expected)


def hybrid_case(stop_gradient):
    scheduler = GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.rand(2, 6, 1, 4, 4, generator=generator) * 2 - 1
    timestep = torch.tensor([0, 1, 3, 50, 400, 700])
    sample = add_noise(x0, noise, scheduler.noise_level(timestep))
    wrong = torch.randn(6, 2, 4, 4, generator=generator)
    output = (torch.cat([noise, torch.zeros_like(noise)], dim=1) + 0.01 * wrong).requires_grad_()
    simple, bound = hybrid_terms(scheduler, output, x0, noise, sample, timestep, stop_gradient)
    return output, noise, simple, bound


def test_the_gradient_of_the_prediction_is_that_of_the_simple_loss_alone():
    output, noise, simple, bound = hybrid_case(stop_gradient=True)
    (whole,) = torch.autograd.grad((simple + 0.001 * bound).sum(), output, retain_graph=True)
    (alone,) = torch.autograd.grad(simple.sum(), output, retain_graph=True)
    (of_bound,) = torch.autograd.grad(bound.sum(), output)
    assert torch.equal(whole[:, :1], alone[:, :1]) and not of_bound[:, :1].any()
    assert (of_bound[:, 1:].flatten(1).abs().sum(1) > 0).all() and not alone[:, 1:].any()
    torch.testing.assert_close(simple, (output[:, :1] - noise).square().flatten(1).mean(1))


def test_without_the_stop_the_bound_moves_the_prediction_too():
    output, _, _, bound = hybrid_case(stop_gradient=False)
    (of_bound,) = torch.autograd.grad(bound.sum(), output)
    assert (of_bound[:, :1].flatten(1).abs().sum(1) > 0).all()


def test_the_bound_of_the_hybrid_loss_is_the_term_times_the_steps():
    output, _, _, bound = hybrid_case(stop_gradient=True)
    scheduler = GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.rand(2, 6, 1, 4, 4, generator=generator) * 2 - 1
    timestep = torch.tensor([0, 1, 3, 50, 400, 700])
    sample = add_noise(x0, noise, scheduler.noise_level(timestep))
    expected = 1000 * bound_term(scheduler, output.detach(), x0, sample, timestep)
    torch.testing.assert_close(bound.detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_with_a_perfect_mean_the_best_variance_is_the_posteriors():
    scheduler = GuidedDDPMScheduler(variance_type="learned_range", beta_schedule="squaredcos_cap_v2")
    x0, noise = torch.rand(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    timestep = torch.tensor([5])
    sample = add_noise(x0, noise, scheduler.noise_level(timestep))
    outputs = [torch.cat([noise, torch.full_like(noise, share)], 1) for share in torch.linspace(-1, 1, 21)]
    bits = [bound_term(scheduler, output, x0, sample, timestep).item() for output in outputs]
    assert bits[0] == pytest.approx(0, abs=1e-9) and bits == sorted(bits) and bits[-1] > 0.01
