"""The report: the same figures as the functions, names with the network, intervals that cover."""

import math

import pytest
import torch

from guided_diffusers.evaluation import (
    Reference,
    density_coverage,
    distance_report,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from guided_diffusers.evaluation.bootstrap import frechet_estimate, kernel_estimate

pytestmark = pytest.mark.filterwarnings("ignore:.*biased upwards")


def features(count, d=8, shift=0.0, seed=0):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("d", [8, 90])  # more images than dimensions, and fewer
def test_its_values_are_those_of_the_functions(d):
    real, generated = features(300, d), features(80, d, shift=0.2, seed=1)
    report = distance_report(real, generated, "net", resamples=20, frechet_resamples=5)
    expected = {
        "FD-net": frechet_distance(real, generated),
        "KD-net": kernel_distance(real, generated),
        **dict(zip(("precision", "recall"), precision_recall(real, generated), strict=True)),
        **dict(zip(("density", "coverage"), density_coverage(real, generated), strict=True)),
    }
    assert {name: e.value for name, e in report.items()} == pytest.approx(expected, rel=1e-5)
    assert all(e.low <= e.value <= e.high for e in report.values())
    with_reference = distance_report(Reference(real), generated, "net", resamples=20, frechet_resamples=5)
    assert {n: e.value for n, e in with_reference.items()} == {n: e.value for n, e in report.items()}


def test_only_the_standards_network_is_called_fid():
    assert {"FID", "KID"} < set(distance_report(features(9), features(9), "inception", resamples=2))
    assert "FID" not in distance_report(features(9), features(9), "other", resamples=2)


def test_below_ten_thousand_images_it_warns():
    with pytest.warns(UserWarning, match=r"FD-net of 9 images is biased.*KD-net"):
        distance_report(features(9), features(9, seed=1), "net", resamples=2)


@pytest.mark.parametrize("count", [3, 4])
def test_a_kernel_interval_of_few_images_is_finite(count):
    """Resamples of one image alone, which have no pair, are left out; two images have no other pair."""
    real = Reference(features(50, 4, seed=1))
    estimate = kernel_estimate(real, features(count, 4, seed=2))
    assert -math.inf < estimate.low < estimate.value < estimate.high < math.inf
    with pytest.raises(ValueError, match="generated .*; allowed: at least three images"):
        kernel_estimate(real, features(2, 4, seed=2))


@pytest.mark.slow
def test_kernel_intervals_cover_the_truth():
    """Sets of 100 of a shifted Gaussian: the distance of 20,000 is in about 95 of 100 intervals."""
    real = Reference(features(2000, 4, seed=1))
    truth = kernel_distance(real.features, features(20_000, 4, shift=0.3, seed=2).double())
    estimates = [
        kernel_estimate(real, features(100, 4, shift=0.3, seed=10 + seed), resamples=100)
        for seed in range(100)
    ]
    assert 85 <= sum(e.low <= truth <= e.high for e in estimates) <= 100


def test_a_frechet_interval_lies_around_its_estimate_and_has_the_spread_of_new_samples():
    real = Reference(features(2000, 4, seed=1))
    estimates = [
        frechet_estimate(real, features(200, 4, shift=0.5, seed=20 + seed), resamples=100)
        for seed in range(40)
    ]
    spread = torch.tensor([e.value for e in estimates]).std().item()
    width = torch.tensor([(e.high - e.low) / (2 * 1.96) for e in estimates]).mean().item()
    assert width == pytest.approx(spread, rel=0.35)
