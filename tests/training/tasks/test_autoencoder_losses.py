"""The terms of the autoencoder's loss, against closed forms and cases worked by hand."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from guided_diffusers.models.discriminator import PatchDiscriminator
from guided_diffusers.training.tasks import autoencoder_losses as losses
from guided_diffusers.training.tasks.autoencoder_measures import psnr


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_errors_by_hand():
    images = torch.zeros(1, 1, 1, 4)
    output = torch.tensor([1.0, -3.0, 0.0, 0.0]).view(1, 1, 1, 4)
    for squared, expected in ((0.0, 1.0), (1.0, 2.5), (0.25, 0.75 * 1 + 0.25 * 2.5)):
        assert losses.reconstruction_loss(output, images, squared).item() == pytest.approx(expected)


def test_the_divergence_is_the_closed_form_summed_over_each_image():
    mean, logvar = rand(3, 4, 2, 2), rand(3, 4, 2, 2, seed=1)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(losses.kl_per_image(mean, logvar), expected)
    assert losses.kl_per_image(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)).tolist() == [0, 0]


def test_the_divergence_agrees_with_diffusers():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    posterior = DiagonalGaussianDistribution(rand(3, 8, 2, 2))
    torch.testing.assert_close(losses.kl_per_image(posterior.mean, posterior.logvar), posterior.kl())


def test_a_weight_for_summed_errors_converts():
    """mean error + w' KL is (sum over pixels + w KL) / (C H W), image by image."""
    output, images, kl = rand(2, 3, 8, 4), rand(2, 3, 8, 4, seed=1), torch.tensor(50.0)
    summed = (output - images).abs().flatten(1).sum(1).mean() + 0.5 * kl
    ours = losses.reconstruction_loss(output, images) + losses.kl_weight_from_sum(0.5, 3, 8, 4) * kl
    torch.testing.assert_close(ours * 3 * 8 * 4, summed)


def test_the_laplacian_by_hand():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 4.0
    expected = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    assert torch.equal(losses.laplacian(image)[0, 0], expected)
    rows = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 2, 6, 7)
    assert losses.laplacian(rows).abs().max() == 0  # a slope is no detail


def test_the_detail_loss_forgives_phase_and_not_blur():
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 1, 16, 16)
    shifted, blurred = stripes.roll(1, -1), 0.5 * stripes
    assert losses.detail_loss(stripes, stripes) == 0
    assert losses.detail_loss(shifted, stripes) < 1e-6
    assert losses.detail_loss(blurred, stripes) > 0.3
    assert (shifted - stripes).abs().mean() > (
        blurred - stripes
    ).abs().mean()  # a pixelwise error says the opposite


def test_the_gain_moves_the_target_of_the_detail_loss():
    images = rand(1, 1, 16, 16)
    strengths = [
        losses.detail_loss(scale * images, images, gain=1.2).item() for scale in (1.0, 1.1, 1.2, 1.3)
    ]
    assert min(strengths) == strengths[2] < 1e-3 and losses.detail_loss(images, images) == 0


def test_the_detail_loss_has_gradients_at_flat_images():
    flat = torch.zeros(1, 1, 8, 8, requires_grad=True)
    losses.detail_loss(flat, rand(1, 1, 8, 8)).backward()
    assert flat.grad.isfinite().all()


def test_the_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert losses.adversarial_loss(fake).item() == pytest.approx(1.0)
    assert losses.discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0


def test_the_adaptive_weight_by_hand():
    """For loss_i = a_i . w the gradients are a_i: the weight is |a_1| / (|a_2| + 1e-4)."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstruction = (torch.tensor([3.0, 4.0]) * weight).sum()
    adversarial = (torch.tensor([0.0, 2.0]) * weight).sum()
    ratio = losses.adaptive_weight(reconstruction, adversarial, weight)
    assert ratio.item() == pytest.approx(5 / (2 + 1e-4)) and not ratio.requires_grad
    assert losses.adaptive_weight(reconstruction, 0 * adversarial, weight, maximum=7.0).item() == 7.0
    (reconstruction + ratio * adversarial).backward()  # the graph is still there
    torch.testing.assert_close(weight.grad, torch.tensor([3.0, 4.0]) + ratio * torch.tensor([0.0, 2.0]))


def test_psnr_by_hand():
    images = torch.zeros(2, 1, 4, 4)
    output = images + torch.tensor([0.2, 2.0]).view(2, 1, 1, 1)
    assert psnr(output, images).tolist() == pytest.approx(
        [20.0, 20 * math.log10(2)]
    )  # the second is clamped to 1


def test_the_discriminator_sees_patches_and_each_image_alone(tmp_path):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(in_channels=1, base_channels=8, num_layers=2, norm_num_groups=4).eval()
    images = rand(3, 1, 32, 32)
    logits = discriminator(images)
    assert logits.shape == (3, 1, 8, 8)
    torch.testing.assert_close(discriminator(images[1:2]), logits[1:2], atol=1e-5, rtol=1e-4)
    discriminator.save_pretrained(tmp_path)
    assert torch.equal(PatchDiscriminator.from_pretrained(tmp_path)(images), logits)


def test_the_discriminator_widens_up_to_four_times():
    widths = [
        layer.out_channels for layer in PatchDiscriminator(3, 8, 4).modules() if isinstance(layer, nn.Conv2d)
    ]
    assert widths == [8, 16, 32, 32, 32, 1]
    with pytest.raises(ValueError, match="num_layers is 0"):
        PatchDiscriminator(num_layers=0)
