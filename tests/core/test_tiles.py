"""Tiles: what a denoiser says of each position alone is what it says of the whole."""

import pytest
import torch
from torch.nn import functional

from guided_diffusers import Condition, Denoised, NoiseLevel
from guided_diffusers.core.tiles import TiledDenoiser
from guided_diffusers.guidance import ClassifierFreeGuidance

LEVEL = NoiseLevel(alpha=0.6, sigma=0.8, timestep=3)


def pointwise(sample, level, condition=None):
    """Of each position alone: its tiles agree wherever they overlap."""
    x0 = sample.tanh() * (2 if condition is None else condition.positive["map"])
    return Denoised(x0, sample.square())


@pytest.mark.parametrize(("side", "overlap", "unit"), [(16, 4, 1), (16, 8, 4), (8, 4, 4), (64, 8, 8)])
def test_of_a_pointwise_denoiser_tiles_are_the_whole(side, overlap, unit):
    sample, maps = torch.randn(2, 3, 40, 24, dtype=torch.float64), torch.randn(2, 2, 3, 40, 24)
    condition = Condition({"map": maps[0], "other": 5}, {"map": maps[1], "other": 5})
    tiled = TiledDenoiser(pointwise, side, overlap, unit, ["map"])
    for told in (None, condition):
        whole, parts = pointwise(sample, LEVEL, told), tiled(sample, LEVEL, told)
        torch.testing.assert_close(parts.x0, whole.x0)
        torch.testing.assert_close(parts.extra, whole.extra)
    guide = ClassifierFreeGuidance(3.0)
    torch.testing.assert_close(
        guide(tiled)(sample, LEVEL, condition), guide(pointwise)(sample, LEVEL, condition)
    )


def test_each_tile_is_asked_once_and_is_of_the_size():
    seen = []

    def watched(sample, level, condition=None):
        seen.append(tuple(sample.shape[2:]))
        return sample

    TiledDenoiser(watched, 16, 4, 4)(torch.zeros(1, 1, 40, 12), LEVEL)
    assert seen == [(16, 12)] * 3


def test_no_seam_where_tiles_disagree():
    """A denoiser that sees its surroundings: the step across a tile's border is as elsewhere."""

    def surroundings(sample, level, condition=None):
        return functional.avg_pool2d(sample, 9, 1, 4)  # at a tile's border it sees zeros

    sample = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    whole = surroundings(sample, LEVEL)
    error = (TiledDenoiser(surroundings, 48, 24, 1)(sample, LEVEL).x0 - whole).abs()[..., 8:-8, 8:-8]
    steps = error.diff(dim=-1).abs()
    assert steps.max() < 0.06 < whole.mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((17, 4, 2), "tile_size is 17"), ((16, 0, 1), "tile_overlap is 0"), ((16, 16, 1), "tile_overlap is 16")],
)
def test_tiles_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TiledDenoiser(pointwise, *arguments)
