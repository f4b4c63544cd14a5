"""Terms that ask at another sample or level or correct the sum: the steps of their papers, written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from laws.exact import draw, level_at
from scipy.fft import dctn, idctn
from torch import Tensor

from guided_diffusers import Denoised, NoiseLevel, from_denoised, sampling_loop
from guided_diffusers.core.denoiser import DynamicThreshold
from guided_diffusers.core.exact import GaussianMixture
from guided_diffusers.core.randomness import randn_for
from guided_diffusers.guidance import (
    ClassifierFreeGuidance,
    DynamicThresholding,
    Guidance,
    HistoryGuidance,
    NormCap,
    RectifiedCFGPlusPlus,
    SlidingWindowGuidance,
    Step,
    TimestepGuidance,
)

MIXTURE = GaussianMixture.of([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], [0.25, 0.4, 0.15])
LABELS = torch.tensor([0, 1, 2])
PLAIN = ClassifierFreeGuidance(6.0)
NOISE = draw(3, 2 * 6 * 8, seed=4).unflatten(1, (2, 6, 8))


def images(sample: Tensor, level: NoiseLevel, condition: Tensor | None = None) -> Tensor:
    """A denoiser of images of any size: each place sees all others, the label, the noise and the timestep."""
    offset = 0.0 if condition is None else 0.2 * (condition[:, None, None, None] + 1.0)
    timestep = torch.as_tensor(0.0 if level.timestep is None else level.timestep, dtype=torch.float64)
    return torch.tanh(level.alpha * sample + sample.mean((2, 3), keepdim=True) + offset + timestep / 500)


def drawn(guidance: Guidance, rows: Any = slice(None), **options: Any) -> Tensor:
    """A run of flow matching, of some of the batch."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoiser = guidance(images)
    return sampling_loop(denoiser, scheduler, NOISE[rows], LABELS[rows], num_inference_steps=4, **options)


WINDOWS = SlidingWindowGuidance(1.5, multiple=1)
TERMS = {
    "rectified": RectifiedCFGPlusPlus(4.5, exponent=0.5),
    "timestep": TimestepGuidance(3.0),
    "windows": WINDOWS,
    "history": HistoryGuidance(),
    "norm": PLAIN + NormCap(),
    "threshold": PLAIN + DynamicThresholding(0.9),
}


@pytest.mark.parametrize("guidance", TERMS.values(), ids=TERMS)
class TestEvery:
    def test_changes_each_sample_alike_alone_and_in_any_batch(self, guidance):
        whole = drawn(guidance)
        assert torch.equal(drawn(guidance), whole)
        unguided = drawn(ClassifierFreeGuidance(1.0) if len(guidance.terms) == 1 else PLAIN)
        for row in range(3):
            rows = slice(row, row + 1)
            torch.testing.assert_close(drawn(guidance, rows), whole[rows], rtol=0, atol=1e-12)
            assert (whole[rows] - unguided[rows]).abs().max() > 1e-4

    def test_goes_to_a_configuration_and_back(self, guidance):
        assert Guidance.from_config(guidance.to_config()) == guidance

    def test_does_nothing_outside_its_interval(self, guidance):
        *first, term = guidance.terms
        unguided = drawn(first[0] if first else ClassifierFreeGuidance(1.0))
        outside = replace(term, interval=(1e4, 1e5))
        assert torch.equal(drawn(first[0] + outside if first else outside), unguided)


@pytest.mark.parametrize("name", ["rectified", "timestep", "windows", "history"])
def test_a_scale_may_be_one_a_sample(name):
    scales = (0.5, 2.0, 3.0)
    whole = drawn(replace(TERMS[name], scale=scales))
    for row, scale in enumerate(scales):
        alone = drawn(replace(TERMS[name], scale=scale))
        torch.testing.assert_close(whole[row], alone[row], rtol=0, atol=1e-12)


def test_rectified_cfg_plus_plus_is_its_algorithm():
    """Algorithm 1, in velocities."""

    def velocity(sample: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        level = NoiseLevel(alpha=1 - time, sigma=time)
        return (sample - MIXTURE.denoise(sample, level, labels)) / time

    scheduler, noise = FlowMatchEulerDiscreteScheduler(shift=2.0), draw(3, 2, seed=4)
    scheduler.set_timesteps(6)
    sample, times = noise.clone(), scheduler.sigmas.double()
    for time, after in zip(times, times[1:], strict=False):
        conditional, middle = velocity(sample, time, LABELS), (time + after) / 2
        predicted = sample + (after - time) * conditional / 2
        guided = velocity(predicted, middle, LABELS) - velocity(predicted, middle, None)
        sample = sample + (after - time) * (conditional + 2.5 * (1 - time) ** 0.7 * guided)
    denoiser = RectifiedCFGPlusPlus(2.5, exponent=0.7)(MIXTURE.denoise)
    ours = sampling_loop(denoiser, scheduler, noise, LABELS, num_inference_steps=6)
    torch.testing.assert_close(ours, sample, rtol=0, atol=1e-6)


def test_rectified_cfg_plus_plus_tells_the_middle_timestep_in_two_forwards():
    class Counting:
        asked: list[tuple[int, float]] = []

        def __call__(self, sample, level, condition=None):
            return self.batch(sample, level, [condition])[0]

        def batch(self, sample, level, conditions):
            self.asked.append((len(conditions), float(level.timestep)))
            return [Denoised(images(sample, level, each)) for each in conditions]

    scheduler = FlowMatchEulerDiscreteScheduler()
    sampling_loop(RectifiedCFGPlusPlus(2.0)(Counting()), scheduler, NOISE, LABELS, num_inference_steps=2)
    first, second = scheduler.timesteps.tolist()
    wanted = [(1, first), (2, (first + second) / 2), (1, second), (2, second / 2)]
    np.testing.assert_allclose(Counting.asked, wanted, rtol=1e-6)


@pytest.mark.parametrize("scheduler", [None, DDIMScheduler()])
def test_rectified_cfg_plus_plus_is_of_runs_of_flow_matching(scheduler):
    guided = RectifiedCFGPlusPlus(2.0)(images)
    with pytest.raises(ValueError, match="flow matching|next noise level"):
        if scheduler is None:
            guided(NOISE, level_at(0.7), LABELS)
        else:
            sampling_loop(guided, scheduler, NOISE, LABELS, num_inference_steps=2)


def test_timestep_guidance_tells_another_timestep_at_each_step():
    told = []

    def denoiser(sample, level, condition=None):
        told.append(float(level.timestep))
        return sample * 0 + told[-1]

    memory: dict[Any, Any] = {}
    for step in range(3):
        level = NoiseLevel(alpha=0.6, sigma=0.8, timestep=400.0 - 100 * step)
        x0 = TimestepGuidance(3.0, noise=0.05, seed=7)(denoiser).run(
            Step(sample=NOISE, level=level, memory=memory)
        )
        n = randn_for(7, [step], (), dtype=torch.float64).item()
        own = 400.0 - 100 * step
        assert told[-2:] == pytest.approx([own, own * (1 + 0.05 * n)])
        torch.testing.assert_close(x0.x0, torch.full_like(NOISE, told[-1] + 3 * (own - told[-1])))


def test_timestep_guidance_tells_whole_timesteps_where_they_are():
    level = NoiseLevel(alpha=0.6, sigma=0.8, timestep=torch.tensor([400, 0]))
    told = TimestepGuidance(3.0, seed=2).perturbed(level, -0.713).timestep
    assert told.tolist() == [371, 0] and not told.is_floating_point()


def test_timestep_guidance_is_the_derivative_along_the_noise():
    """Its score's change to first order (section 5): (1 - w) dD/dt Delta t; here t is log sigma."""
    sample, level, noise = draw(3, 2), level_at(0.7), 1e-4
    log_sigma = level.sigma.log().requires_grad_()
    slope = torch.autograd.functional.jvp(
        lambda log: MIXTURE.denoise(sample, NoiseLevel(alpha=level.alpha, sigma=log.exp()), LABELS),
        log_sigma,
        torch.ones_like(log_sigma),
    )[1]
    guided = TimestepGuidance(3.0, noise=noise, seed=1)(MIXTURE.denoise)(sample, level, LABELS)
    n = randn_for(1, [0], (), dtype=torch.float64)
    shift = guided - MIXTURE.denoise(sample, level, LABELS)
    torch.testing.assert_close(shift / noise, (1 - 3.0) * slope * n, rtol=1e-3, atol=1e-5)


def test_windows_of_a_denoiser_without_far_sight_change_nothing():
    def local(sample, level, condition=None):
        return torch.tanh(sample)

    level = level_at(0.7)
    assert (WINDOWS(local)(NOISE, level) - local(NOISE, level)).abs().max() < 1e-12


@pytest.mark.parametrize("masked", [True, False])
def test_windows_are_put_together_as_they_lie(masked):
    level, own = level_at(0.7), images(NOISE, level_at(0.7), LABELS)
    total, count = torch.zeros_like(own), torch.zeros(6, 8)
    for rows in (range(0, 3), range(3, 6)):  # 0.625 of 6 is 3
        for columns in (range(0, 5), range(3, 8)):  # of 8 it is 5
            place = np.ix_(range(3), range(2), rows, columns)
            total[place] += images(NOISE[place], level, LABELS)
            count[np.ix_(rows, columns)] += 1
    expected = own + 1.5 * ((count > 1) if masked else 1.0) * (own - total / count)
    ours = replace(WINDOWS, masked=masked)(images)(NOISE, level, LABELS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("term", "sample", "message"),
    [
        (SlidingWindowGuidance(1.0), NOISE, "8 x 8, do not overlap in an image of 6 x 8"),
        (SlidingWindowGuidance(1.0, size=0.5, multiple=1), NOISE, "3 x 4, do not overlap in"),
        (SlidingWindowGuidance(1.0, size=0.4, multiple=1), NOISE, "2 x 3, do not overlap in"),
        (WINDOWS, NOISE[..., 0], "is of images"),
        (HistoryGuidance(), NOISE[..., 0], "cutoff filters images"),
        (NormCap(), NOISE, "give prediction_type="),
    ],
)
def test_samples_that_do_not_suit_are_told(term, sample, message):
    def half(sample, level, condition=None):
        return sample / 2

    step = Step(sample=sample, level=level_at(0.7))
    with pytest.raises(ValueError, match=message):
        [term(half).run(step) for _ in range(2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RectifiedCFGPlusPlus(1.0, exponent=-1), "exponent is -1; allowed"),
        (lambda: TimestepGuidance(2.0, noise=0), "noise is 0; allowed"),
        (lambda: SlidingWindowGuidance(1.0, size=1.0), "size is 1.0; allowed"),
        (lambda: SlidingWindowGuidance(1.0, windows=1), "windows is 1; allowed"),
        (lambda: HistoryGuidance(rate=0), "rate is 0; allowed"),
        (lambda: HistoryGuidance(t_min=0.5, t_max=0.4), "t_max is 0.4; allowed: above t_min"),
        (lambda: NormCap(0.0), "maximum is 0.0; allowed"),
        (lambda: NormCap(prediction_type="noise"), "prediction_type is 'noise'; allowed"),
        (lambda: DynamicThresholding(0.0), "quantile is 0.0; allowed"),
        (lambda: DynamicThresholding(maximum=0.5), "maximum is 0.5; allowed"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("maximum", [0.8, 1.0, 1.2])
def test_a_capped_output_is_as_long_as_the_cap_or_as_it_was(maximum):
    """Z-Image's `cfg_normalization`, of each sample."""
    step = Step(sample=NOISE, level=level_at(0.7), condition=LABELS, prediction_type="v_prediction")
    own, plain, capped = (
        from_denoised(x0, step.sample, step.level, "v_prediction")
        for x0 in (
            images(NOISE, step.level, LABELS),
            PLAIN(images).run(step).x0,
            (PLAIN + NormCap(maximum))(images).run(step).x0,
        )
    )
    for row in range(3):
        most, norm = maximum * own[row].norm(), plain[row].norm()
        expected = plain[row] * (most / norm) if norm > most else plain[row]
        torch.testing.assert_close(capped[row], expected, rtol=0, atol=1e-12)


def test_a_threshold_sees_the_sum():
    level = level_at(0.7)
    plain = PLAIN(images)(NOISE, level, LABELS)
    guided = (DynamicThresholding(0.9, maximum=1.5) + PLAIN)(images)(NOISE, level, LABELS)
    assert (
        torch.equal(guided, DynamicThreshold(0.9, 1.5)(plain)) and guided.abs().max() <= 1 < plain.abs().max()
    )


class TestHistory:
    def test_is_its_equations(self):
        """Equations 5 to 9, in numpy and scipy."""
        term, memory = HistoryGuidance(1.2, rate=0.6, parallel=0.3, cutoff=0.2, t_min=0.1, t_max=0.9), {}
        radius = np.hypot(*np.meshgrid(np.arange(6) / 6, np.arange(8) / 8, indexing="ij"))
        weights, past = 1 / (1 + np.exp(-50 * (radius - 0.2))), []
        for ratio in (4.0, 1.5, 0.5):
            level = level_at(ratio)
            own = images(NOISE, level, LABELS).numpy()
            step = Step(sample=NOISE, level=level, condition=LABELS, memory=memory)
            ours, expected = term(images).run(step).x0, own
            if past:
                shares = np.array([0.6 * 0.4**k for k in range(len(past))])[::-1]
                difference = own - np.tensordot(shares, np.array(past), 1)
                along = (difference * own).sum((1, 2, 3), keepdims=True) / (own**2).sum(
                    (1, 2, 3), keepdims=True
                )
                difference = difference - 0.7 * along * own
                spectrum = dctn(difference, axes=(2, 3), norm="ortho") * weights
                time = float(level.sigma / (level.alpha + level.sigma))
                expected = own + 1.2 * np.sqrt((time - 0.1) / 0.8) * idctn(
                    spectrum, axes=(2, 3), norm="ortho"
                )
            past.append(own)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)

    def test_of_predictions_that_do_not_change_changes_nothing(self):
        def still(sample, level, condition=None):
            return torch.linspace(-1, 1, 48).reshape(1, 1, 6, 8).expand_as(sample).double()

        memory: dict[Any, Any] = {}
        term = HistoryGuidance(2.0, cutoff=None)
        for ratio in (5.0, 2.0, 1.0):
            x0 = term(still).run(Step(sample=NOISE, level=level_at(ratio), memory=memory)).x0
            torch.testing.assert_close(x0, still(NOISE, None), rtol=0, atol=1e-12)

    def test_remembers_one_run_only_and_what_was_before_it(self):
        """The second stage sees the sum: under plain guidance its history is of guided predictions."""
        term, memory = HistoryGuidance(1.0, rate=1.0, parallel=1.0, cutoff=None, t_min=0.0), {}
        first, second = level_at(3.0), level_at(1.0)
        plain = [PLAIN(images)(NOISE, level, LABELS) for level in (first, second)]
        steps = [Step(sample=NOISE, level=each, condition=LABELS, memory=memory) for each in (first, second)]
        ours = [(PLAIN + term)(images).run(step).x0 for step in steps]
        share = (second.sigma / (second.alpha + second.sigma)).sqrt()
        torch.testing.assert_close(ours[0], plain[0])
        torch.testing.assert_close(ours[1], plain[1] + share * (plain[1] - plain[0]))
