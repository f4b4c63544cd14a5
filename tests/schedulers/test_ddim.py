"""Laws of the implicit scheduler."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

from guided_diffusers.schedulers import GuidedDDIMScheduler, GuidedDDPMScheduler, next_noise_level
from guided_diffusers.schedulers.variance_preserving import TIMESTEP_SPACINGS


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scheduler_for(steps=50, **config):
    scheduler = GuidedDDIMScheduler(**{"clip_sample": False, **config})
    scheduler.set_timesteps(steps)
    return scheduler


def output_for(prediction_type, x0, noise, level):
    """What a perfect network of this type says, from its definition."""
    outputs = {"epsilon": noise, "sample": x0, "v_prediction": level.alpha * noise - level.sigma * x0}
    return outputs[prediction_type]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 30, 50])
def test_a_known_image_is_followed_through_every_level(steps, spacing, prediction_type):
    """With the true x_0, a step lands on alpha x_0 + sigma eps of the next level listed, the last on x_0."""
    scheduler = scheduler_for(steps, timestep_spacing=spacing, prediction_type=prediction_type)
    x0, noise = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for i, timestep in enumerate(scheduler.timesteps):
        level = scheduler.noise_level(timestep)
        output = output_for(prediction_type, x0, noise, level)
        step = scheduler.step(output, timestep, level.alpha * x0 + level.sigma * noise)
        expected = x0
        if i + 1 < steps:
            following = scheduler.noise_level(scheduler.timesteps[i + 1])
            expected = following.alpha * x0 + following.sigma * noise
        torch.testing.assert_close(step.prev_sample, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(step.pred_original_sample, x0, atol=1e-10, rtol=0)


def test_diffusers_leaves_the_path_with_linspace():
    """Why the class exists: the same step of DDIMScheduler misses the next listed level."""
    ours, theirs = (
        scheduler_for(30, timestep_spacing="linspace"),
        DDIMScheduler(timestep_spacing="linspace", clip_sample=False),
    )
    theirs.set_timesteps(30)
    assert ours.timesteps.equal(theirs.timesteps)
    x0, noise = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    timestep, following = ours.timesteps[10:12]
    level, next_level = ours.noise_level(timestep), ours.noise_level(following)
    sample, target = (n.alpha * x0 + n.sigma * noise for n in (level, next_level))
    assert (theirs.step(noise, timestep, sample).prev_sample - target).abs().max() > 1e-3
    assert (ours.step(noise, timestep, sample).prev_sample - target).abs().max() < 1e-10


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_eta_1_is_ancestral_sampling_with_the_small_variance(spacing):
    config = {"clip_sample": False, "timestep_spacing": spacing}
    implicit, ancestral = scheduler_for(25, **config), GuidedDDPMScheduler(**config)
    ancestral.set_timesteps(25)
    sample = other = randn(2, 3, 4, 4)
    for timestep in implicit.timesteps:
        generator = torch.Generator().manual_seed(int(timestep))
        sample = implicit.step(sample.tanh(), timestep, sample, eta=1, generator=generator).prev_sample
        generator.manual_seed(int(timestep))
        other = ancestral.step(other.tanh(), timestep, other, generator=generator).prev_sample
        torch.testing.assert_close(sample, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_each_eta_keeps_the_marginals(eta):
    """x_prev given x_0 has variance 1 - abar': the noise kept and the fresh noise add up to it."""
    scheduler, x0 = scheduler_for(), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    timestep, following = scheduler.timesteps[20:22]
    level = scheduler.noise_level(timestep)
    one = torch.ones_like(x0)
    kept = scheduler.step(one, timestep, level.sigma * one, eta=eta, variance_noise=x0).prev_sample
    fresh = scheduler.step(x0, timestep, x0, eta=eta, variance_noise=one).prev_sample
    total = kept**2 + fresh**2
    torch.testing.assert_close(
        total.squeeze(), scheduler.noise_level(following).sigma ** 2, atol=1e-12, rtol=0
    )


def test_arrives_at_the_first_level_of_training_if_alpha_is_not_set_to_one():
    x0, noise = randn(1, 3, 4, 4), randn(1, 3, 4, 4, seed=1)
    scheduler = scheduler_for(set_alpha_to_one=False)
    timestep = scheduler.timesteps[-1]
    level = scheduler.noise_level(timestep)
    arrived = scheduler.step(noise, timestep, level.alpha * x0 + level.sigma * noise).prev_sample
    first = GuidedDDIMScheduler().noise_level(0)
    torch.testing.assert_close(arrived, first.alpha * x0 + first.sigma * noise, atol=1e-10, rtol=0)
    end = next_noise_level(scheduler, 49)
    torch.testing.assert_close((end.alpha, end.sigma), (first.alpha, first.sigma), atol=0, rtol=1e-12)
    assert end.timestep is None and next_noise_level(scheduler, 48).timestep == timestep


@pytest.mark.parametrize("use_clipped", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_agrees_with_diffusers_where_that_is_right(prediction_type, use_clipped):
    config = {"prediction_type": prediction_type, "timestep_spacing": "leading", "steps_offset": 1}
    ours, theirs = GuidedDDIMScheduler(**config), DDIMScheduler(**config)
    ours.set_timesteps(50)
    theirs.set_timesteps(50)
    output, sample = (randn(2, 3, 4, 4, seed=i, dtype=torch.float32) for i in range(2))
    for timestep in ours.timesteps[[0, 20, 40, 48]]:
        a, b = (
            s.step(output, timestep, sample, 0.5, use_clipped, torch.Generator().manual_seed(0)).prev_sample
            for s in (ours, theirs)
        )
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


def test_timesteps_can_be_given():
    scheduler = GuidedDDIMScheduler()
    scheduler.set_timesteps(timesteps=[900, 500, 33])
    assert scheduler.timesteps.tolist() == [900, 500, 33]
    assert [int(scheduler.previous_timestep(t)) for t in (900, 500, 33)] == [500, 33, -1]


def test_at_zero_snr():
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    sample = randn(1, 3, 4, 4)
    for prediction_type in ("v_prediction", "sample"):
        scheduler = scheduler_for(prediction_type=prediction_type, **config)
        assert scheduler.step(0.1 * sample, 999, sample).prev_sample.isfinite().all()
    with pytest.raises(ValueError, match="v_prediction"):
        scheduler_for(**config).step(sample, 999, sample)


def test_channels_of_a_learned_variance_are_dropped():
    scheduler, sample, output = scheduler_for(), randn(1, 3, 4, 4), randn(1, 6, 4, 4, seed=1)
    timestep = scheduler.timesteps[5]
    actual, expected = (scheduler.step(o, timestep, sample).prev_sample for o in (output, output[:, :3]))
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def test_bad_arguments():
    scheduler, sample = scheduler_for(), randn(1, 3, 4, 4)
    timestep = scheduler.timesteps[5]
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta is"):
            scheduler.step(sample, timestep, sample, eta=eta)
    with pytest.raises(ValueError, match="variance_noise"):
        scheduler.step(
            sample,
            timestep,
            sample,
            eta=1,
            generator=torch.Generator(),
            variance_noise=torch.ones(1, 3, 4, 4),
        )
    with pytest.raises(ValueError, match="timestep is 3;"):
        scheduler.step(sample, 3, sample)
    with pytest.raises(ValueError, match="beta_schedule"):
        GuidedDDIMScheduler(beta_schedule="unknown")


def test_an_unconditional_pipeline():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    arguments = {"batch_size": 2, "num_inference_steps": 5, "eta": 0.5, "output_type": "np"}
    pipeline = DDIMPipeline(unet=unet, scheduler=GuidedDDIMScheduler())
    reference = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    a, b = (p(generator=torch.Generator().manual_seed(0), **arguments).images for p in (pipeline, reference))
    assert a.shape == (2, 8, 8, 3)
    assert abs(a - b).max() < 1e-3


@pytest.fixture(scope="module")
def stable_diffusion():
    """StableDiffusionPipeline's components, tiny and random, without its text encoder."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    return {"unet": unet, "vae": vae, "requires_safety_checker": False, **dict.fromkeys(names)}


def generate(components, scheduler, **arguments):
    pipeline = StableDiffusionPipeline(scheduler=scheduler, **components)
    embeds = {name: randn(2, 5, 8, seed=i).float() for i, name in enumerate(("prompt", "negative_prompt"))}
    arguments = {"num_inference_steps": 20, **arguments}
    return pipeline(
        **{f"{name}_embeds": value for name, value in embeds.items()},
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **arguments,
    ).images


CONFIG = {
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def test_stable_diffusion_pipeline(stable_diffusion):
    a, b = (generate(stable_diffusion, cls(**CONFIG)) for cls in (GuidedDDIMScheduler, DDIMScheduler))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_stable_diffusion_pipeline_takes_custom_timesteps(stable_diffusion):
    latents = generate(
        stable_diffusion, GuidedDDIMScheduler(**CONFIG), num_inference_steps=None, timesteps=[900, 400, 1]
    )
    assert latents.isfinite().all()


def test_ancestral_sampling_in_stable_diffusion_pipeline(stable_diffusion):
    config = {k: v for k, v in CONFIG.items() if k != "set_alpha_to_one"}
    assert generate(stable_diffusion, GuidedDDPMScheduler(**config)).isfinite().all()
