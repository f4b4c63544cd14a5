import math

import pytest
import torch

from guided_diffusers.evaluation.diversity import mean_pairwise_distance, prompt_diversity


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_mean_over_prompts_of_the_mean_over_pairs():
    features = torch.tensor([[0.0, 0], [3, 4], [0, 0], [6, 8], [1, 1], [1, 1], [9, 9]])
    result = prompt_diversity(features, ["a", "a", "a", "a", "b", "b", "alone"])
    # a: pairs (0,1)=5 (0,2)=0 (0,3)=10 (1,2)=5 (1,3)=5 (2,3)=10
    assert result.per_prompt == {"a": pytest.approx(35 / 6), "b": 0.0}
    assert result.overall.value == pytest.approx(35 / 12) and result.overall.count == 2


def test_of_gaussians_it_is_the_known_distance():
    """|x - y| of two N(0, s^2 I_d) is sqrt(2) s times a chi variable of d degrees."""
    spread, d = 1.7, 6
    prompts = torch.arange(200).repeat_interleave(10)
    centres = 50 * normal(200, d, seed=3)
    features = centres[prompts] + spread * normal(2000, d)
    expected = 2 * spread * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    result = prompt_diversity(features, prompts)
    assert result.overall.value == pytest.approx(expected, rel=0.02)
    assert result.overall.low < expected < result.overall.high
    assert result.overall.high - result.overall.low < 0.1 * expected


def test_order_does_not_matter():
    features, prompts = normal(40, 3), torch.arange(40) % 5
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = prompt_diversity(features[order], prompts[order]).per_prompt
    assert shuffled == pytest.approx(prompt_diversity(features, prompts).per_prompt)


def test_one_prompt_has_a_point_for_an_interval():
    overall = prompt_diversity(normal(5, 3), ["a"] * 5).overall
    assert overall.low == pytest.approx(overall.value) and overall.high == pytest.approx(overall.value)


def test_errors():
    with pytest.raises(ValueError, match="there twice"):
        prompt_diversity(normal(2, 3), ["a", "b"])
    with pytest.raises(ValueError, match="prompts is .*; allowed: 2 prompts"):
        prompt_diversity(normal(2, 3), ["a", "b", "b"])
    with pytest.raises(ValueError, match="count >= 2"):
        mean_pairwise_distance(normal(1, 3))
