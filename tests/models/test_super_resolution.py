"""What an upsampler sees: channels, areas, blur, levels."""

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import tiny_autoencoder

from guided_diffusers.models.super_resolution import (
    Augmentation,
    Channels,
    SuperResolutionNetwork,
    area_averaged,
    blurred,
    scaled_up,
)


def test_channels_are_shared_out_by_the_configuration():
    def of(seen, drawn, vae=None):
        found = Channels.of({"in_channels": seen, "out_channels": drawn}, vae)
        return found.sample, found.picture, found.told

    assert of(6, 3) == (3, 3, False)
    assert of(6, 6) == (3, 3, False)
    assert of(7, 3) == (3, 3, True)
    assert of(3, 2, tiny_autoencoder()) == (2, 1, False)
    assert of(4, 4, tiny_autoencoder()) == (2, 1, True)
    for wrong in ((3, 3), (8, 3), (6, 4), (5, 2, tiny_autoencoder())):
        with pytest.raises(ValueError, match="unet has in_channels"):
            of(*wrong)


def test_the_level_is_a_channel_where_labels_are_classes():
    channels = Channels(sample=1, picture=1, told=True)
    picture, sigma = torch.randn(2, 1, 4, 4), torch.tensor([0.0, 0.5])
    seen = channels.beside(picture, (8, 8), sigma)
    assert seen.shape == (2, 2, 8, 8)
    assert torch.equal(seen[:, :1], scaled_up(picture, (8, 8)))
    assert torch.equal(seen[:, 1], sigma[:, None, None].expand(2, 8, 8))
    assert not channels.beside(picture, (8, 8), None)[:, 1].any()


def test_a_picture_is_beside_the_sample():
    class Seen(torch.nn.Module):
        def forward(self, sample, timestep, extra):
            return sample, timestep, extra

    sample, beside = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.randn(1, 1, 4, 4)
    seen, *rest = SuperResolutionNetwork(Seen())(sample, 7, low_res=beside, extra=3)
    assert torch.equal(seen, torch.cat([sample, beside.double()], dim=1)) and rest == [7, 3]


def test_areas_and_blur():
    picture = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert area_averaged(picture, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    point = torch.zeros(2, 1, 5, 5)
    point[:, :, 2, 2] = 1
    kernel = torch.exp(-0.5 * torch.tensor([-1.0, 0, 1]) ** 2 / 0.36)
    kernel = kernel / kernel.sum()
    out = blurred(point, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(out[0, 0, 1:4, 1:4], kernel[:, None] * kernel)
    assert torch.equal(out[1], point[1])
    torch.testing.assert_close(blurred(torch.ones(1, 1, 3, 3), torch.tensor([0.5])), torch.ones(1, 1, 3, 3))


def test_levels_are_timesteps_and_0_is_none():
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    levels = torch.tensor([0, 1, 350])
    at = Augmentation(scheduler, 350).at(levels)
    assert at.alpha[0] == 1 and at.sigma[0] == 0 and torch.equal(at.timestep, levels)
    torch.testing.assert_close(
        at.alpha[1:] ** 2, scheduler.alphas_cumprod[[1, 350]].double(), rtol=1e-6, atol=0
    )
    with pytest.raises(ValueError, match="max_noise_level is 1000"):
        Augmentation(scheduler, 1000)
