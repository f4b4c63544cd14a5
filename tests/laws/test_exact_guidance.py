"""Guidance terms against exact models of a mixture: limits, equivalences, sums, per-sample scales."""

from __future__ import annotations

import pytest
import torch
from laws.exact import draw, exact_denoiser, exact_log_prob, level_at
from laws.mixture import MIXTURE

from guided_diffusers import GuidedDDIMScheduler, sampling_loop
from guided_diffusers.guidance import AutoGuidance, ClassifierFreeGuidance, ClassifierGuidance

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
RATIOS = (0.01, 0.3, 1.0, 4.0, 50.0)


def blurred(sample, level, condition=None):
    """A weak model: it takes the noise for larger than it is."""
    return exact_denoiser()(sample, level_at(1.5 * float(level.noise_to_signal)), condition)


def sampled(denoiser, condition=None, **kwargs):
    return sampling_loop(
        denoiser, GuidedDDIMScheduler(clip_sample=False), draw(6, 2), condition, 12, **kwargs
    )


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_gamma_0_is_unconditional_and_1_conditional():
    conditional, unconditional = sampled(exact_denoiser(), LABELS), sampled(exact_denoiser())
    assert (conditional - unconditional).abs().max() > 0.1
    close(sampled(ClassifierFreeGuidance(0.0)(exact_denoiser()), LABELS), unconditional)
    close(sampled(ClassifierFreeGuidance(1.0)(exact_denoiser()), LABELS), conditional)


@pytest.mark.parametrize("gamma", [-1.0, 0.5, 3.0, 7.5])
def test_classifier_free_guidance_is_classifier_guidance_with_bayes_classifier(gamma):
    """D_null + gamma (D_cond - D_null) = D_null + gamma sigma^2 / alpha grad log p(y | x_t)."""
    classifier_free = ClassifierFreeGuidance(gamma)(exact_denoiser())
    classifier = ClassifierGuidance(exact_log_prob(LABELS), gamma)(exact_denoiser())
    for ratio in RATIOS:
        sample = draw(6, 2)
        close(classifier_free(sample, level_at(ratio), LABELS), classifier(sample, level_at(ratio)))
    close(sampled(classifier_free, LABELS), sampled(classifier))


def test_classifier_free_guidance_and_a_classifier_add_up():
    """gamma through the null condition and s through a classifier guide together as gamma + s."""
    both = ClassifierFreeGuidance(2.0) + ClassifierGuidance(exact_log_prob(LABELS), 1.5)
    close(
        sampled(both(exact_denoiser()), LABELS),
        sampled(ClassifierFreeGuidance(3.5)(exact_denoiser()), LABELS),
    )


@pytest.mark.parametrize(("gamma", "s"), [(1.0, 1.0), (2.5, 0.7), (0.0, 3.0), (4.0, -0.5)])
def test_the_joint_guidance_is_the_product_that_it_claims(gamma, s):
    """p(x_t)^(1 - gamma) p(x_t | y)^gamma p(z | x_t)^s for labels y and z: its score, by Tweedie."""
    others = LABELS.roll(1)
    both = ClassifierFreeGuidance(gamma) + ClassifierGuidance(exact_log_prob(others), s)
    for ratio in RATIOS:
        sample, level = draw(6, 2).requires_grad_(), level_at(ratio)
        variance = level.alpha**2 * MIXTURE.deviations**2 + level.sigma**2
        distance = (sample[:, None] - level.alpha * MIXTURE.means).square().sum(-1)
        log_given = -variance.log() - distance / (2 * variance)  # log p(x_t | k), but for a constant
        log_p = (log_given + MIXTURE.weights.log()).logsumexp(1)
        of = log_given.gather(1, torch.stack([LABELS, others], dim=1))
        product = (1 - gamma) * log_p + gamma * of[:, 0] + s * (of[:, 1] - log_p)
        score = torch.autograd.grad(product.sum(), sample)[0]
        tweedie = (sample.detach() + level.sigma**2 * score) / level.alpha
        close(both(exact_denoiser())(sample.detach(), level, LABELS), tweedie)


def test_a_sum_is_the_sum_of_its_shifts_in_any_order():
    terms = [
        ClassifierFreeGuidance(3.0),
        ClassifierGuidance(exact_log_prob(LABELS), 0.7),
        AutoGuidance(blurred, 1.8),
    ]
    sample, level = draw(6, 2), level_at(0.8)
    base = exact_denoiser()(sample, level, LABELS)
    shifts = [term(exact_denoiser())(sample, level, LABELS) - base for term in terms]
    assert all(shift.abs().max() > 1e-3 for shift in shifts)
    forward = (terms[0] + terms[1] + terms[2])(exact_denoiser())(sample, level, LABELS)
    backward = (terms[2] + (terms[1] + terms[0]))(exact_denoiser())(sample, level, LABELS)
    close(forward, base + sum(shifts))
    close(backward, forward)
    close(terms[0](terms[1](terms[2](exact_denoiser())))(sample, level, LABELS), forward)


def test_auto_guidance():
    sample, level = draw(6, 2), level_at(0.8)
    strong, weak = exact_denoiser()(sample, level, LABELS), blurred(sample, level, LABELS)
    for scale, expected in [(1.0, strong), (0.0, weak), (2.5, weak + 2.5 * (strong - weak))]:
        close(AutoGuidance(blurred, scale)(exact_denoiser())(sample, level, LABELS), expected)
    denoiser = exact_denoiser()
    close(
        AutoGuidance(denoiser, 4.0)(denoiser)(sample, level, LABELS), strong
    )  # a model is no guide to itself


@pytest.mark.parametrize(
    "term",
    [
        ClassifierFreeGuidance,
        lambda scale: ClassifierGuidance(exact_log_prob(LABELS), scale),
        lambda scale: AutoGuidance(blurred, scale),
    ],
    ids=["classifier-free", "classifier", "auto"],
)
def test_scales_of_each_sample_are_separate_runs(term):
    scales = [0.0, 0.5, 1.0, 1.0, 2.0, 6.0]
    together = sampled(term(torch.tensor(scales))(exact_denoiser()), LABELS)
    for row, scale in enumerate(scales):
        close(together[row], sampled(term(scale)(exact_denoiser()), LABELS)[row])


def test_through_the_predicted_x0_with_a_linear_gaussian_likelihood():
    """x_0 ~ N(m, v I), y = x_0 + N(0, r I): the gradient through D and the exact posterior in closed form."""
    mean, v, r, s = 0.3, 0.8, 0.2, 1.6
    y = draw(6, 2, seed=3)

    def denoise(sample, level, condition=None):
        s_t = level.alpha**2 * v + level.sigma**2
        return mean + level.alpha * v / s_t * (sample - level.alpha * mean)

    def log_likelihood(x0, level, condition):
        return -(y - x0).square().sum(1) / (2 * r)

    def log_likelihood_of_level(x0, level, condition):
        left = v * level.sigma**2 / (level.alpha**2 * v + level.sigma**2)  # Var[x_0 | x_t]
        return -(y - x0).square().sum(1) / (2 * (r + left))

    for ratio in RATIOS:
        sample, level = draw(6, 2), level_at(ratio)
        x0, alpha, sigma = denoise(sample, level), level.alpha, level.sigma
        left = v * sigma**2 / (alpha**2 * v + sigma**2)
        slope = alpha * v / (alpha**2 * v + sigma**2)  # dD/dx
        guided = ClassifierGuidance(log_likelihood, s, through="denoised")(denoise)(sample, level)
        close(guided, x0 + s * sigma**2 / alpha * slope * (y - x0) / r)
        # With the likelihood that belongs to x_t, p(y | x_t) is exact and scale 1 gives E[x_0 | x_t, y].
        guided = ClassifierGuidance(log_likelihood_of_level, 1.0, through="denoised")(denoise)(sample, level)
        close(guided, (x0 / left + y / r) / (1 / left + 1 / r))


def test_through_the_predicted_x0_beside_other_terms():
    def log_prob(x0, level, condition):
        return -(x0 - 1).square().sum(1)

    sample, level = draw(6, 2), level_at(0.8)
    terms = [
        ClassifierGuidance(log_prob, 0.4, through="denoised"),
        ClassifierFreeGuidance(3.0),
        AutoGuidance(blurred, 1.8),
    ]
    base = exact_denoiser()(sample, level, LABELS)
    expected = base + sum(term(exact_denoiser())(sample, level, LABELS) - base for term in terms)
    guided = (terms[0] + terms[1] + terms[2])(exact_denoiser())(sample, level, LABELS)
    assert not guided.requires_grad
    close(guided, expected)
