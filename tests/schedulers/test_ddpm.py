"""Laws of the ancestral scheduler, each from first principles and not from its own formulas."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.configuration_utils import FrozenDict

from guided_diffusers.core.betas import BETA_SCHEDULES
from guided_diffusers.schedulers import GuidedDDPMScheduler
from guided_diffusers.schedulers.variance_preserving import TIMESTEP_SPACINGS

FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scheduler_for(steps=50, **config):
    scheduler = GuidedDDPMScheduler(**{"timestep_spacing": "linspace", "clip_sample": False, **config})
    scheduler.set_timesteps(steps)
    return scheduler


def abar_of(scheduler, timestep):
    return float(scheduler.noise_level(timestep).alpha) ** 2


class TestPosterior:
    @pytest.mark.parametrize("place", [0, 1, 25, 48])
    def test_is_bayes_rule(self, place):
        """q(x_prev | x_t, x_0) is prior x likelihood: precisions add, means are weighted by them."""
        scheduler = scheduler_for()
        timestep, previous = scheduler.timesteps[place : place + 2]
        abar, abar_previous = abar_of(scheduler, timestep), abar_of(scheduler, previous)
        x0, sample = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
        forward = abar / abar_previous
        prior, likelihood = 1 / (1 - abar_previous), forward / (1 - forward)
        expected = (prior * abar_previous**0.5 * x0 + likelihood * sample / forward**0.5) / (
            prior + likelihood
        )
        mean, variance = scheduler.posterior(x0, sample, timestep)
        torch.testing.assert_close(mean, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            variance, torch.full_like(x0, 1 / (prior + likelihood)), atol=1e-14, rtol=0
        )

    @pytest.mark.parametrize("listed", [(999, 500, 100, 0), (700, 690, 1, 0), (50, 30, 10, 5)])
    def test_two_half_steps_are_one(self, listed):
        """A chain through a middle timestep, marginalised over it, is the chain without it."""
        start, middle, end, last = listed
        fine, coarse = scheduler_for(), scheduler_for()
        fine.set_timesteps(timesteps=[start, middle, end, last])
        coarse.set_timesteps(timesteps=[start, end, last])
        x0, sample = randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1)
        at_middle, variance_middle = fine.posterior(x0, sample, start)
        mean, variance = fine.posterior(x0, at_middle, middle)
        shifted, _ = fine.posterior(x0, at_middle + 1, middle)
        direct, direct_variance = coarse.posterior(x0, sample, start)
        torch.testing.assert_close(mean, direct, atol=1e-12, rtol=0)
        total = variance + (shifted - mean) ** 2 * variance_middle
        torch.testing.assert_close(total, direct_variance, atol=1e-12, rtol=0)

    def test_the_last_step_gives_x0(self):
        for timesteps in ([900, 400, 0], [900, 400, 33]):
            scheduler = scheduler_for()
            scheduler.set_timesteps(timesteps=timesteps)
            x0, sample = randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1)
            mean, variance = scheduler.posterior(x0, sample, timesteps[-1])
            torch.testing.assert_close(mean, x0, atol=1e-12, rtol=0)
            assert (variance == 0).all()

    def test_at_zero_snr_forgets_the_sample(self):
        scheduler = scheduler_for(rescale_betas_zero_snr=True, prediction_type="v_prediction")
        x0, sample = randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1)
        assert scheduler.noise_level(999).alpha == 0
        mean, variance = scheduler.posterior(x0, sample, 999)
        level = scheduler.noise_level(scheduler.timesteps[1])
        torch.testing.assert_close(mean, level.alpha * x0, atol=1e-12, rtol=0)
        torch.testing.assert_close(variance, (level.sigma**2).expand_as(x0), atol=1e-12, rtol=0)


class TestVariance:
    def test_lies_between_the_two_limits_of_the_listed_chain(self):
        small, large = scheduler_for(variance_type="fixed_small"), scheduler_for(variance_type="fixed_large")
        for timestep, previous in zip(small.timesteps, small.timesteps[1:], strict=False):
            abar, abar_previous = abar_of(small, timestep), abar_of(small, previous)
            beta = 1 - abar / abar_previous
            assert float(large.log_variance(timestep).exp()) == pytest.approx(beta, rel=1e-9)
            ratio = (1 - abar_previous) / (1 - abar)
            assert float(small.log_variance(timestep).exp()) == pytest.approx(beta * ratio, rel=1e-9)

    def test_logarithm_at_the_clean_end_is_the_one_before(self):
        for variance_type in FIXED:
            scheduler = scheduler_for(variance_type=variance_type)
            before = scheduler_for(variance_type="fixed_small").log_variance(scheduler.timesteps[-2])
            torch.testing.assert_close(scheduler.log_variance(0), before, atol=0, rtol=1e-12)

    @pytest.mark.parametrize("timestep", [999, 489, 20])
    def test_learned_range_interpolates_logarithms(self, timestep):
        learned = scheduler_for(variance_type="learned_range")
        low = scheduler_for(variance_type="fixed_small").log_variance(timestep)
        high = scheduler_for(variance_type="fixed_large").log_variance(timestep)
        for value, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2), (3.0, 2 * high - low)):
            channels = torch.full((1, 1, 2, 2), value, dtype=torch.float64)
            actual = learned.log_variance(timestep, channels)
            torch.testing.assert_close(actual, expected.expand_as(channels), atol=1e-12, rtol=0)

    def test_learned_is_the_logarithm(self):
        scheduler, sample = scheduler_for(variance_type="learned"), randn(2, 3, 4, 4)
        predicted = randn(2, 3, 4, 4, seed=1)
        output = torch.cat([randn(2, 3, 4, 4, seed=2), predicted], dim=1)
        _, variance, _ = scheduler.reverse(output, 489, sample)
        torch.testing.assert_close(variance, predicted.exp())
        assert scheduler.step(output, 489, sample).prev_sample.isfinite().all()

    def test_a_chain_of_one_step_has_finite_logarithms(self):
        for variance_type in FIXED:
            scheduler = scheduler_for(steps=1, variance_type=variance_type)
            assert scheduler.log_variance(scheduler.timesteps[0]).isfinite()


class TestStep:
    @pytest.mark.parametrize("variance_type", FIXED + LEARNED)
    def test_draws_from_the_reverse_step(self, variance_type):
        scheduler, sample = scheduler_for(variance_type=variance_type), randn(2, 3, 4, 4)
        output = randn(2, 6 if variance_type in LEARNED else 3, 4, 4, seed=1) * 0.1
        mean, variance, x0 = scheduler.reverse(output, 489, sample)
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        generator.manual_seed(5)
        step = scheduler.step(output, 489, sample, generator=generator)
        torch.testing.assert_close(step.prev_sample, mean + variance.sqrt() * noise, atol=1e-12, rtol=0)
        torch.testing.assert_close(step.pred_original_sample, x0, atol=0, rtol=0)

    @pytest.mark.parametrize("variance_type", FIXED + LEARNED)
    def test_guidance_gradient_shifts_the_mean_by_the_variance(self, variance_type):
        scheduler, sample = scheduler_for(variance_type=variance_type), randn(2, 3, 4, 4)
        output = randn(2, 6 if variance_type in LEARNED else 3, 4, 4, seed=1) * 0.1
        gradient = randn(2, 3, 4, 4, seed=2)
        for timestep in (999, 489, 0):
            _, variance, _ = scheduler.reverse(output, timestep, sample)
            guided, plain = (
                scheduler.step(
                    output, timestep, sample, torch.Generator().manual_seed(0), guidance_gradient=g
                ).prev_sample
                for g in (gradient, None)
            )
            torch.testing.assert_close(guided - plain, variance * gradient, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_agrees_with_diffusers_mid_chain(self, prediction_type):
        config = {"prediction_type": prediction_type, "timestep_spacing": "leading"}
        ours, theirs = GuidedDDPMScheduler(**config), DDPMScheduler(**config)
        ours.set_timesteps(50)
        theirs.set_timesteps(50)
        assert ours.timesteps.equal(theirs.timesteps)
        output, sample = (
            randn(2, 3, 4, 4, dtype=torch.float32),
            randn(2, 3, 4, 4, seed=1, dtype=torch.float32),
        )
        for timestep in ours.timesteps[[0, 20, 40, 49]]:
            a, b = (
                s.step(output, timestep, sample, generator=torch.Generator().manual_seed(0))
                for s in (ours, theirs)
            )
            torch.testing.assert_close(a.prev_sample, b.prev_sample, atol=2e-4, rtol=0)
            torch.testing.assert_close(a.pred_original_sample, b.pred_original_sample, atol=1e-4, rtol=0)

    def test_a_timestep_a_sample(self):
        scheduler, timesteps = scheduler_for(), torch.tensor([999, 489, 0])
        sample, output = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
        together = scheduler.reverse(output, timesteps, sample)
        for i, timestep in enumerate(timesteps):
            alone = scheduler.reverse(output[i : i + 1], int(timestep), sample[i : i + 1])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i : i + 1], b, atol=1e-12, rtol=0)
        drawn = scheduler.step(output, timesteps, sample).prev_sample
        torch.testing.assert_close(drawn[2], together[0][2])  # the last step draws no noise

    def test_a_generator_a_sample_does_not_depend_on_the_batch(self):
        scheduler, sample, output = scheduler_for(), randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        together = scheduler.step(output, 489, sample, generator=generators).prev_sample
        for i in range(3):
            alone = scheduler.step(
                output[i : i + 1], 489, sample[i : i + 1], generator=[torch.Generator().manual_seed(i)]
            )
            torch.testing.assert_close(together[i : i + 1], alone.prev_sample, atol=0, rtol=0)

    def test_half_precision_is_computed_in_float32(self):
        scheduler = scheduler_for()
        output, sample = randn(1, 3, 4, 4).half(), randn(1, 3, 4, 4, seed=1).half()
        step = scheduler.step(output, 0, sample)
        assert step.prev_sample.dtype == step.pred_original_sample.dtype == torch.float16
        exact = scheduler.reverse(output.double(), 0, sample.double())[0]
        torch.testing.assert_close(step.prev_sample, exact.half(), atol=0, rtol=0)
        assert scheduler.reverse(output, 489, sample)[2].dtype == torch.float32

    def test_clips_and_thresholds_as_configured_at_each_step(self):
        scheduler, sample = scheduler_for(), 3 * randn(1, 3, 4, 4)
        output = torch.zeros_like(sample)
        for changes, limit in (({"clip_sample": True}, 1), ({"clip_sample_range": 0.5}, 0.5)):
            scheduler._internal_dict = FrozenDict({**scheduler.config, **changes})  # as pipelines do
            assert scheduler.step(output, 999, sample).pred_original_sample.abs().max() == limit
        scheduler._internal_dict = FrozenDict({**scheduler.config, "thresholding": True})
        assert scheduler.step(output, 999, sample).pred_original_sample.abs().max() <= 1


class TestTables:
    @pytest.mark.parametrize("zero_snr", [False, True])
    @pytest.mark.parametrize("schedule", BETA_SCHEDULES)
    def test_agree_with_diffusers(self, schedule, zero_snr):
        config = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr}
        ours, theirs = GuidedDDPMScheduler(**config), DDPMScheduler(**config)
        for name in ("betas", "alphas", "alphas_cumprod"):
            actual, expected = getattr(ours, name), getattr(theirs, name)
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected, atol=3e-5, rtol=0)

    def test_betas_above_1_are_refused_from_there_on_only(self):
        """As diffusers' scheduler takes them; timestep 473 of 1000 is the last below 1."""
        config = {"beta_start": 0.1, "beta_end": 2.0, "clip_sample": False}
        ours, theirs = GuidedDDPMScheduler(**config), DDPMScheduler(**config)
        sample, noise = randn(2, 1, 4, 4, dtype=torch.float32), randn(2, 1, 4, 4, seed=1, dtype=torch.float32)
        for timestep in (0, 3):
            one, other = (
                each.step(noise, timestep, sample, generator=torch.Generator().manual_seed(0)).prev_sample
                for each in (ours, theirs)
            )
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert ours.noise_level(473).sigma == 1
        for use in (
            lambda: ours.noise_level(474),
            lambda: ours.step(noise, 999, sample),
            lambda: ours.add_noise(sample, noise, torch.tensor([0, 999])),
        ):
            with pytest.raises(ValueError, match="no noise level: the scheduler's betas reach above 1"):
                use()

    def test_trained_betas(self):
        scheduler = GuidedDDPMScheduler(trained_betas=[0.1, 0.3, 0.5])
        assert scheduler.timesteps.tolist() == [2, 1, 0]
        assert abar_of(scheduler, 2) == pytest.approx(0.9 * 0.7 * 0.5, rel=1e-12)

    @pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
    @pytest.mark.parametrize("steps", [1, 2, 7, 25, 50, 300, 1000])
    def test_spacings_are_those_of_diffusers(self, spacing, steps):
        ours, theirs = (cls(timestep_spacing=spacing) for cls in (GuidedDDPMScheduler, DDPMScheduler))
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        assert ours.num_inference_steps == steps

    def test_steps_offset(self):
        scheduler = scheduler_for(timestep_spacing="leading", steps_offset=1)
        assert scheduler.timesteps[[0, -1]].tolist() == [981, 1]

    def test_noise_and_velocity(self):
        """x_t and v are a rotation of (x_0, eps): the pair determines x_0 and eps again."""
        scheduler, timesteps = scheduler_for(), torch.tensor([1, 500, 998])  # need not be listed
        x0, noise = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
        sample = scheduler.add_noise(x0, noise, timesteps)
        velocity = scheduler.get_velocity(x0, noise, timesteps)
        level = GuidedDDPMScheduler().noise_level(timesteps)
        alpha, sigma = level.alpha.reshape(3, 1, 1, 1), level.sigma.reshape(3, 1, 1, 1)
        torch.testing.assert_close(alpha * sample - sigma * velocity, x0, atol=1e-12, rtol=0)
        torch.testing.assert_close(sigma * sample + alpha * velocity, noise, atol=1e-12, rtol=0)

    def test_before_set_timesteps_all_are_listed(self):
        fresh, listed = GuidedDDPMScheduler(), scheduler_for(1000, clip_sample=True)
        sample, output = randn(1, 3, 4, 4), randn(1, 3, 4, 4, seed=1)
        for timestep in (999, 1, 0):
            assert fresh.previous_timestep(timestep) == timestep - 1
            for a, b in zip(
                fresh.reverse(output, timestep, sample), listed.reverse(output, timestep, sample), strict=True
            ):
                torch.testing.assert_close(a, b, atol=0, rtol=0)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ({"num_inference_steps": 0}, "num_inference_steps"),
            ({"num_inference_steps": -1}, "num_inference_steps"),
            ({"num_inference_steps": 1001}, "num_inference_steps"),
            ({"num_inference_steps": 2.5}, "num_inference_steps"),
            ({}, "num_inference_steps"),
            ({"num_inference_steps": 3, "timesteps": [2, 1, 0]}, "timesteps"),
            ({"timesteps": []}, "timesteps"),
            ({"timesteps": [1, 2]}, "timesteps"),
            ({"timesteps": [5, 5]}, "timesteps"),
            ({"timesteps": [1000, 0]}, "timesteps"),
            ({"timesteps": [5, -1]}, "timesteps"),
        ],
    )
    def test_bad_timesteps(self, arguments, word):
        with pytest.raises(ValueError, match=word):
            GuidedDDPMScheduler().set_timesteps(**arguments)

    def test_bad_configuration(self):
        sample = randn(1, 3, 4, 4)
        with pytest.raises(ValueError, match="beta_schedule is 'square'.*linear"):
            GuidedDDPMScheduler(beta_schedule="square")
        with pytest.raises(ValueError, match="trained_betas"):
            GuidedDDPMScheduler(trained_betas=[])
        with pytest.raises(ValueError, match="timestep_spacing is 'even'"):
            GuidedDDPMScheduler(timestep_spacing="even").set_timesteps(10)
        with pytest.raises(ValueError, match="steps_offset"):
            GuidedDDPMScheduler(steps_offset=1).set_timesteps(1000)
        with pytest.raises(ValueError, match="variance_type is 'tiny'.*learned_range"):
            GuidedDDPMScheduler(variance_type="tiny").step(sample, 5, sample)
        with pytest.raises(ValueError, match="prediction_type is 'score'"):
            GuidedDDPMScheduler(prediction_type="score").step(sample, 5, sample)

    def test_bad_arguments_of_a_step(self):
        scheduler, sample = scheduler_for(), randn(1, 3, 4, 4)
        for call in (scheduler.noise_level, scheduler.log_variance, scheduler.previous_timestep):
            with pytest.raises(ValueError, match="timestep is 500"):
                call(500)
        with pytest.raises(ValueError, match="timestep is 500"):
            scheduler.step(sample, 500, sample)
        with pytest.raises(ValueError, match="model_output is .*3, 4, 4., or 6 channels"):
            scheduler.step(randn(1, 4, 4, 4), 999, sample)
        with pytest.raises(ValueError, match="needs 6 channels"):
            scheduler_for(variance_type="learned").step(sample, 999, sample)

    def test_epsilon_at_zero_snr(self):
        scheduler, sample = scheduler_for(rescale_betas_zero_snr=True), randn(1, 3, 4, 4)
        with pytest.raises(ValueError, match="v_prediction"):
            scheduler.step(sample, 999, sample)
        assert scheduler.step(sample, 489, sample).prev_sample.isfinite().all()
        for prediction_type in ("v_prediction", "sample"):
            other = scheduler_for(rescale_betas_zero_snr=True, prediction_type=prediction_type)
            assert other.step(sample, 999, sample).prev_sample.isfinite().all()


class TestPlace:
    """In diffusers: configurations, folders, pipelines."""

    def test_configurations_go_both_ways(self, tmp_path):
        theirs = DDPMScheduler(variance_type="fixed_large", beta_schedule="squaredcos_cap_v2")
        theirs.save_pretrained(tmp_path / "theirs")
        ours = GuidedDDPMScheduler.from_pretrained(tmp_path / "theirs")
        assert ours.config.variance_type == "fixed_large"
        ours.save_pretrained(tmp_path / "ours")
        again = GuidedDDPMScheduler.from_pretrained(tmp_path / "ours")
        assert again.process.abar.equal(ours.process.abar)
        assert again.config.beta_schedule == "squaredcos_cap_v2"
        solver = DPMSolverMultistepScheduler.from_config(again.config)
        assert solver.config.beta_schedule == "squaredcos_cap_v2"

    def test_an_unconditional_pipeline(self):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
        images = [
            DDPMPipeline(unet=unet, scheduler=scheduler)(
                batch_size=2,
                num_inference_steps=4,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
            for scheduler in (GuidedDDPMScheduler(), DDPMScheduler())
        ]
        assert images[0].shape == (2, 8, 8, 3)
        assert abs(images[0] - images[1]).max() < 1e-3
