import math
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
from laws.exact import draw, exact_denoiser

from guided_diffusers import (
    Denoised,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    ModelDenoiser,
    noise_level,
    sampling_loop,
)
from guided_diffusers.guidance import ClassifierFreeGuidance, GuidanceInterval
from guided_diffusers.guidance.recurrence import renoised
from guided_diffusers.sampling import Run

UNCLIPPED = {"clip_sample": False}


def sampled(scheduler, noise=None, **kwargs):
    noise = draw(4, 2) if noise is None else noise
    return sampling_loop(exact_denoiser(), scheduler, noise, **{"num_inference_steps": 6, **kwargs})


class TestTheLoop:
    def test_a_denoiser_gets_sample_level_and_condition_of_every_step(self):
        seen, condition = [], object()

        def denoise(sample, level, given):
            seen.append((sample, level))
            assert given is condition
            return 0.5 * sample

        scheduler, noise = diffusers.EulerDiscreteScheduler(), draw(4, 2)
        sampling_loop(denoise, scheduler, noise, condition, 6)
        assert [level.timestep.item() for _, level in seen] == scheduler.timesteps.tolist()
        assert [level.sigma.item() for _, level in seen] == scheduler.sigmas[:-1].double().tolist()
        assert torch.equal(seen[0][0], noise * float(scheduler.init_noise_sigma))

    def test_it_is_the_loop_one_would_write_by_hand(self):
        """Against diffusers' own use of its scheduler, with a network that predicts noise."""

        def epsilon(sample, timestep):
            return torch.tanh(sample * 2 + timestep / 1000)

        for cls in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, diffusers.PNDMScheduler):
            ours, theirs = cls(), cls()
            noise = draw(4, 2)
            theirs.set_timesteps(8)
            sample = noise * theirs.init_noise_sigma
            for timestep in theirs.timesteps:
                output = epsilon(theirs.scale_model_input(sample, timestep), timestep)
                sample = theirs.step(output, timestep, sample).prev_sample
            result = sampling_loop(ModelDenoiser(epsilon, "epsilon"), ours, noise, num_inference_steps=8)
            torch.testing.assert_close(result, sample, rtol=0, atol=1e-5)

    def test_the_denoiser_and_the_scheduler_may_speak_different_prediction_types(self):
        results = [
            sampled(GuidedDDIMScheduler(prediction_type=kind, **UNCLIPPED))
            for kind in ("epsilon", "sample", "v_prediction", "flow_prediction")
        ]
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("given", "returned"),
        [(torch.float16,) * 2, (torch.float32,) * 2, (torch.float64,) * 2],
        ids=["half", "single", "double"],
    )
    def test_dtypes(self, given, returned):
        returned = torch.float32 if given == torch.float16 else returned
        for scheduler in (GuidedDDIMScheduler(), diffusers.EulerDiscreteScheduler(), GuidedDDPMScheduler()):
            seen = []

            def denoise(sample, level, condition, seen=seen):
                seen.append(sample.dtype)
                return 0.5 * sample

            assert sampling_loop(denoise, scheduler, draw(4, 2).to(given), None, 3).dtype == returned
            assert seen == [returned] * 3

    def test_no_graph_is_kept(self):
        assert not sampled(GuidedDDIMScheduler(), draw(4, 2).requires_grad_()).requires_grad

    def test_a_scheduler_can_be_used_again(self):
        for scheduler in (diffusers.DPMSolverMultistepScheduler(), diffusers.HeunDiscreteScheduler()):
            assert torch.equal(sampled(scheduler), sampled(scheduler))

    def test_step_kwargs_and_generators_reach_the_scheduler(self):
        def with_seed(seed, eta):
            generator = torch.Generator().manual_seed(seed)
            return sampled(GuidedDDIMScheduler(**UNCLIPPED), generator=generator, step_kwargs={"eta": eta})

        assert torch.equal(with_seed(1, 1.0), with_seed(1, 1.0))
        assert not torch.equal(with_seed(1, 1.0), with_seed(2, 1.0))
        assert torch.equal(with_seed(1, 0.0), with_seed(2, 0.0))

    @pytest.mark.parametrize("scheduler", [GuidedDDIMScheduler, GuidedDDPMScheduler, diffusers.DDPMScheduler])
    def test_generators_one_a_sample_in_any_sequence(self, scheduler):
        def drawn(kind, step_of=None):
            generator = kind(torch.Generator().manual_seed(seed) for seed in range(4))
            made = scheduler(**UNCLIPPED)
            eta = {"eta": 1.0} if scheduler is GuidedDDIMScheduler else {}
            if step_of is None:
                return sampled(made, generator=generator, step_kwargs=eta)
            made.set_timesteps(6)
            return made.step(step_of, made.timesteps[0], step_of, generator=generator, **eta).prev_sample

        assert torch.equal(drawn(tuple), drawn(list))
        if scheduler is not diffusers.DDPMScheduler:
            assert torch.equal(drawn(tuple, draw(4, 2)), drawn(list, draw(4, 2)))

    @pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small"])
    def test_learned_variance_goes_to_schedulers_that_read_it(self, variance_type):
        def denoise(sample, level, condition):
            return Denoised(0.5 * sample, torch.ones_like(sample))  # the upper limit, beta

        config = {"timestep_spacing": "linspace", **UNCLIPPED}

        def run(denoise, kind):
            generator = torch.Generator().manual_seed(0)
            scheduler = GuidedDDPMScheduler(variance_type=kind, **config)
            return sampling_loop(denoise, scheduler, draw(4, 2), None, 6, generator=generator)

        expected = "fixed_large" if variance_type == "learned_range" else "fixed_small"
        plain = run(lambda *args: denoise(*args).x0, expected)
        torch.testing.assert_close(run(denoise, variance_type), plain, rtol=0, atol=1e-12)

    def test_other_schedulers_leave_learned_variance_out(self):
        def denoise(sample, level, condition):
            return Denoised(0.5 * sample, torch.ones_like(sample))

        for cls in (
            diffusers.DDIMScheduler,
            diffusers.EulerDiscreteScheduler,
            diffusers.DPMSolverMultistepScheduler,
        ):
            with_it = sampling_loop(denoise, cls(), draw(4, 2), None, 6)
            without = sampling_loop(lambda *args: denoise(*args).x0, cls(), draw(4, 2), None, 6)
            assert torch.equal(with_it, without)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
@pytest.mark.parametrize("cls", [diffusers.DDPMScheduler, diffusers.DDPMParallelScheduler])
def test_a_learned_variance_that_the_denoiser_does_not_give_is_refused_by_name(cls, kind):
    with pytest.raises(ValueError, match=f"{cls.__name__} has variance_type '{kind}', and the denoiser"):
        sampled(cls(variance_type=kind))


class TestCallback:
    def test_it_sees_every_step_and_may_change_the_sample(self):
        seen = []

        def callback(index, timestep, sample):
            seen.append((index, timestep.item()))
            return torch.zeros_like(sample) if index == 5 else sample

        scheduler = GuidedDDIMScheduler()
        assert sampled(scheduler, callback=callback).eq(0).all()
        assert seen == list(enumerate(scheduler.timesteps.tolist()))

    @pytest.mark.parametrize(
        "wrong", [None, [1.0], torch.zeros(1, 2), torch.zeros(4, 2, dtype=torch.int64)], ids=str
    )
    def test_what_it_gives_is_checked(self, wrong):
        def callback(index, timestep, sample):
            return wrong

        with pytest.raises(ValueError, match=r"what callback gave is .*shape of the sample, \(4, 2\)"):
            sampled(diffusers.DDIMScheduler(**UNCLIPPED), callback=callback)


class TestRun:
    """What may be set between two steps, and what a run keeps to itself."""

    LABELS = torch.tensor([0, 1, 2, 0])

    def run(self, denoiser, scheduler=None, **kwargs):
        return Run(
            denoiser,
            scheduler or GuidedDDIMScheduler(**UNCLIPPED),
            draw(4, 2),
            self.LABELS,
            num_inference_steps=8,
            **kwargs,
        )

    def test_guidance_and_condition_count_as_they_stand(self):
        """Changed in the middle, they are another guidance and condition from there on."""
        run, others = self.run(ClassifierFreeGuidance(3.0)(exact_denoiser())), self.LABELS.roll(1)
        assert len(run) == 8 and run.guidance.terms == (ClassifierFreeGuidance(3.0),)
        for index, step in enumerate(run):
            prediction = run.advance(step)
            gamma, labels = (3.0, self.LABELS) if index < 4 else (1.5, others)
            expected = ClassifierFreeGuidance(gamma)(exact_denoiser())(step.sample, step.level, labels)
            assert torch.equal(prediction.x0, expected)
            if index == 3:
                run.guidance, run.condition = ClassifierFreeGuidance(1.5), others

    def test_a_condition_set_between_a_step_and_its_advance_counts_too(self):
        run = self.run(exact_denoiser())
        step = next(iter(run))
        run.condition = None
        assert torch.equal(run.advance(step).x0, exact_denoiser()(step.sample, step.level))

    def test_guidance_of_the_run_is_added_to_that_of_the_denoiser(self):
        a, b = ClassifierFreeGuidance(3.0), ClassifierFreeGuidance(2.0, (0, 1))
        assert self.run(a(exact_denoiser()), guidance=b).guidance == a + b

    @pytest.mark.parametrize("make", [diffusers.DPMSolverMultistepScheduler, diffusers.PNDMScheduler])
    def test_two_runs_of_one_scheduler_do_not_meet(self, make):
        scheduler, alone = make(), self.run(exact_denoiser(), make())
        for step in alone:
            alone.advance(step)
        runs = [self.run(exact_denoiser(), scheduler) for _ in range(2)]
        for steps in zip(*runs, strict=True):
            for run, step in zip(runs, steps, strict=True):
                run.advance(step)
        assert all(torch.equal(run.sample, alone.sample) for run in runs)
        assert scheduler.timesteps.tolist() == alone.timesteps.tolist()

    def test_a_recurring_term_predicts_again_at_a_renoised_sample_where_it_is_active(self):
        @dataclass(frozen=True)
        class Twice(ClassifierFreeGuidance):
            recurrence: int = 2

        guided = Twice(3.0, (1.0, 3.0))(exact_denoiser())
        seen, generator = [], torch.Generator().manual_seed(5)
        run = self.run(guided, generator=torch.Generator().manual_seed(5))
        for step in run:
            x0, sample = guided(step.sample, step.level, self.LABELS), step.sample
            if step.level in GuidanceInterval(1.0, 3.0):
                noise = torch.randn(4, 2, dtype=torch.float64, generator=generator)
                sample = renoised(sample, x0, step.level, step.next_level, noise)
                x0 = guided(sample, step.level, self.LABELS)
            noise = (sample - step.level.alpha * x0) / step.level.sigma
            arrived = step.next_level.alpha * x0 + step.next_level.sigma * noise
            seen.append(torch.equal(run.advance(step).x0, x0))
            torch.testing.assert_close(run.sample, arrived, rtol=0, atol=1e-12)
        assert all(seen)


class TestTimesteps:
    def test_custom_timesteps(self):
        for make in (lambda: GuidedDDPMScheduler(**UNCLIPPED), diffusers.EulerDiscreteScheduler):
            for given in ([900, 500, 100], np.array([900, 500, 100]), torch.tensor([900, 500, 100])):
                scheduler = make()
                sampled(scheduler, timesteps=given)
                assert scheduler.timesteps.tolist() == [900, 500, 100]

    @pytest.mark.parametrize(
        ("scheduler", "given"),
        [
            (diffusers.EulerDiscreteScheduler(), [9.0, 3.0, 0.5, 0.0]),  # this one takes the end too
            (diffusers.FlowMatchEulerDiscreteScheduler(), [0.9, 0.5, 0.1]),
            (
                diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
                [0.9, 0.5, 0.1],
            ),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_custom_sigmas(self, scheduler, given):
        before = list(given)
        assert sampled(scheduler, draw(4, 2, dtype=torch.float32), sigmas=given).isfinite().all()
        assert len(scheduler.timesteps) == 3
        assert scheduler.sigmas.tolist() == pytest.approx([*before[:3], 0.0]) and given == before

    def test_a_first_timestep_listed_twice_is_run_twice(self):
        """Rounded timesteps may repeat; diffusers would begin at the second and leave its table."""
        config = {"use_flow_sigmas": True, "flow_shift": 10.0, "prediction_type": "flow_prediction"}
        scheduler = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=20, **config)
        levels = []

        def denoise(sample, level, condition):
            levels.append(level.sigma.item())
            return 0.5 * sample

        sampling_loop(denoise, scheduler, draw(4, 2), None, 10)
        assert scheduler.timesteps[0] == scheduler.timesteps[1]
        assert levels == scheduler.sigmas[:-1].tolist() and len(set(levels)) == 10

    @pytest.mark.parametrize("steps", [0, -1, 2.5, "10", None, True])
    def test_steps_that_are_not_positive_integers(self, steps):
        with pytest.raises(ValueError, match="num_inference_steps is .*at least 1"):
            sampled(GuidedDDIMScheduler(), num_inference_steps=steps)

    def test_numpy_integers_are_integers(self):
        assert torch.equal(
            sampled(GuidedDDIMScheduler(), num_inference_steps=np.int64(6)), sampled(GuidedDDIMScheduler())
        )

    @pytest.mark.parametrize(
        ("scheduler", "kwargs", "message"),
        [
            (
                GuidedDDIMScheduler(),
                {"timesteps": [1], "sigmas": [1.0]},
                "sigmas is .*timesteps are given",
            ),
            (diffusers.DDIMScheduler(), {"timesteps": [900, 100]}, "DDIMScheduler takes no custom timesteps"),
            (GuidedDDIMScheduler(), {"sigmas": [1.0]}, "takes no custom sigmas"),
            (diffusers.EDMEulerScheduler(), {"sigmas": [1.0]}, "takes no custom sigmas"),
            (diffusers.EulerDiscreteScheduler(), {"sigmas": []}, "sigmas is .*at least 1"),
            (GuidedDDPMScheduler(), {"timesteps": []}, "timesteps is .*at least 1"),
            (diffusers.RePaintScheduler(), {}, "RePaintScheduler, which is not supported"),
        ],
    )
    def test_errors(self, scheduler, kwargs, message):
        with pytest.raises(ValueError, match=message):
            sampled(scheduler, **kwargs)

    @pytest.mark.parametrize("cls", [GuidedDDIMScheduler, diffusers.DDIMScheduler, GuidedDDPMScheduler])
    def test_zero_terminal_snr(self, cls):
        config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **UNCLIPPED}
        with pytest.raises(ValueError, match="epsilon.*zero terminal SNR"):
            sampled(cls(prediction_type="epsilon", **config))
        scheduler = cls(prediction_type="v_prediction", **config)
        assert sampled(scheduler).isfinite().all()
        first = noise_level(scheduler, scheduler.timesteps[0])
        assert first.alpha == 0 and first.noise_to_signal == math.inf
        assert first in GuidanceInterval() and first not in GuidanceInterval(0.0, 1e9)
