"""Figures of a classifier: calibration in closed form, gradients against finite differences."""

import pytest
import torch

from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.process import VariancePreserving
from guided_diffusers.evaluation.classification import (
    answers_and_gradients,
    classifier_figure,
    classifier_report,
    expected_calibration_error,
    reports_by_noise,
)
from guided_diffusers.losses import uniform_levels
from guided_diffusers.models import NoiseAwareClassifier

PROCESS = VariancePreserving.of_table(torch.linspace(0.999, 0.01, 40, dtype=torch.float64))


@pytest.mark.parametrize(
    ("confidences", "right", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0], 0.25),  # certain, and right three times of four
        ([0.75] * 4, [1, 1, 1, 0], 0.0),  # calibrated
        ([0.6] * 5, [0] * 5, 0.6),  # always wrong
        ([0.6, 0.9], [1, 0], 0.5 * 0.4 + 0.5 * 0.9),  # two intervals
        ([0.61, 0.63], [1, 0], 0.5 - 0.38),  # one interval: its mean confidence counts, |0.5 - 0.62|
    ],
)
def test_calibration_error_in_closed_form(confidences, right, expected):
    first = torch.tensor(confidences, dtype=torch.float64)
    labels = 1 - torch.tensor(right)
    assert expected_calibration_error(torch.stack([first, 1 - first], 1), labels) == pytest.approx(expected)


def test_labels_drawn_from_the_probabilities_are_calibrated_and_sharpened_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    labels = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    assert expected_calibration_error(logits.softmax(1), labels) < 0.015
    assert expected_calibration_error((3 * logits).softmax(1), labels) > 0.1


def test_intervals_are_open_below_and_closed_above():
    half = torch.full((2, 2), 0.5)
    assert expected_calibration_error(half, torch.tensor([0, 1]), bins=2) == 0.0
    both = torch.tensor([[0.5, 0.5], [0.51, 0.49]], dtype=torch.float64)
    apart = expected_calibration_error(both, torch.tensor([0, 1]), bins=2)  # 0.5 in (0, 0.5], 0.51 above
    assert apart == pytest.approx((0.5 + 0.51) / 2)


def test_what_cannot_be_measured_is_refused():
    for probabilities, labels, bins in ((torch.ones(0, 2), torch.ones(0), 15), (torch.ones(3, 2), 1, 15)):
        with pytest.raises(ValueError, match="(probabilities|labels) is .*; allowed"):
            expected_calibration_error(probabilities, torch.as_tensor(labels), bins)
    with pytest.raises(ValueError, match="reports is .*allowed: one or more"):
        classifier_figure([classifier_report(torch.randn(3, 2), torch.tensor([0, 1, 1]))])


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    arguments = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    model = NoiseAwareClassifier(4, 2, 3, attention_head_dim=4, pool="adaptive", **arguments)
    return model.double().eval().requires_grad_(False)


def logits_of(classifier):
    return lambda x, level: classifier(broadcast(level.input_scale, x) * x, level.timestep)


def test_gradient_against_finite_differences(classifier):
    level = NoiseLevel(alpha=1.0, sigma=2.0, timestep=torch.tensor(7), input_scale=0.4)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([2, 0])
    logits, gradient = answers_and_gradients(logits_of(classifier), x, level, labels)
    torch.testing.assert_close(logits, classifier(0.4 * x, 7))
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    ahead, behind = (classifier.log_prob(x + step * direction, level, labels) for step in (1e-5, -1e-5))
    torch.testing.assert_close((ahead - behind) / 2e-5, gradient.flatten(1).norm(dim=1), rtol=1e-6, atol=0)


def test_reports_by_noise_do_not_depend_on_the_batch(classifier):
    x0 = torch.randn(10, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(10) % 3
    levels = uniform_levels(PROCESS)
    whole, parts = (
        reports_by_noise(logits_of(classifier), x0, labels, levels, bins=4, seed=1, batch_size=size)
        for size in (10, 3)
    )
    for one, other in zip(whole, parts, strict=True):
        assert one.accuracy == other.accuracy
        assert one.gradient_norm.value == pytest.approx(other.gradient_norm.value, rel=1e-9)
        assert one.calibration_error == pytest.approx(other.calibration_error, rel=1e-9)
    ratios = [report.noise_to_signal for report in whole]
    expected = levels(torch.tensor([0.125, 0.375, 0.625, 0.875])).noise_to_signal.tolist()
    assert ratios == expected
    assert classifier_figure(whole, "tiny").size[0] > 500


def test_the_exact_classifier_of_two_gaussians_is_right_where_noise_is_low():
    """x_0 = -1 or 1: log p(y | x) = log sigmoid(2 alpha x / sigma^2), with gradients of known size."""

    def logits(x, level):
        return broadcast(2 * level.alpha / level.sigma**2, x) * torch.cat([-x, x], 1) / 2

    labels = torch.arange(400) % 2
    x0 = (2.0 * labels - 1).double()[:, None]
    reports = reports_by_noise(logits, x0, labels, uniform_levels(PROCESS), bins=4, seed=0)
    accuracies = [report.accuracy.value for report in reports]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 0.95
    assert all(report.calibration_error < 0.1 for report in reports)
    level = NoiseLevel(alpha=0.6, sigma=0.8, timestep=0)
    x = torch.tensor([[0.3]], dtype=torch.float64)
    _, gradient = answers_and_gradients(logits, x, level, torch.tensor([1]))
    slope = 2 * 0.6 / 0.64
    assert gradient.item() == pytest.approx(slope * torch.sigmoid(torch.tensor(-slope * 0.3)).item())
