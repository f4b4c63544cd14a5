import math

import pytest
import torch
from laws.exact import draw, exact_denoiser, level_at

from guided_diffusers import NoiseLevel
from guided_diffusers.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidanceInterval,
)

LABELS = torch.tensor([0, 1, 2, 0])


def ratio(value):
    """A level whose noise-to-signal ratio is exactly the value."""
    return NoiseLevel(alpha=1.0, sigma=value)


def test_the_lower_limit_is_excluded_and_the_upper_included():
    interval = GuidanceInterval(0.25, 4.0)
    inside = [
        ratio(value) in interval for value in (0.0, 0.25, 0.25 + 1e-12, 1.0, 4.0, 4.0 + 1e-12, math.inf)
    ]
    assert inside == [False, False, True, True, True, False, False]


def test_pure_noise_and_no_noise():
    pure, clean = NoiseLevel(alpha=0.0, sigma=1.0), NoiseLevel(alpha=1.0, sigma=0.0)
    assert pure in GuidanceInterval() and pure not in GuidanceInterval(0.0, 1e6)
    assert clean not in GuidanceInterval()


def test_it_means_the_same_in_every_process():
    interval = GuidanceInterval(0.5, 2.0)
    for value, inside in [(0.4, False), (1.0, True), (3.0, False)]:
        flow = NoiseLevel(alpha=1 / (1 + value), sigma=value / (1 + value))
        assert [level in interval for level in (ratio(value), level_at(value), flow)] == [inside] * 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.5, 2), GuidanceInterval(0.5, 2.0)),
        ([0.5, None], GuidanceInterval(0.5, math.inf)),
        ((None, 2.0), GuidanceInterval(0.0, 2.0)),
        (GuidanceInterval(0.5, 2.0), GuidanceInterval(0.5, 2.0)),
        (None, None),
    ],
)
def test_of(given, expected):
    assert GuidanceInterval.of(given) == expected
    if expected is not None:
        assert GuidanceInterval.of(expected.to_config()) == expected


@pytest.mark.parametrize(
    "limits", [(1, 1), (2, 1), (-0.1, 1), (math.nan, 1), (0, math.nan), ("low", "high"), (1, None)]
)
def test_limits_out_of_order(limits):
    with pytest.raises(ValueError, match=r"interval is \(.*allowed: 0 <= low < high"):
        GuidanceInterval(*limits)


@pytest.mark.parametrize("value", [3.0, (1.0,), (1.0, 2.0, 3.0), "01", {}])
def test_things_that_are_no_interval(value):
    with pytest.raises(ValueError, match="interval is .*allowed: a GuidanceInterval"):
        ClassifierFreeGuidance(2.0, value)


def test_nothing_is_asked_outside():
    def never(*args):
        raise AssertionError("asked outside the interval")

    interval, sample, level = GuidanceInterval(0.5, 2.0), draw(4, 2), ratio(2.5)
    terms = [
        AutoGuidance(never, 2.0, interval),
        ClassifierGuidance(never, 2.0, interval),
        ClassifierGuidance(never, 2.0, interval, through="denoised"),
    ]
    guided = (terms[0] + terms[1] + terms[2])(exact_denoiser())
    assert torch.equal(guided(sample, level, LABELS), exact_denoiser()(sample, level, LABELS))
    for term in terms:
        with pytest.raises(AssertionError):
            term(exact_denoiser())(sample, ratio(2.0), LABELS)


def test_samples_of_one_batch_may_be_at_different_levels():
    def denoise(sample, level, condition=None):
        return sample * (2.0 if condition is None else 1.0)

    level = NoiseLevel(alpha=torch.ones(4), sigma=torch.tensor([0.1, 1.0, 2.0, 3.0]))
    x0 = ClassifierFreeGuidance(0.0, (0.5, 2.0))(denoise)(torch.ones(4, 2), level, "a condition")
    assert x0[:, 0].tolist() == [1.0, 2.0, 2.0, 1.0]
