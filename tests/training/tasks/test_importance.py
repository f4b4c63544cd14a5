"""Importance-sampled timesteps: the history, its distribution, and a mean that stays unbiased."""

import pytest
import torch

from guided_diffusers.training.tasks.importance import ImportanceSampler

LOSSES = torch.tensor([50.0, 5.0, 1.0, 0.5, 0.1])


def warmed(history=10):
    sampler = ImportanceSampler(len(LOSSES), history)
    for _ in range(history):
        sampler.update(torch.arange(len(LOSSES)), LOSSES)
    return sampler


def test_it_is_uniform_until_every_history_is_full():
    sampler = ImportanceSampler(5, history=3)
    for _ in range(3):
        assert not sampler.warm and torch.equal(
            sampler.probabilities(), torch.full((5,), 0.2, dtype=torch.float64)
        )
        sampler.update(torch.tensor([0, 1, 2, 3]), torch.tensor([9.0, 1.0, 1.0, 1.0]))
    sampler.update(torch.tensor([4, 4]), torch.tensor([1.0, 1.0]))
    assert not sampler.warm
    sampler.update(torch.tensor([4]), torch.tensor([1.0]))
    assert sampler.warm and sampler.probabilities()[0] > 0.6


def test_probabilities_are_proportional_to_the_root_of_the_mean_square():
    sampler = ImportanceSampler(2, history=2, uniform_share=1e-9)
    sampler.update(torch.tensor([0, 0, 1, 1]), torch.tensor([3.0, 4.0, 1.0, 1.0]))
    expected = torch.tensor([12.5**0.5, 1.0]).double()
    torch.testing.assert_close(sampler.probabilities(), expected / expected.sum(), rtol=1e-6, atol=0)


def test_the_oldest_loss_makes_room():
    sampler = ImportanceSampler(2, history=2, uniform_share=1e-9)
    sampler.update(torch.tensor([0, 0, 1, 1]), torch.tensor([100.0, 1.0, 1.0, 1.0]))
    sampler.update(torch.tensor([0]), torch.tensor([1.0]))
    torch.testing.assert_close(sampler.probabilities(), torch.full((2,), 0.5).double())


def test_every_timestep_keeps_its_share():
    assert warmed().probabilities().min() >= 0.001 / len(LOSSES)
    assert warmed().probabilities().sum() == pytest.approx(1)


def test_the_weighted_mean_is_unbiased_and_steadier_than_the_uniform_one():
    """Over an even grid of the uniform numbers the mean is an integral, exact but for the cells' borders."""
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    losses = LOSSES.double() * torch.tensor([1.1, 0.7, 1.3, 1.0, 0.9])  # not those of the history
    timesteps, weights = warmed().draw(grid)
    assert (weights * losses[timesteps]).mean().item() == pytest.approx(losses.mean().item(), rel=1e-4)
    plain, _ = ImportanceSampler(5).draw(grid)
    assert (weights * losses[timesteps]).std() < 0.3 * losses[plain].std()


def test_it_draws_by_its_probabilities_up_to_the_ends():
    sampler = warmed()
    timesteps, weights = sampler.draw(torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    shares = torch.bincount(timesteps, minlength=5) / len(timesteps)
    torch.testing.assert_close(shares.double(), sampler.probabilities(), atol=0.005, rtol=0)
    ends, _ = sampler.draw(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.tolist() == [0, 4]
    torch.testing.assert_close(weights, 1 / (5 * sampler.probabilities()[timesteps]))


def test_its_state_is_a_modules():
    sampler, other = warmed(), ImportanceSampler(5)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.probabilities(), sampler.probabilities()) and not list(sampler.parameters())
    for each in (sampler, other):
        each.update(torch.tensor([3, 3]), torch.tensor([7.0, 8.0]))
    assert torch.equal(other.probabilities(), sampler.probabilities())


@pytest.mark.parametrize(
    ("arguments", "words"), [((0,), "timesteps"), ((3, 0), "history"), ((3, 1, 0.0), "uniform_share is|must")]
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ImportanceSampler(*arguments)
