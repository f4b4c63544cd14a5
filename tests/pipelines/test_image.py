"""ImagePipeline: diffusers' DDPMPipeline where that has an answer, and any scheduler."""

import pytest
import torch
from diffusers import DDPMPipeline, EulerDiscreteScheduler, UNet2DModel

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler, ImagePipeline


def unet(channels=1, outputs=None, **overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=outputs or channels,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **overrides,
        ).eval()


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
