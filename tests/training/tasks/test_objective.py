"""The denoising loss in training against its formulas: levels, weights, learned variances."""

from statistics import NormalDist

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from tiny import tiny_unet
from tiny_denoisers import SEED, image_task, text_task

from guided_diffusers import Condition, GuidedDDPMScheduler, ModelDenoiser
from guided_diffusers.core.randomness import seed_for
from guided_diffusers.likelihood.variational import bound_term
from guided_diffusers.losses import add_noise
from guided_diffusers.schedulers import prediction_type_of, process_of
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.tasks.objective import DenoisingConfig, Objective, ObjectiveConfig
from guided_diffusers.training.tasks.uncertainty import LogVariance


def columns(level):
    return (value.float().view(-1, 1, 1, 1) for value in (level.alpha, level.sigma))


def variance_task(pipeline, weighting="uniform", **options):
    """Text to image whose network has the channels of a variance."""
    pipeline.register_modules(unet=tiny_unet(out_channels=2 * pipeline.unet.config.in_channels))
    scheduler = GuidedDDPMScheduler(num_train_timesteps=50, variance_type="learned_range")
    objective = ObjectiveConfig(**options)
    return text_task(pipeline, scheduler=scheduler, objective=objective, weighting=weighting)


def test_the_loss_with_text_trains_both_networks_and_is_that_of_the_formula(tiny_pipeline):
    task = text_task(tiny_pipeline, weighting="uniform")
    batch = task.batch([0, 1, 2, 3], [0, 1, 2, 3])
    ((name, loss, metrics),) = task.losses(batch)
    assert name == "denoiser"
    alpha, sigma = columns(batch["level"])
    x0, noise = batch["images"], batch["noise"]
    embeds = tiny_pipeline.text_encoder(batch["condition"]["text"])[0]
    output = tiny_pipeline.unet(alpha * x0 + sigma * noise, batch["level"].timestep, embeds).sample
    torch.testing.assert_close(loss, (output - (alpha * noise - sigma * x0)).square().mean())
    torch.testing.assert_close(metrics["loss_by_noise"].values.mean(), loss.detach())
    loss.backward()
    for module in (tiny_pipeline.unet, tiny_pipeline.text_encoder):
        assert sum(p.grad.abs().sum() for p in module.parameters() if p.grad is not None) > 0
    assert len(task.optimizers["denoiser"].param_groups[0]["params"]) == sum(
        len(list(module.parameters())) for module in (tiny_pipeline.unet, tiny_pipeline.text_encoder)
    )


def test_a_class_model_learns_at_log_normal_levels_with_min_snr_weights():
    mean, std, gamma, positions = -0.7, 0.9, 2.0, list(range(40, 104))
    task = image_task(
        out_channels=1,
        variance="fixed_small",
        labels=torch.arange(50) % 4,
        classes=4,
        loss="simple",
        levels="log_normal",
        levels_arguments={"mean": mean, "std": std},
        weighting="min_snr",
        min_snr_gamma=gamma,
    )
    batch = task.batch([0] * len(positions), positions)
    abar = DDPMScheduler(num_train_timesteps=50).alphas_cumprod.double()
    grid = ((1 - abar) / abar).log() / 2
    wanted = [
        mean + std * NormalDist().inv_cdf(u) for u in uniform_for(seed_for(SEED, 2), positions).tolist()
    ]
    timestep = (grid - torch.tensor(wanted)[:, None]).abs().argmin(1)
    assert torch.equal(batch["level"].timestep, timestep) and len(timestep.unique()) > 10
    ((_, loss, metrics),) = task.losses(batch)
    snr = abar[timestep] / (1 - abar[timestep])
    assert (snr > gamma).any() and (snr < gamma).any()
    alpha, sigma = (value.sqrt().float().view(-1, 1, 1, 1) for value in (abar[timestep], 1 - abar[timestep]))
    sample = alpha * batch["images"] + sigma * batch["noise"]
    output = task.unet(sample, timestep, **batch["condition"]).sample
    error = (output - batch["noise"]).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, (snr.clamp(max=gamma) / snr * error).mean().float())
    assert set(metrics["loss_by_noise"].bins.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("loss", "weighting"), [("hybrid", "min_snr"), ("bound", "uniform")])
def test_text_to_image_learns_a_variance(tiny_pipeline, loss, weighting):
    task = variance_task(tiny_pipeline, weighting, loss=loss, bound_weight=0.01)
    scheduler, batch = task.scheduler, task.batch(list(range(8)), list(range(8)))
    ((_, value, metrics),) = task.losses(batch)
    alpha, sigma = columns(batch["level"])
    x0, noise, timestep = batch["images"], batch["noise"], batch["level"].timestep
    embeds = tiny_pipeline.text_encoder(batch["condition"]["text"])[0]
    sample = alpha * x0 + sigma * noise
    output = tiny_pipeline.unet(sample, timestep, embeds).sample
    snr = scheduler.noise_level(timestep).alpha ** 2 / scheduler.noise_level(timestep).sigma ** 2
    error = (output[:, :2] - noise).square().flatten(1).mean(1)
    bound = 50 * bound_term(scheduler, output, x0, sample, timestep)
    expected = bound if loss == "bound" else snr.clamp(max=5) / snr * error + 0.01 * bound
    torch.testing.assert_close(value, expected.mean().float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(metrics["bound_by_noise"].values, bound.float().detach(), rtol=1e-4, atol=0)
    value.backward()
    prediction, variance = tiny_pipeline.unet.conv_out.weight.grad.split(2)
    assert variance.abs().max() > 0 and prediction.abs().max() > 0
    assert any(parameter.grad.abs().max() > 0 for parameter in tiny_pipeline.text_encoder.parameters())


def test_text_to_image_draws_with_the_variance_that_it_learned(tiny_pipeline):
    """The last channels set the spread of a step, between the chain's two variances."""
    task = variance_task(tiny_pipeline, loss="hybrid")
    pipeline, bias = task.pipeline(task.modules), tiny_pipeline.unet.conv_out.bias
    assert pipeline.scheduler.config.variance_type == "learned_range"
    pipeline.set_progress_bar_config(disable=True)
    torch.nn.init.zeros_(tiny_pipeline.unet.conv_out.weight)

    def drawn(fraction):
        with torch.no_grad():
            bias.copy_(torch.tensor([0.0, 0.0, fraction, fraction]))
        options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 2.0}
        return pipeline("abc", generator=torch.Generator().manual_seed(0), **options).images

    low, again, high = drawn(-1.0), drawn(-1.0), drawn(1.0)
    assert torch.equal(low, again) and not torch.equal(low, high)
    scheduler, noise = pipeline.scheduler, torch.Generator().manual_seed(0)
    scheduler.set_timesteps(2)
    sample = torch.randn(1, 2, 8, 8, generator=noise)
    for timestep in scheduler.timesteps:
        output = torch.cat([torch.zeros_like(sample), torch.ones_like(sample)], dim=1)
        mean, variance, _ = scheduler.reverse(output, timestep, sample)
        last = timestep == scheduler.timesteps[-1]
        spread = 0 if last else variance.sqrt() * torch.randn(1, 2, 8, 8, generator=noise)
        sample = mean + spread
    torch.testing.assert_close(high, sample.to(high.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["hybrid", "bound"])
def test_the_stop_gradient_is_the_hybrids(loss):
    task = image_task(loss=loss, bound_weight=1e6)
    batch = task.batch([0] * 8, list(range(8)))
    batch["images"] = batch["images"].clamp(-1, 1)
    (_, value, _) = next(task.losses(batch))
    value.backward()
    mean, variance = task.unet.conv_out.weight.grad  # of the two channels
    assert variance.abs().max() > 0
    assert (mean.abs().max() > 1e-3 * variance.abs().max()) == (loss == "bound")


def test_uniform_timesteps_reach_both_ends_at_the_schedulers_own_levels():
    objective = image_task().objective
    drawn = objective.draw(torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert drawn["level"].timestep.tolist() == [0, 25, 49] and drawn["bins"].tolist() == [0, 2, 3]
    level = objective.scheduler.noise_level(torch.tensor([0, 25, 49]))
    assert torch.equal(drawn["level"].sigma, level.sigma) and torch.equal(drawn["level"].alpha, level.alpha)
    assert "weight" not in drawn


def test_importance_draws_the_samplers_timesteps_with_its_weights():
    objective = image_task(timesteps="importance").objective
    objective.sampler.counts.fill_(10)
    objective.sampler.squares.copy_(torch.arange(50.0)[:, None] ** 2 + 1)
    uniform = torch.linspace(0, 1 - 2**-53, 200, dtype=torch.float64)
    timestep, weight = objective.sampler.draw(uniform)
    drawn = objective.draw(uniform)
    assert torch.equal(drawn["level"].timestep, timestep) and torch.equal(drawn["weight"], weight)
    assert torch.equal(drawn["level"].sigma, objective.scheduler.noise_level(timestep).sigma)
    assert len(timestep.unique()) > 30 and (weight != 1).all()


@pytest.mark.parametrize(
    ("scheduler", "options", "words"),
    [
        (FlowMatchEulerDiscreteScheduler(), {"timesteps": "importance"}, "FlowMatch.*a continuum"),
        (FlowMatchEulerDiscreteScheduler(), {"loss": "hybrid"}, "'hybrid' with variance_type None"),
        (
            DDPMScheduler(variance_type="learned_range"),
            {"loss": "hybrid"},
            "'hybrid' and scheduler DDPMScheduler.* GuidedDDPMScheduler",
        ),
        (DDPMScheduler(variance_type="learned_range"), {}, "'simple' with variance_type 'learned_range'"),
    ],
)
def test_a_scheduler_that_does_not_suit_the_loss_is_named(scheduler, options, words):
    with pytest.raises(ValueError, match=words):
        Objective(ObjectiveConfig(**options), DenoisingConfig(), scheduler)


@pytest.mark.parametrize("own", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_network_sees_in_training_what_it_sees_in_sampling(tiny_pipeline, own):
    scheduler = own() if own is EDMEulerScheduler else own(invert_sigmas=True)
    task = text_task(tiny_pipeline, scheduler=scheduler, levels="log_normal")
    batch, told = task.batch([0, 1], [0, 1]), []
    hook = tiny_pipeline.unet.register_forward_pre_hook(lambda module, given: told.append(given[:2]))
    try:
        ((_, loss, _),) = task.losses(batch)
        sample = add_noise(batch["images"], batch["noise"], batch["level"])
        condition = Condition(task.condition.inputs(batch["condition"]))
        ModelDenoiser(tiny_pipeline.unet, prediction_type_of(scheduler))(sample, batch["level"], condition)
    finally:
        hook.remove()
    for trained, sampled in zip(*told, strict=True):
        torch.testing.assert_close(trained, sampled)
    assert loss.isfinite()


def test_learned_uncertainty_becomes_the_error_of_each_level_whatever_its_weight():
    process = process_of(DDPMScheduler())
    level = process.at_fraction(torch.linspace(0.01, 0.99, 64))
    error = (0.02 + level.alpha.square()).float()
    u, weight = LogVariance(), 3.0
    optimizer = torch.optim.Adam(u.parameters(), lr=0.1)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 250)
        optimizer.zero_grad()
        u.weighted(weight * error, level).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight / u(level).exp(), 1 / error, rtol=0.1, atol=0)


def test_uncertainty_is_trained_with_the_denoiser_and_is_no_part_of_what_draws(tiny_pipeline):
    task, plain = (text_task(tiny_pipeline, weighting=name) for name in ("uncertainty", "uniform"))
    ((_, loss, metrics),) = task.losses(task.batch([0, 1, 2, 3], [0, 1, 2, 3]))
    ((_, error, _),) = plain.losses(plain.batch([0, 1, 2, 3], [0, 1, 2, 3]))
    torch.testing.assert_close(loss, error)  # u is 0 at the beginning
    torch.testing.assert_close(metrics["simple_by_noise"].values.mean(), error.detach())
    loss.backward()
    weight = task.modules["uncertainty"].weight
    assert weight.grad.abs().sum() > 0 and "uncertainty" not in task.averaged
    assert any(weight is p for p in task.optimizers["denoiser"].param_groups[0]["params"])
    task.pipeline(task.modules)
    with pytest.raises(ValueError, match="weighting is 'uncertainty' with objective.loss 'hybrid'"):
        variance_task(tiny_pipeline, "uncertainty", loss="hybrid")
