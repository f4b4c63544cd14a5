"""LossGuidance against exact posteriors, its definition, and other terms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from laws.exact import draw, exact_denoiser, level_at
from scipy.special import dawsn

from guided_diffusers import Condition, NoiseLevel, sampling_loop
from guided_diffusers.core.exact import GaussianMixture
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance, LossGuidance
from guided_diffusers.steering import Measurement

Y = 0.8
GAUSSIAN = GaussianMixture.of([[0.0, 0.0]], [1.0])
FLOW = NoiseLevel(alpha=0.4, sigma=0.6)


def first(images):
    return images[:, :1]


def squared(deviation):
    """-log N(Y; x, deviation^2) of the first coordinate, up to a constant."""
    return lambda images: (images[:, 0] - Y) ** 2 / (2 * deviation**2)


def measured(deviation):
    return Measurement(first, torch.full((1, 1), Y, dtype=torch.float64), deviation)


def drawn(term, noise, mixture=GAUSSIAN, steps=150):
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True)
    guided = term(lambda sample, level, condition=None: mixture.denoise(sample, level))
    return sampling_loop(guided, scheduler, noise, None, steps)


def mean_and_deviation(term):
    """Of what is drawn on a Gaussian, an affine function of the noise; both axes lose the same to steps."""
    ends = drawn(term, torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    return float(ends[0, 0]), float((ends[1, 0] - ends[0, 0]) / ends[1, 1])


@pytest.mark.parametrize("through", ["x0", "denoised"])
class TestOnAGaussian:
    @pytest.mark.parametrize("deviation", [0.0, 0.3, 1.0])
    def test_a_measurement_draws_the_posterior(self, through, deviation):
        mean, spread = mean_and_deviation(LossGuidance(measured(deviation), 1.0, through=through))
        assert mean == pytest.approx(Y / (1 + deviation**2), abs=0.005)
        assert spread == pytest.approx(deviation / math.sqrt(1 + deviation**2), abs=0.005)

    @pytest.mark.parametrize("deviation", [0.7, 1.0, 3.0])
    def test_a_squared_error_draws_what_the_docstring_says(self, through, deviation):
        ratio = deviation**-2
        mean, spread = mean_and_deviation(LossGuidance(squared(deviation), 1.0, through=through))
        assert mean == pytest.approx(Y * math.sqrt(2 * ratio) * dawsn(math.sqrt(ratio / 2)), abs=0.007)
        assert spread == pytest.approx(math.exp(-ratio / 2), abs=0.007)


class TestOnAMixture:
    """Three unit Gaussians of which the first coordinate is measured: what it says of the second."""

    mixture = GaussianMixture.of([[-1.0, -1.2], [1.0, 0.2], [0.4, 1.5]], [1.0] * 3, [0.5, 0.3, 0.2])

    def posterior(self, deviation):
        """Mean and deviation of both coordinates."""
        gain = 1 / (1 + deviation**2)
        evidence = self.mixture.weights.log() - (Y - self.mixture.means[:, 0]) ** 2 * gain / 2
        shifted = gain * (Y - self.mixture.means[:, :1]) * torch.tensor([1.0, 0.0])
        means, weights = self.mixture.means + shifted, evidence.softmax(0)[:, None]
        mean = (weights * means).sum(0)
        variance = (weights * (means**2 + torch.tensor([deviation**2 * gain, 1.0]))).sum(0) - mean**2
        return mean, variance.sqrt()

    @pytest.mark.parametrize("deviation", [0.5, 1.0])
    def test_through_the_denoiser_the_draw_is_near_the_posterior(self, deviation):
        term = LossGuidance(measured(deviation), 1.0, through="denoised")
        ends = drawn(term, draw(3000, 2), self.mixture, steps=40)
        mean, spread = self.posterior(deviation)
        assert (ends.mean(0) - mean).abs().max() < 0.13 and (ends.std(0) - spread).abs().max() < 0.13

    def test_through_x0_the_other_coordinate_learns_little(self):
        prior = drawn(ClassifierFreeGuidance(1.0), draw(3000, 2), self.mixture, steps=40).mean(0)
        ends = drawn(LossGuidance(measured(0.5), 1.0), draw(3000, 2), self.mixture, steps=40).mean(0)
        mean = self.posterior(0.5)[0]
        assert abs(ends[0] - mean[0]) < 0.1 and abs(ends[1] - prior[1]) < 0.25 * abs(mean[1] - prior[1])


@pytest.mark.parametrize("level", [level_at(0.7), FLOW])
class TestDefinition:
    def test_through_x0_it_is_the_gradient_at_x0_times_what_is_unknown(self, level):
        sample, x0 = draw(4, 2), exact_denoiser()(draw(4, 2), level)
        unknown = level.sigma**2 / (level.alpha**2 + level.sigma**2)
        guided = LossGuidance(squared(0.5), 2.0)(exact_denoiser())(sample, level)
        expected = x0 - 2 * unknown * torch.stack([(x0[:, 0] - Y) / 0.25, 0 * x0[:, 0]], dim=1)
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-12)

    def test_through_the_denoiser_it_is_classifier_guidance(self, level):
        ours = LossGuidance(squared(0.5), 2.0, through="denoised")
        theirs = ClassifierGuidance(lambda x0, level, y: -squared(0.5)(x0), 2.0, through="denoised")
        sample = draw(4, 2)
        torch.testing.assert_close(
            ours(exact_denoiser())(sample, level), theirs(exact_denoiser())(sample, level), rtol=0, atol=1e-12
        )

    def test_no_step_moves_further_than_what_is_unknown_allows(self, level):
        free, most = LossGuidance(squared(0.1), 1.0), LossGuidance(squared(0.1), 1.0, max_norm=0.5)
        sample, x0 = draw(4, 2), exact_denoiser()(draw(4, 2), level)
        unknown = level.sigma / (level.alpha**2 + level.sigma**2) ** 0.5
        long, short = (term(exact_denoiser())(sample, level) - x0 for term in (free, most))
        assert long.square().mean(1).sqrt().min() > 0.5 * unknown
        torch.testing.assert_close(short.square().mean(1).sqrt(), (0.5 * unknown).expand(4))
        torch.testing.assert_close(short / short.norm(dim=1)[:, None], long / long.norm(dim=1)[:, None])


def test_an_image_is_measured_with_the_other_terms_in_it():
    def denoise(sample, level, condition):
        return condition.positive["value"] * torch.ones_like(sample)

    condition, sample = Condition({"value": 3.0}, {"value": 1.0}), torch.zeros(2, 2, dtype=torch.float64)
    both = LossGuidance(measured(0.0), 1.0) + ClassifierFreeGuidance(2.0)
    guided = both(denoise)(sample, level_at(1.0), condition)
    torch.testing.assert_close(guided, torch.tensor([[Y, 5.0]] * 2, dtype=torch.float64))


def test_decode_scale_and_interval_are_a_samples_own():
    level = NoiseLevel(alpha=1.0, sigma=torch.tensor([0.5, 2.0, 2.0]))
    term = LossGuidance(lambda images: images.sum(1), (1.0, 1.0, 3.0), (1.0, None), lambda x0: 2 * x0)
    moved = term(lambda sample, level, condition: sample)(torch.zeros(3, 2), level)
    torch.testing.assert_close(moved, -torch.tensor([[0.0], [1.6], [4.8]]).expand(3, 2))


def test_to_a_configuration_and_back():
    term = LossGuidance(first, 2.0, (0.1, 3.0), torch.neg, "denoised", 3, 0.5)
    assert Guidance.from_config(term.to_config(), loss=first, decode=torch.neg) == term
    with pytest.raises(ValueError, match="LossGuidance needs decode="):
        Guidance.from_config(term.to_config(), loss=first)
    assert (term + ClassifierFreeGuidance(2.0)).recurrence == 3 == replace(term, interval=None).recurrence


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (first, {}, r"loss has shape \(4, 1\) for a sample of \(4, 2\); allowed: one value a sample"),
        (lambda x: x.sum(), {}, r"loss has shape \(\) .* one value a sample"),
        (lambda x: x.detach().sum(1), {}, "loss has no gradient"),
        (lambda x: torch.ones(4, requires_grad=True), {}, "loss has no gradient"),
        (first, {"through": "classifier"}, "through is 'classifier'; allowed: 'x0', 'denoised'"),
        (first, {"recurrence": 0}, "recurrence is 0; allowed: an integer of at least 1"),
        (first, {"max_norm": 0.0}, "max_norm is 0.0; allowed: .*a finite number above 0"),
    ],
)
def test_what_is_wrong_is_named(loss, options, message):
    with pytest.raises(ValueError, match=message):
        LossGuidance(loss, 1.0, **options)(exact_denoiser())(draw(4, 2), level_at(1.0))
