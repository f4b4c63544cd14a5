"""Laws of the denoising loss: targets, weights, and distributions of the noise level."""

import math
from typing import get_args

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from guided_diffusers import noise_level
from guided_diffusers.core.prediction import from_denoised, to_denoised
from guided_diffusers.core.process import Flow, VariancePreserving
from guided_diffusers.losses import (
    LEVEL_DISTRIBUTIONS,
    LevelDistribution,
    add_noise,
    cosine_levels,
    denoising_loss,
    log_normal_levels,
    min_snr_weight,
    quartile,
    target,
    uniform_levels,
    uniform_weight,
)
from guided_diffusers.schedulers import process_of

TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
COSINE = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
PROCESSES = {"discrete": process_of(COSINE), "flow": Flow(num_train_timesteps=1000)}


def u_grid(count=20_000):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 64, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x0, noise, torch.rand(64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_target_denoises_to_x0(batch, process, prediction_type):
    x0, noise, u = batch
    level = process.at_fraction(u)
    sample = add_noise(x0, noise, level)
    wanted = target(x0, noise, level, prediction_type)
    torch.testing.assert_close(to_denoised(wanted, sample, level, prediction_type), x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(wanted, from_denoised(x0, sample, level, prediction_type), rtol=0, atol=1e-8)


def test_targets_are_those_of_the_papers(batch):
    x0, noise, u = batch
    level = PROCESSES["discrete"].at_fraction(u)
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in (level.alpha, level.sigma))
    expected = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha * noise - sigma * x0,
    }
    for prediction_type, value in expected.items():
        torch.testing.assert_close(target(x0, noise, level, prediction_type), value, rtol=0, atol=1e-10)
    flow = PROCESSES["flow"].at_fraction(u)
    torch.testing.assert_close(target(x0, noise, flow, "flow_prediction"), noise - x0, rtol=0, atol=1e-10)


def test_the_target_does_not_cancel_at_small_noise_in_float32():
    x0, noise = torch.randn(2, 1, 4096, generator=torch.Generator().manual_seed(0))
    level = Flow(num_train_timesteps=1000).at_fraction(torch.tensor([1e-5]))
    torch.testing.assert_close(target(x0, noise, level, "flow_prediction"), noise - x0, rtol=0, atol=1e-6)


def test_min_snr_weights_are_the_papers(batch):
    level = PROCESSES["discrete"].at_fraction(batch[2])
    snr = (level.alpha / level.sigma) ** 2
    clamped = torch.minimum(snr, torch.full_like(snr, 5.0))
    weight = min_snr_weight(5.0)
    torch.testing.assert_close(weight(level, "sample"), clamped)
    torch.testing.assert_close(weight(level, "epsilon"), clamped / snr)
    torch.testing.assert_close(weight(level, "v_prediction"), clamped / (snr + 1))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_errors_of_x0_alike_for_every_prediction_type(batch, prediction_type):
    x0, noise, u = batch
    level = PROCESSES["discrete"].at_fraction(u)
    sample, estimate = add_noise(x0, noise, level), x0 + 0.1 * noise.flip(0)
    output = from_denoised(estimate, sample, level, prediction_type)
    loss = denoising_loss(output, x0, noise, level, prediction_type, min_snr_weight(5.0))
    expected = (estimate - x0).square().flatten(1).mean(1) * ((level.alpha / level.sigma) ** 2).clamp(max=5.0)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)


def test_uniform_weight_is_the_mean_squared_error_of_each_sample(batch):
    x0, noise, u = (value.float() for value in batch)
    level = PROCESSES["discrete"].at_fraction(u)
    loss = denoising_loss(torch.zeros_like(x0), x0, noise, level, "epsilon", uniform_weight)
    assert loss.shape == (64,) and loss.dtype == torch.float32
    torch.testing.assert_close(loss, noise.square().flatten(1).mean(1))


def test_uniform_levels_are_uniform_over_timesteps():
    timesteps = uniform_levels(PROCESSES["discrete"])(u_grid()).timestep
    assert torch.equal(torch.bincount(timesteps), torch.full((1000,), 20))
    level = PROCESSES["discrete"].at_fraction(torch.tensor([0.0, 0.5, 0.9999999]))
    assert level.timestep.tolist() == [0, 500, 999]
    theirs = COSINE.alphas_cumprod[level.timestep].double()
    torch.testing.assert_close(level.alpha**2, theirs, rtol=1e-4, atol=0)


def test_log_normal_levels_have_their_moments():
    levels = log_normal_levels(PROCESSES["flow"], mean=-0.4, std=1.2)
    value = levels(u_grid()).noise_to_signal.log()
    assert value.mean() == pytest.approx(-0.4, abs=1e-3) and value.std() == pytest.approx(1.2, abs=1e-2)


def test_log_normal_levels_take_the_nearest_timestep():
    u = u_grid(500)
    exact = -0.4 + 1.2 * torch.special.ndtri(u)
    level = log_normal_levels(PROCESSES["discrete"], mean=-0.4, std=1.2)(u)
    abar = process_of(COSINE).abar
    table = ((1 - abar) / abar).log() / 2
    assert torch.equal(level.timestep, (table - exact[:, None]).abs().argmin(1))


def test_cosine_levels_have_the_cosine_schedules_law():
    u = u_grid()
    level = cosine_levels(PROCESSES["flow"])(u)
    torch.testing.assert_close(level.noise_to_signal[200:-200], torch.tan(math.pi / 2 * u)[200:-200])
    fractions = (
        cosine_levels(PROCESSES["discrete"])(u).timestep / 1000
    )  # the scheduler itself is a cosine one
    assert (fractions - u)[200:-200].abs().max() < 0.02


def test_flow_levels_are_what_the_scheduler_expects():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    process = process_of(scheduler)
    level = process.at_fraction(scheduler.sigmas[1:-1])
    torch.testing.assert_close(level.timestep, scheduler.timesteps[1:])
    torch.testing.assert_close(level.alpha + level.sigma, torch.ones_like(level.alpha))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_of_flow_matching_have_the_papers_quantiles(shift):
    """arXiv:2403.03206, equations 19 and 23; the shift is that of diffusers' scheduler in sampling."""
    u, flow = u_grid(1000), PROCESSES["flow"]
    plain = {"uniform": u, "logit_normal": torch.special.expit(0.3 + 0.8 * torch.special.ndtri(u))}
    for name, sigma in plain.items():
        given = {"shift": shift} if name == "uniform" else {"shift": shift, "mean": 0.3, "std": 0.8}
        level = LEVEL_DISTRIBUTIONS[name](flow, **given)(u)
        torch.testing.assert_close(level.sigma, shift * sigma / (1 + (shift - 1) * sigma))
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)  # made of t / 1000 at t = 1000 to 1
    of_theirs = LEVEL_DISTRIBUTIONS["uniform"](flow, shift=shift)(torch.linspace(1, 0.001, 1000).double())
    torch.testing.assert_close(of_theirs.sigma[1:], theirs.sigmas.double()[1:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_theirs.timestep[1:], theirs.timesteps[1:], rtol=1e-5, atol=1e-3)


def test_configurations_may_name_every_distribution():
    assert get_args(LevelDistribution) == tuple(LEVEL_DISTRIBUTIONS)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", LEVEL_DISTRIBUTIONS)
def test_levels_rise_with_u_and_quartiles_hold_a_quarter_each(process, name):
    levels = LEVEL_DISTRIBUTIONS[name](process)
    level = levels(u_grid())
    assert (level.noise_to_signal.diff() >= 0).all()
    bins = quartile(levels, level)
    assert (bins.diff() >= 0).all()  # 0 is the cleanest
    assert (torch.bincount(bins, minlength=4) / 20_000).tolist() == pytest.approx([0.25] * 4, abs=0.01)


def test_a_scheduler_without_training_levels_is_named():
    class Odd:
        pass

    with pytest.raises(ValueError, match="Odd, whose noise levels are not known"):
        process_of(Odd())
    assert isinstance(process_of(EulerDiscreteScheduler()), VariancePreserving)


def test_a_network_is_trained_on_the_levels_that_it_is_sampled_at():
    """With flow sigmas a solver of diffusers keeps the betas' table too, which says nothing then."""
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(10)
    sampled, process = noise_level(scheduler, scheduler.timesteps[4]), process_of(scheduler)
    trained = process.at_fraction(sampled.timestep.reshape(1) / 1000)
    assert float(trained.noise_to_signal) == pytest.approx(float(sampled.noise_to_signal), rel=3e-3)


def test_epsilon_prediction_at_zero_signal_is_refused():
    process = process_of(DDPMScheduler(rescale_betas_zero_snr=True))
    level = process.at_fraction(torch.tensor([0.9999]))
    with pytest.raises(ValueError, match="epsilon"):
        target(torch.ones(1, 2), torch.ones(1, 2), level, "epsilon")
    v = target(torch.ones(1, 2), torch.full((1, 2), 3.0), level, "v_prediction")
    assert torch.equal(v, -torch.ones(1, 2))  # alpha eps - sigma x_0 with alpha = 0, sigma = 1
