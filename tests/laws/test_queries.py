"""What a query may ask, and what sees the sum, against the exact mixture of `core.exact`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from laws.exact import draw, level_at

from guided_diffusers import Denoised, NoiseLevel
from guided_diffusers.core.exact import GaussianMixture
from guided_diffusers.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    Guidance,
    GuidanceInterval,
    ProjectedGuidance,
    Query,
    Shift,
    Step,
    effective_scale,
)

MIXTURE = GaussianMixture.of([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], [0.25, 0.4, 0.15])
LABELS = torch.tensor([0, 1, 2, 0])
SAMPLE, LEVEL = draw(4, 2), level_at(0.8)


@dataclass(frozen=True)
class Asks(Guidance):
    """Adds up the answers to queries, each as far away from the others as digits are."""

    asked: Callable[[Step], tuple[Query, ...]]
    scale: float = 1.0
    interval: GuidanceInterval | None = None

    def queries(self, step):
        return self.asked(step)

    def shift(self, step, own, answers):
        return sum((10 * (place + 1) * answer.x0 for place, answer in enumerate(answers)), -own.x0)


@dataclass(frozen=True)
class Corrects(Guidance):
    """A correction of the sum, and no shift."""

    by: Callable[..., Any]
    interval: GuidanceInterval | None = None
    scale = 1.0

    def correct(self, step, own, guided):
        return self.by(guided)


class Batched:
    """The exact denoiser as one that counts its forwards."""

    def __init__(self) -> None:
        self.forwards: list[int] = []

    def __call__(self, sample, level, condition=None):
        return self.batch(sample, level, [condition])[0]

    def batch(self, sample, level, conditions):
        self.forwards.append(len(conditions))
        return [Denoised(MIXTURE.denoise(sample, level, labels)) for labels in conditions]


@pytest.mark.parametrize("denoiser", [MIXTURE.denoise, Batched()], ids=["function", "batch"])
def test_a_query_at_another_sample_or_level_is_answered_there(denoiser):
    other, cleaner = draw(7, 2, seed=1), level_at(0.3)
    labels = LABELS.roll(1)

    def asked(step):
        return (
            Query(condition=labels),
            Query(condition=labels, level=cleaner),
            Query(condition=None, sample=other[:4]),
            Query(condition=labels, sample=other[3:], level=cleaner),
        )

    x0 = Asks(asked)(denoiser)(SAMPLE, LEVEL, LABELS)
    expected = 10 * MIXTURE.denoise(SAMPLE, LEVEL, labels) + 20 * MIXTURE.denoise(SAMPLE, cleaner, labels)
    expected += 30 * MIXTURE.denoise(other[:4], LEVEL) + 40 * MIXTURE.denoise(other[3:], cleaner, labels)
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-12)


def test_queries_of_one_network_view_sample_and_level_are_one_forward_and_equal_ones_asked_once():
    denoiser, cleaner, labels = Batched(), level_at(0.3), LABELS.roll(1)

    def asked(step):
        at = [Query(condition=c, level=level) for level in (cleaner, None) for c in (labels, LABELS, labels)]
        return (*at, Query(condition=step.condition, network=denoiser), Query(condition=None, view=perturbed))

    @contextmanager
    def perturbed():
        yield

    Asks(asked)(denoiser)(SAMPLE, LEVEL, LABELS)
    assert denoiser.forwards == [2, 2, 1]


def test_in_a_view_the_network_is_another_for_that_query_alone():
    factor = [1.0]

    @contextmanager
    def doubled():
        factor[0] = 2.0
        yield
        factor[0] = 1.0

    def denoise(sample, level, condition=None):
        return factor[0] * MIXTURE.denoise(sample, level, condition)

    def asked(step):
        return (Query(condition=step.condition, view=doubled), Query(condition=step.condition))

    x0 = Asks(asked)(denoise)(SAMPLE, LEVEL, LABELS)
    torch.testing.assert_close(x0, (20 + 20) * MIXTURE.denoise(SAMPLE, LEVEL, LABELS), rtol=0, atol=1e-12)


def test_one_condition_after_another_gives_what_a_batch_gives():
    terms = ClassifierFreeGuidance(3.0) + ProjectedGuidance(2.0) + AutoGuidance(Batched(), 1.4, null=True)
    batched, sequential = Batched(), Batched()
    together = terms(batched)(SAMPLE, LEVEL, LABELS)
    apart = terms(sequential, sequential=True)(SAMPLE, LEVEL, LABELS)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)
    assert batched.forwards == [2] and sequential.forwards == [1, 1]


def test_a_correction_sees_the_sum_of_all_shifts_in_the_order_of_the_terms():
    base = MIXTURE.denoise(SAMPLE, LEVEL, LABELS)
    terms = Corrects(lambda x0: 2 * x0) + ClassifierFreeGuidance(3.0) + Corrects(lambda x0: x0 + 1)
    summed = ClassifierFreeGuidance(3.0)(MIXTURE.denoise)(SAMPLE, LEVEL, LABELS)
    assert (summed - base).abs().max() > 0.1
    x0 = terms(MIXTURE.denoise)(SAMPLE, LEVEL, LABELS)
    torch.testing.assert_close(x0, 2 * summed + 1, rtol=0, atol=1e-12)


def test_the_interval_masks_shifts_of_either_kind_and_corrections_for_each_sample():
    ratio = torch.tensor([0.2, 0.9, 0.9, 3.0], dtype=torch.float64)
    alpha = (1 + ratio**2).rsqrt()
    level = NoiseLevel(alpha=alpha, sigma=ratio * alpha)
    inside = torch.tensor([[False], [True], [True], [False]])

    class Both(Corrects):
        def shift(self, step, own, answers):
            return Shift(x0=torch.ones_like(own.x0), mean=own.x0)

    term = Both(lambda x0: 5 * x0, GuidanceInterval(0.5, 2.0))
    got = (term + replace(term, by=lambda x0: x0))(lambda x, *_: 3 * x).run(Step(sample=SAMPLE, level=level))
    assert torch.equal(got.x0, torch.where(inside, 5 * (3 * SAMPLE + 2), 3 * SAMPLE))
    assert torch.equal(got.mean, torch.where(inside, 6 * SAMPLE, 0.0))


def test_without_a_shift_there_is_no_mean():
    assert ClassifierFreeGuidance(2.0)(MIXTURE.denoise).run(Step(sample=SAMPLE, level=LEVEL)).mean is None


def test_the_effective_scale_of_plain_guidance_is_its_gamma_and_across_the_difference_it_is_1():
    own, null = MIXTURE.denoise(SAMPLE, LEVEL, LABELS), MIXTURE.denoise(SAMPLE, LEVEL)
    gamma = [0.0, 1.0, 2.5, 9.0]
    plain = ClassifierFreeGuidance(gamma)(MIXTURE.denoise)(SAMPLE, LEVEL, LABELS)
    expected = torch.tensor(gamma, dtype=torch.float64)
    torch.testing.assert_close(effective_scale(own, null, plain), expected, rtol=0, atol=1e-9)
    across = (own - null).flip(1) * torch.tensor([1.0, -1.0])
    ones = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(effective_scale(own, null, own + 7 * across), ones, rtol=0, atol=1e-9)
    assert effective_scale(own, own, plain).isnan().all()


def test_a_sum_recurs_as_often_as_the_most_of_its_terms():
    @dataclass(frozen=True)
    class Thrice(Corrects):
        recurrence: int = 3

    plain = ClassifierFreeGuidance(2.0)
    assert plain.recurrence == 1 and (plain + Thrice(lambda x0: x0)).recurrence == 3
