"""Bayes' rule: the exact classifier at scale 1 makes the unconditional model the conditional one."""

from __future__ import annotations

import pytest
import torch
from laws.cases import CASES, Case
from laws.mixture import MixtureClassifier, MixtureNetwork, levels_of, log_prob_of

from guided_diffusers import Condition, ModelDenoiser, sampling_loop
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS
from guided_diffusers.schedulers.timesteps import set_timesteps

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_every_supported_scheduler_is_here() -> None:
    names = {case.scheduler.__name__ for case in CASES}
    elsewhere = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}  # laws.test_torchsde
    assert names == {*SUPPORTED_SCHEDULERS, "GuidedDDPMScheduler", "GuidedDDIMScheduler"} - elsewhere
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_classifier_guidance_at_scale_1_is_the_conditional_model(case: Case) -> None:
    listed = case.make()
    set_timesteps(listed, case.steps, sigmas=case.sigmas)
    levels = levels_of(listed, case.coordinates)
    denoiser = ModelDenoiser(MixtureNetwork(levels, case.written), case.written)
    guidance = ClassifierGuidance(log_prob_of(MixtureClassifier(levels), LABELS), 1.0)
    noise = torch.randn(len(LABELS), 2, dtype=case.dtype, generator=torch.Generator().manual_seed(1))

    def run(denoiser, condition):
        generator = torch.Generator().manual_seed(2)
        how = {"sigmas": case.sigmas, "generator": generator, "step_kwargs": case.step_kwargs}
        return sampling_loop(denoiser, case.make(), noise, condition, case.steps, **how)

    conditional = run(denoiser, Condition({"class_labels": LABELS}))
    guided = run(guidance(denoiser), None)

    assert conditional.dtype == case.dtype and conditional.isfinite().all()
    torch.testing.assert_close(guided, conditional, rtol=0, atol=case.tolerance)
