"""The two schedulers that diffusers has only where torchsde is installed: their noise is a Brownian path."""

from __future__ import annotations

import diffusers
import pytest
import torch
from laws.cases import SHORT
from laws.exact import draw, exact_denoiser, exact_log_prob

from guided_diffusers import noise_level, sampling_loop
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.sampling import set_timesteps
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS

pytest.importorskip("torchsde")
pytestmark = pytest.mark.filterwarnings("ignore:Should have t")  # torchsde, of roundings of sigma_min

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
MADE = {
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 3, **SHORT},
    "CosineDPMSolverMultistepScheduler": {},
}


@pytest.mark.parametrize("name", MADE)
def test_the_laws(name: str) -> None:
    """It ends at a known image, Bayes' rule holds, and the network sees what scale_model_input makes."""

    def run(denoiser, condition=None):
        scheduler, generator = getattr(diffusers, name)(**MADE[name]), torch.Generator().manual_seed(2)
        return sampling_loop(denoiser, scheduler, draw(6, 2), condition, 6, generator=generator)

    image = draw(6, 2, seed=5)
    torch.testing.assert_close(run(lambda sample, level, condition: image), image, rtol=0, atol=1e-6)
    guided = run(ClassifierGuidance(exact_log_prob(LABELS), 1.0)(exact_denoiser()))
    torch.testing.assert_close(guided, run(exact_denoiser(), LABELS), rtol=0, atol=1e-9)

    scheduler, sample = getattr(diffusers, name)(**MADE[name]), torch.ones(1, 2, dtype=torch.float64)
    set_timesteps(scheduler, 6)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        ours = noise_level(scheduler, timestep).input_scale * sample
        torch.testing.assert_close(scaled, ours, rtol=1e-6, atol=0)
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample
    assert name in SUPPORTED_SCHEDULERS
