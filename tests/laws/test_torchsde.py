"""The two schedulers that diffusers has only where torchsde is installed: their noise is a Brownian path."""

from __future__ import annotations

import diffusers
import pytest
import torch
from laws.cases import SHORT
from laws.exact import draw, exact_denoiser, exact_log_prob

from guided_diffusers import noise_level, sampling_loop
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS
from guided_diffusers.schedulers.timesteps import set_timesteps

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


@pytest.mark.parametrize("several", [False, True])
def test_the_noise_of_a_run_is_its_generators(several: bool) -> None:
    """As of any other: the same seed draws the same, a used generator goes on, one an image is its own."""
    scheduler = diffusers.DPMSolverSDEScheduler(**SHORT)

    def run(generator, noise=draw(2, 2)):  # noqa: B008
        return sampling_loop(exact_denoiser(), scheduler, noise, num_inference_steps=6, generator=generator)

    def seeded(*seeds):
        made = [torch.Generator().manual_seed(seed) for seed in seeds]
        return made if several else made[0]

    generator = seeded(1, 2)
    first = run(generator)
    torch.testing.assert_close(first, run(seeded(1, 2)), rtol=0, atol=0)
    for other in (run(generator), run(seeded(3, 4)), run(None), run(None)):
        assert (other - first).abs().max() > 1e-3
    if several:
        torch.testing.assert_close(first[1:], run(seeded(2), draw(2, 2)[1:]), rtol=0, atol=1e-12)
    scheduler = diffusers.DPMSolverSDEScheduler(noise_sampler_seed=3, **SHORT)
    torch.testing.assert_close(run(seeded(1, 2)), run(None), rtol=0, atol=0)
