"""A denoiser that knows the image: whatever the scheduler, the path ends at it.

The law compares the schedulers' own reading of the network's output with this package's table: were a noise
level or a row wrong, the sampler would see another x_0 than the denoiser's, and end elsewhere.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from laws.cases import CASES, Case

from guided_diffusers import sampling_loop
from guided_diffusers.schedulers import next_noise_level, noise_level

IMAGE = torch.tensor([[0.8, -1.3], [2.0, 0.1], [-0.4, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_ends_at_the_image_that_the_denoiser_knows(case: Case) -> None:
    scheduler, image = case.make(), IMAGE.to(case.dtype)
    noise = torch.randn(3, 2, dtype=case.dtype, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    how = {"sigmas": case.sigmas, "generator": generator, "step_kwargs": case.step_kwargs}

    ended = sampling_loop(lambda sample, level, condition: image, scheduler, noise, None, case.steps, **how)

    start, end = (
        noise_level(scheduler, scheduler.timesteps[0]),
        next_noise_level(scheduler, len(scheduler.timesteps) - 1),
    )
    epsilon = (noise * getattr(scheduler, "init_noise_sigma", 1.0) - start.alpha * image) / start.sigma
    left = 0 if end.sigma == 0 else end.sigma * epsilon  # some schedulers stop short of the clean end
    # PNDM averages outputs of different noise levels, IPNDM's first step is blind; the others are exact on
    # straight paths.
    tolerance = 0.1 if isinstance(scheduler, diffusers.PNDMScheduler) else 2e-5
    tolerance = 1e-4 if isinstance(scheduler, diffusers.IPNDMScheduler) else tolerance
    if case.ends_in_noise:
        left, tolerance = 0, 4 * float(end.sigma)
        assert 0 < tolerance < 0.2
    torch.testing.assert_close(ended, (end.alpha * image + left).to(case.dtype), rtol=0, atol=tolerance)
