import numpy as np
import pytest
import torch

from guided_diffusers.evaluation.nearest import closest_pairs, memorisation, nearest_images


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_brute_force_whatever_the_blocks():
    queries, references = normal(37, 2, 3), normal(101, 2, 3, seed=1)
    distances = (queries[:, None] - references).flatten(2).norm(dim=2)
    expected, rows = distances.sort(dim=1)
    for blocks in ({}, {"query_block": 5, "reference_block": 7}, {"query_block": 1, "reference_block": 2}):
        found = nearest_images(queries, references, k=4, **blocks)
        assert torch.equal(found.indices, rows[:, :4])
        torch.testing.assert_close(found.distances, expected[:, :4], rtol=1e-12, atol=0)


def test_a_copy_is_at_distance_0_however_far_out():
    references = 1e4 + normal(50, 20)
    found = nearest_images(references[[7, 3]].float(), references.float())
    assert found.indices.tolist() == [[7], [3]] and found.distances.tolist() == [[0.0], [0.0]]


def test_8_bit_images_do_not_overflow():
    black, white = (
        torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
        torch.full((1, 1, 4, 4), 255, dtype=torch.uint8),
    )
    assert nearest_images(black, white).distances.item() == 4 * 255


def test_fresh_samples_are_as_far_as_held_out_ones_and_copies_are_not():
    training, held_out, fresh = (normal(400, 3, seed=seed) for seed in range(3))
    result = memorisation(fresh, training, held_out)
    assert result.ratio.low < 1 < result.ratio.high and result.copies.value < 0.05
    copying = torch.cat([fresh[:200], training[:200]])
    result = memorisation(copying, training, held_out)
    assert result.ratio.high < 0.7
    assert 0.5 <= result.copies.value < 0.55 and result.copies.count == 400
    assert torch.equal(result.generated.indices[200:, 0], torch.arange(200))
    assert memorisation(training, training, held_out).ratio.value == 0


def test_the_picture_shows_the_closest_pairs_first():
    training = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (10, 90, 200)])
    generated = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (97, 203, 30)])
    found = nearest_images(generated, training)
    picture = np.asarray(closest_pairs(generated, training, found, count=2, min_pixels=16))
    tiles = picture[27:, 194:]  # below the distances, right of the labels
    assert (tiles[:16, :16] == 203).all() and (tiles[:16, 20:36] == 97).all()
    assert (tiles[20:36, :16] == 200).all() and (tiles[20:36, 20:36] == 90).all()
    assert tiles.shape == (40, 40, 3)


def test_errors():
    with pytest.raises(ValueError, match=r"queries is .*\(2, 3\)"):
        nearest_images(normal(2, 3), normal(2, 4))
    with pytest.raises(ValueError, match="k is 3; allowed"):
        nearest_images(normal(2, 3), normal(2, 3), k=3)
    with pytest.raises(ValueError, match="held_out is .*some are not in training"):
        memorisation(normal(2, 3), normal(2, 3), normal(2, 3))
    with pytest.raises(ValueError, match="generated is .*allowed: 2 images"):
        closest_pairs(normal(3, 1, 4, 4), normal(2, 1, 4, 4), nearest_images(normal(2, 3), normal(2, 3)))
