"""A seed means one picture in every precision."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import PIPELINES, drawn

from guided_diffusers.pipelines.drawing import noise_of


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_draws_in_bfloat16_what_it_draws_in_float32(name):
    build, positional, arguments = PIPELINES[name]
    full = drawn(build(), *positional, **arguments)
    half = drawn(build().to(torch.bfloat16), *positional, **arguments)
    assert full.std() > 0.05 and 0 < (half - full).abs().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_is_that_of_float32(dtype):
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    expected = torch.cat([torch.randn(1, 3, 8, 8, generator=generator) for generator in generators()])
    assert torch.equal(noise_of((2, 3, 8, 8), generators(), torch.device("cpu"), dtype), expected)


def test_noise_of_networks_in_float64_is_in_float64():
    assert noise_of((1, 4), None, torch.device("cpu"), torch.float64).dtype == torch.float64
