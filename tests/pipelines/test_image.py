"""ImagePipeline: diffusers' DDPMPipeline where that has an answer, and any scheduler."""

import pytest
import torch
from diffusers import DDPMPipeline, EulerDiscreteScheduler
from tiny_classifier import tiny_image_unet as unet

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler, ImagePipeline


def drawn(pipeline, steps=4, **kwargs):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline(2, generator=generator, num_inference_steps=steps, **kwargs).images


@pytest.mark.parametrize(
    ("variance_type", "outputs"), [("fixed_small", 1), ("fixed_large", 1), ("learned_range", 2)]
)
def test_it_draws_what_diffusers_pipeline_draws(variance_type, outputs):
    network, scheduler = unet(outputs=outputs), GuidedDDPMScheduler(variance_type=variance_type)
    ours = drawn(ImagePipeline(network, scheduler), output_type="np")
    theirs = drawn(DDPMPipeline(network, scheduler), output_type="np")
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler", [GuidedDDIMScheduler(), EulerDiscreteScheduler()], ids=["ddim", "euler"]
)
def test_any_scheduler(scheduler):
    images = drawn(ImagePipeline(unet(), scheduler), output_type="pt")
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all() and images.std() > 0.01
