"""Cascades of exact stages: of a Gaussian whose joint of small and large picture is known they draw it.

x is a picture of 2 x 2 with covariance S, z = A x its area average, and the upsampler's network is the exact
E[x | x_t, z_s]: linear in what it sees, at every level of x_t and every level s of the small picture's noise.
"""

import torch
from diffusers import ConfigMixin, DDPMScheduler, DPMSolverMultistepScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config

from guided_diffusers import CascadePipeline, GuidedDDIMScheduler, ImagePipeline, UpsamplePipeline
from guided_diffusers.models.super_resolution import area_averaged

FACTOR = 0.3 * torch.tensor(
    [[1.0, 0.2, 0.1, 0], [0.5, 0.8, 0, 0.1], [0.3, 0, 0.6, 0.2], [0.1, 0.4, 0.2, 0.9]], dtype=torch.float64
)
S, A = FACTOR @ FACTOR.T, torch.full((1, 4), 0.25, dtype=torch.float64)
SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "timestep_spacing": "trailing"}
COUNT, STEPS = 20_000, 60


class Exact(ModelMixin, ConfigMixin):
    """E[x | what is seen] of a Gaussian: of x_t alone, or of x_t and the small picture."""

    class_embedding = None

    @register_to_config
    def __init__(self, in_channels: int = 2, sample_size: int = 2, plain: bool = False) -> None:
        super().__init__()
        self.register_to_config(out_channels=1, block_out_channels=(1,), num_class_embeds=None)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.abar = GuidedDDIMScheduler(**SCHEDULE).alphas_cumprod.double()

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        seen, abar = sample.double(), self.abar[int(timestep)]
        if self.config.in_channels == 1:  # the base, of z alone
            gain = abar.sqrt() * (A @ S @ A.T) / (abar * A @ S @ A.T + 1 - abar)
            return ((gain * seen.flatten(1)).reshape(sample.shape).to(sample),)
        small = 1.0 if class_labels is None or not class_labels[0] else self.abar[int(class_labels[0])].item()
        rows = torch.cat([abar.sqrt() * torch.eye(4), small**0.5 * A])
        noise = torch.diag(torch.cat([(1 - abar).expand(4), torch.tensor([1 - small])]))
        gain = S @ rows.T @ torch.linalg.inv(rows @ S @ rows.T + noise)
        told = torch.cat([seen[:, 0].flatten(1), seen[:, 1, :1, 0]], dim=1)
        return ((told @ gain.T).reshape(-1, 1, 2, 2).to(sample),)


def scheduler():
    return DPMSolverMultistepScheduler(**SCHEDULE)  # of second order: the rest is the noise of the samples


def upsampler(level, **overrides):
    low_res = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    options = {"low_res_scheduler": low_res, "max_noise_level": 900, "augmentation_level": level}
    pipeline = UpsamplePipeline(
        Exact(), scheduler(), scale=2, num_inference_steps=STEPS, **{**options, **overrides}
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(level):
    """Small and large pictures, (COUNT, 1) and (COUNT, 4)."""
    base = ImagePipeline(Exact(in_channels=1, sample_size=1), scheduler())
    cascade = CascadePipeline([base, upsampler(level)], num_inference_steps=STEPS)
    cascade.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = cascade(batch_size=COUNT, generator=generator, output_type="latent", return_stages=True)
    return 2 * out.stages[0].double().flatten(1) - 1, out.images.double().flatten(1)


def test_the_cascade_draws_the_joint():
    joint = torch.cat([torch.cat([A @ S @ A.T, A @ S], dim=1), torch.cat([S @ A.T, S], dim=1)])
    found = torch.cat(drawn(0), dim=1)
    assert found.mean(0).abs().max() < 0.01
    torch.testing.assert_close(found.T.cov(), joint, atol=0.03 * S.diag().max().item(), rtol=0)


def test_at_any_level_of_augmentation_large_pictures_are_the_datas():
    """x | z_s and z_s | z: the marginal is right, and at a high level x says little of z."""
    small, large = drawn(600)
    torch.testing.assert_close(large.T.cov(), S, atol=0.03 * S.diag().max().item(), rtol=0)
    assert (area_averaged(large.reshape(-1, 1, 2, 2), 2).flatten(1) - small).std() > 0.5 * small.std()


def test_at_level_0_the_small_picture_is_kept_and_the_rest_is_the_conditional():
    noise = torch.randn(COUNT, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    picture = torch.full((COUNT, 1, 1, 1), 0.55)
    images = upsampler(0)(picture, output_type="latent", latents=noise).images
    plain = upsampler(0, low_res_scheduler=None)(picture, output_type="latent", latents=noise).images
    assert torch.equal(images, plain)
    large, z = images.double().flatten(1), torch.tensor([0.1], dtype=torch.float64)
    gain = S @ A.T / (A @ S @ A.T)
    torch.testing.assert_close(large @ A.T, z.expand(COUNT, 1), atol=0.005, rtol=0)
    torch.testing.assert_close(large.mean(0), gain @ z, atol=0.01, rtol=0)
    torch.testing.assert_close(large.T.cov(), S - gain @ A @ S, atol=0.03 * S.diag().max().item(), rtol=0)
