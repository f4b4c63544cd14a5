import pytest
import torch

from guided_diffusers.core.randomness import generator_for, rand_for, randn_for, seed_for


def test_seeds_are_a_fixed_function_of_seed_and_index():
    """The published first output of SplitMix64 from state 0 is what the hash makes of 0."""
    first = 0xE220A8397B1DCDAF  # SplitMix64's first output from state 0
    assert seed_for(0, first) == first >> 1  # mix(mix(0) ^ first) = mix(0)
    assert 0 <= seed_for(-5, 10**30) < 2**63


def test_near_seeds_and_indices_do_not_collide_or_correlate():
    seeds = [seed_for(seed, index) for seed in range(64) for index in range(64)]
    assert len(set(seeds)) == 64 * 64
    bits = torch.tensor([[(seed >> bit) & 1 for bit in range(63)] for seed in seeds], dtype=torch.float64)
    assert (bits.mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 64  # each bit is set in half of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_samples_noise_depends_on_its_index_alone(dtype):
    together = randn_for(3, range(6), (2, 4), dtype=dtype)
    assert together.shape == (6, 2, 4) and together.dtype == dtype
    assert together.flatten(1).unique(dim=0).shape[0] == 6
    for indices in ([0], [5, 2], [1, 3, 4]):
        assert torch.equal(randn_for(3, indices, (2, 4), dtype=dtype), together[indices])
    assert not torch.equal(randn_for(4, range(6), (2, 4), dtype=dtype), together)
    own = torch.randn(2, 4, generator=generator_for(3, 5), dtype=dtype)
    assert torch.equal(own, together[5])


def test_it_is_standard_normal():
    noise = randn_for(0, range(500), (8, 8)).double()
    count = noise.numel()
    assert abs(noise.mean()) < 4.5 / count**0.5
    assert abs(noise.var() - 1) < 4.5 * (2 / count) ** 0.5


def test_uniform_numbers_are_uniform_and_depend_on_the_index_alone():
    numbers = rand_for(0, range(500), (8, 8), dtype=torch.float64)
    assert 0 <= numbers.min() and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4.5 * (1 / 12 / numbers.numel()) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 4.5 * (1 / 180 / numbers.numel()) ** 0.5
    assert torch.equal(rand_for(0, [7, 3], (8, 8), dtype=torch.float64), numbers[[7, 3]])


def test_no_samples_give_an_empty_batch():
    assert randn_for(0, [], (3, 4)).shape == (0, 3, 4)
