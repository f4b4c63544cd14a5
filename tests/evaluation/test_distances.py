"""Distances: closed forms, unbiasedness, limits, and torch-fidelity's figures."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from guided_diffusers.evaluation import density_coverage, frechet_distance, kernel_distance, precision_recall
from guided_diffusers.evaluation.distances import Moments, frechet_distance_of_moments

METRICS = Path(__file__).parents[1] / "goldens" / "metrics.safetensors"


def features(count, d=8, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, d, generator=generator, dtype=torch.float64) + shift


@pytest.fixture(scope="module")
def golden():
    with safe_open(METRICS, "pt") as file:
        real, generated = file.get_tensor("features_b"), file.get_tensor("features_a")
        return real, generated, json.loads(file.metadata()["config"])


def test_torch_fidelitys_figures(golden):
    real, generated, expected = golden
    ours = [
        frechet_distance(real, generated),
        kernel_distance(real, generated),
        *precision_recall(real, generated),
    ]
    names = ("frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall")
    assert ours == pytest.approx([expected[name] for name in names], rel=1e-4)


def test_frechet_distance_of_gaussians_that_commute_is_the_closed_form():
    d = 16
    basis = torch.linalg.qr(features(d, d)).Q
    a, b = features(d, 1, seed=1)[:, 0].exp(), features(d, 1, seed=2)[:, 0].exp()
    mean = features(1, d, seed=3)[0]
    real = Moments(mean=torch.zeros(d, dtype=torch.float64), covariance=basis @ torch.diag(a) @ basis.T)
    generated = Moments(mean=mean, covariance=basis @ torch.diag(b) @ basis.T)
    expected = (mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()).item()
    assert frechet_distance_of_moments(real, generated) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_in_two_dimensions_that_do_not_commute():
    """In two dimensions tr (A B)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2)."""
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    cross = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * cross).item()
    zero = torch.zeros(2, dtype=torch.float64)
    ours = frechet_distance_of_moments(Moments(mean=zero, covariance=a), Moments(mean=zero, covariance=b))
    assert ours == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_features_whose_moments_are_set_exactly():
    """Whitened samples have the moments that are asked of them, so the closed form holds for features."""
    raw = features(400, 6)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    scales = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    expected = ((1 - scales).square().sum() + 6 * 0.25).item()
    assert frechet_distance(white, white * scales + 0.5) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_fewer_images_than_dimensions_is_finite_and_zero_to_itself():
    few = features(5, 40)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(few, few + 2.0) == pytest.approx(40 * 4, rel=1e-6)


def test_kernel_distance_is_unbiased():
    """Halves of one set: the mean over splits is 0 within three standard errors of independent halves."""
    values = torch.tensor(
        [kernel_distance(features(60, 4, seed=2 * s), features(60, 4, seed=2 * s + 1)) for s in range(200)]
    )
    assert values.mean().abs() < 3 * values.std() / len(values) ** 0.5
    whole, splits = features(200, 4, seed=7), []
    for seed in range(200):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        splits.append(kernel_distance(whole[order[:100]], whole[order[100:]]))
    splits = torch.tensor(splits)
    assert splits.mean().abs() < 3 * splits.std()


def test_kernel_distance_is_its_definition():
    real, generated = features(7, 3), features(5, 3, shift=0.4, seed=1)

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def mean(pairs):
        return torch.stack([kernel(x, y) for x, y in pairs]).mean()

    within = [
        mean([(x, y) for i, x in enumerate(its) for j, y in enumerate(its) if i != j])
        for its in (real, generated)
    ]
    expected = within[0] + within[1] - 2 * mean([(x, y) for x in real for y in generated])
    assert kernel_distance(real, generated) == pytest.approx(expected.item(), rel=1e-12)


def test_sets_that_are_the_same_and_sets_far_apart():
    here, there = features(50), features(50, shift=100.0, seed=1)
    assert precision_recall(here, here) == (1.0, 1.0)
    assert precision_recall(here, there) == (0.0, 0.0)
    assert density_coverage(here, here)[1] == 1.0
    assert density_coverage(here, there) == (0.0, 0.0)


def test_density_of_one_distribution_is_one():
    density, coverage = density_coverage(features(1500, 4), features(1500, 4, seed=1))
    assert density == pytest.approx(1.0, abs=0.1)
    assert coverage > 0.9


def test_precision_and_recall_say_which_set_is_missing_something():
    narrow = 0.1 * features(200, 2)
    precision, recall = precision_recall(features(200, 2, seed=1), narrow)
    assert precision > 0.9 and recall < 0.2
    precision, recall = precision_recall(narrow, features(200, 2, seed=1))
    assert precision < 0.2 and recall > 0.9


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall, density_coverage])
def test_the_order_of_rows_means_nothing(measure):
    real, generated = features(40), features(40, shift=0.3, seed=1)
    again = measure(real.flip(0), generated[torch.randperm(40)])
    assert again == pytest.approx(measure(real, generated), rel=1e-9)


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (features(5), features(5, 4), "dimensions"),
        (features(1), features(5), "real_features is a tensor of shape"),
        (features(5), features(5)[0], "generated_features is a tensor of shape"),
        (features(5), features(5) * float("nan"), "NaN"),
    ],
)
@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall, density_coverage])
def test_what_cannot_be_compared_is_refused(measure, real, generated, message):
    with pytest.raises(ValueError, match=message):
        measure(real, generated)


def test_k_must_leave_a_neighbour():
    with pytest.raises(ValueError, match="k is 5; allowed"):
        precision_recall(features(5), features(5), k=5)
