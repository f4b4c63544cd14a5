"""The bound as a whole: laws on a discretised Gaussian whose likelihood, denoiser and variance are exact."""

import importlib.util
from pathlib import Path

import pytest
import torch

from guided_diffusers.likelihood.bound import (
    estimated_bound,
    full_bound,
    mean_interval,
    plot_terms,
    stratified_places,
    with_variance,
)

FILE = Path(__file__).parents[2] / "benchmarks" / "studies" / "bound_gap" / "discretised_gaussian.py"
SPEC = importlib.util.spec_from_file_location("_discretised_gaussian", FILE)
gaussian = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gaussian)
draw, scheduler_of = gaussian.draw, gaussian.scheduler_of


def bounds_of(steps, images, types=("fixed_small", "fixed_large"), draws=None, **options):
    scheduler = scheduler_of(steps)
    schedulers = {kind: with_variance(scheduler, kind) for kind in types}
    arguments = (gaussian.exact_network(scheduler), schedulers, images)
    if draws is None:
        return full_bound(*arguments, **options)
    return estimated_bound(*arguments, draws, **options)


def gaps_of(steps, count):
    images, exact_bits = draw(count)
    bounds = bounds_of(steps, images, gaussian.VARIANCE_TYPES, batch_size=1000)
    return {kind: mean_interval(bound.total - exact_bits) for kind, bound in bounds.items()}


def test_the_exact_network_is_the_mean_and_the_variance_given_the_sample():
    """Over 200,000 pixels: E[x0 D] = E[D^2], and the reverse step spreads as far as its variance says."""
    scheduler = scheduler_of(20)
    x0, _ = draw(12_500)
    timestep = scheduler.timesteps[[-4]].expand(len(x0))
    level = scheduler.noise_level(timestep)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample = level.alpha[0] * x0 + level.sigma[0] * noise
    mean, log_variance = gaussian.exact_network(scheduler)(sample, timestep).chunk(2, dim=1)
    assert ((x0 - mean) * mean).mean().abs() < 4 * ((x0 - mean) * mean).std() / x0.numel() ** 0.5
    posterior_mean, posterior_variance = scheduler.posterior(x0, sample, timestep)
    model_mean, _ = scheduler.posterior(mean, sample, timestep)
    spread = (posterior_mean - model_mean).square() + posterior_variance
    assert spread.mean().item() == pytest.approx(log_variance.exp().mean().item(), rel=0.02)


def test_the_bound_lies_above_the_exact_bits_and_tightens_as_steps_grow():
    gaps = {steps: gaps_of(steps, 100) for steps in (5, 20, 80)}
    for kind in gaussian.VARIANCE_TYPES:
        assert gaps[5][kind].low > 0 and all(gaps[steps][kind].high > 0 for steps in gaps)
        assert gaps[5][kind].low > gaps[80][kind].value
    assert gaps[5]["fixed_small"].low > gaps[20]["fixed_small"].high
    assert gaps[20]["fixed_small"].low > gaps[80]["fixed_small"].high
    for at in gaps.values():  # the exact variance is the best one
        assert at["learned"].value < at["fixed_large"].value < at["fixed_small"].value


@pytest.mark.slow
def test_at_a_thousand_steps_hardly_a_gap_is_left():
    gaps = gaps_of(1000, 100)
    assert gaps["fixed_small"].low > 0 and gaps["fixed_small"].high < 1
    assert all(-0.15 < gaps[kind].low and gaps[kind].high < 0.25 for kind in ("fixed_large", "learned"))


def test_the_estimate_is_unbiased_for_the_full_sum():
    """The means over many copies of one image agree: of the estimate, and of the full sum's draws."""
    images, _ = draw(1)
    images = images.expand(250, -1, -1, -1)
    full = bounds_of(20, images, ("fixed_large",), batch_size=1000)["fixed_large"]
    drawn = bounds_of(20, images, ("fixed_large",), draws=10, seed=1)["fixed_large"]
    difference = mean_interval(drawn.total).value - mean_interval(full.total).value
    error = ((drawn.total.var() + full.total.var()) / 250).sqrt().item()
    assert abs(difference) < 4 * error and error < 0.25
    assert drawn.total.std() > full.total.std()  # fewer draws, more noise
    assert torch.equal(drawn.prior, full.prior)


def test_a_draw_at_every_timestep_is_the_full_sum_of_the_same_noise():
    images, _ = draw(5)
    full, drawn = (bounds_of(12, images, ("fixed_small",), n)["fixed_small"] for n in (None, 12))
    torch.testing.assert_close(drawn.total, full.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(full.total, full.prior + full.terms.sum(1), rtol=1e-12, atol=0)
    assert torch.equal(full.decoder, full.terms[:, -1]) and full.draws == 12
    assert full.timesteps[-1] == 0 and torch.equal(full.mean_terms(), full.terms.mean(0))


@pytest.mark.parametrize("draws", [None, 4])
def test_nothing_depends_on_the_batch_size_or_the_parts_of_the_data(draws):
    images, _ = draw(6)
    whole = bounds_of(10, images, draws=draws)
    small = bounds_of(10, images, draws=draws, batch_size=7)
    later = bounds_of(10, images[4:], draws=draws, first_index=4)
    for kind, bound in whole.items():
        torch.testing.assert_close(small[kind].total, bound.total, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(later[kind].total, bound.total[4:], rtol=1e-6, atol=1e-6)
    other = bounds_of(10, images, draws=draws, seed=5)["fixed_small"]
    assert not torch.allclose(other.total, whole["fixed_small"].total)


def test_one_forward_serves_every_variance():
    scheduler, (images, _), calls = scheduler_of(8), draw(3), []
    network = gaussian.exact_network(scheduler)

    def counting(sample, timestep):
        calls.append(len(sample))
        return torch.cat([network(sample, timestep)[:, :1], torch.full_like(sample, -1)], dim=1)

    kinds = ("fixed_small", "fixed_large", "learned_range")
    bounds = full_bound(counting, {kind: with_variance(scheduler, kind) for kind in kinds}, images)
    assert sum(calls) == 3 * 8 and set(bounds) == set(kinds)
    lower = bounds["learned_range"].total  # a share of -1 is the lower limit, the posterior's variance
    torch.testing.assert_close(lower, bounds["fixed_small"].total, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(lower, bounds["fixed_large"].total)


def test_a_condition_follows_its_image():
    scheduler, (images, _), seen = scheduler_of(4), draw(3), []

    def network(sample, timestep, class_labels):
        seen.extend(zip(class_labels.tolist(), timestep.tolist(), strict=True))
        return torch.zeros_like(sample)

    labels = {"class_labels": torch.tensor([7, 8, 9])}
    full_bound(network, {"a": scheduler}, images, condition=labels, batch_size=5)
    assert seen == [(label, t) for label in (7, 8, 9) for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize(("draws", "count"), [(2, 10), (4, 10), (7, 8), (8, 8), (50, 1000)])
def test_places_are_stratified_and_fair(draws, count):
    runs = torch.stack([stratified_places(seed, draws, count) for seed in range(4000)])
    assert (runs[:, -1] == count - 1).all() and (runs.diff(dim=1) >= 0).all()
    width = (count - 1) / (draws - 1)
    parts = torch.arange(draws - 1)
    assert (runs[:, :-1] >= (parts * width).floor()).all()
    assert (runs[:, :-1] <= ((parts + 1) * width).ceil() - 1).all()
    shares = torch.bincount(runs[:, :-1].flatten(), minlength=count)[:-1] / (4000 / width)
    assert (shares - 1).abs().max() < 5 * (width / 4000) ** 0.5 + 1e-9


def test_the_interval_of_a_mean_covers_in_its_share():
    generator = torch.Generator().manual_seed(0)
    runs = [mean_interval(torch.rand(200, generator=generator)) for _ in range(1000)]
    assert 0.93 < sum(run.low < 0.5 < run.high for run in runs) / 1000 < 0.97
    few = mean_interval(torch.tensor([-1.0, 1.0] * 10))  # deviation (20 / 19) ** 0.5, t(19) = 2.0930
    assert (few.value, few.high) == (0, pytest.approx(2.0930 / 19**0.5, rel=1e-3))
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval(torch.ones(1))


def test_terms_are_drawn_as_a_picture_where_they_are_known(tmp_path):
    pytest.importorskip("matplotlib")
    images, _ = draw(3)
    plot_terms(bounds_of(20, images, draws=5), tmp_path / "terms.png")
    assert (tmp_path / "terms.png").read_bytes().startswith(b"\x89PNG")


def test_a_summary_adds_up():
    images, _ = draw(4)
    summary = bounds_of(6, images, ("fixed_small",))["fixed_small"].to_dict()
    parts = summary["prior"] + summary["decoder"] + summary["between"]
    assert parts == pytest.approx(summary["bits_per_dimension"]["value"])
    assert (summary["draws"], summary["timesteps"]) == (6, 6)


@pytest.mark.parametrize(
    ("schedulers", "draws", "words"),
    [
        ({}, 4, "at least one scheduler"),
        ({"a": scheduler_of(10), "b": scheduler_of(11)}, 4, "scheduler 'b' is .*first's timesteps"),
        ({"a": scheduler_of(10)}, 1, "draws is 1; allowed: an integer of at least 2"),
        ({"a": scheduler_of(10)}, 11, "draws is 11"),
    ],
)
def test_bad_arguments_are_named(schedulers, draws, words):
    with pytest.raises(ValueError, match=words):
        estimated_bound(lambda *_: None, schedulers, draw(2)[0], draws)
