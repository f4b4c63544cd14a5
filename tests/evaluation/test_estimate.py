import pytest
import torch

from guided_diffusers.evaluation import ratio_of_means, wilson_estimate


def test_wilson_solves_its_own_equation():
    """Wilson's definition: at the ends, the observed fraction is z standard errors (of the end) away."""
    z, estimate = 1.959963984540054, wilson_estimate(970, 1000)
    assert estimate.value == 0.97 and estimate.count == 1000
    for end in (estimate.low, estimate.high):
        assert abs(end - 0.97) == pytest.approx(z * (end * (1 - end) / 1000) ** 0.5, rel=1e-9)
    assert estimate.low < 0.97 < estimate.high


def test_wilson_at_the_ends():
    none, every = wilson_estimate(0, 50), wilson_estimate(50, 50)
    assert none.low == 0 and every.high == 1
    assert none.high == pytest.approx(1 - every.low)
    assert none.high == pytest.approx(1.959963984540054**2 / (50 + 1.959963984540054**2))


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        wilson_estimate(successes, trials)


def test_ratio_covers_the_truth_about_as_often_as_it_says():
    """100 experiments with a known ratio of 1.5: a 90% interval covers it in 90 of them, give or take 10."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(100):
        top = 1.5 * torch.empty(80).exponential_(generator=generator)
        bottom = torch.empty(200).exponential_(generator=generator)
        estimate = ratio_of_means(top, bottom, confidence=0.9, resamples=200, seed=trial)
        covered += estimate.low <= 1.5 <= estimate.high
    assert 80 <= covered <= 98


def test_ratio_is_repeatable_and_scales():
    top, bottom = torch.rand(50), torch.rand(60)
    first = ratio_of_means(top, bottom, resamples=100)
    assert first == ratio_of_means(top, bottom, resamples=100)
    doubled = ratio_of_means(2 * top, bottom, resamples=100)
    assert (doubled.value, doubled.low) == (pytest.approx(2 * first.value), pytest.approx(2 * first.low))


def test_ratio_refuses_what_has_no_ratio():
    with pytest.raises(ValueError, match="numerator"):
        ratio_of_means(torch.empty(0), torch.ones(3))
    with pytest.raises(ValueError, match="denominator"):
        ratio_of_means(torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match="confidence"):
        ratio_of_means(torch.ones(3), torch.ones(3), confidence=95)
