"""Laws of the decoders' likelihoods: they are distributions, and their parts are the textbook ones."""

import math

import pytest
import torch
from scipy.stats import logistic
from torch.distributions import Normal

from guided_diffusers.core.distributions import BIN_WIDTH, bits_per_dim, dequantise
from guided_diffusers.core.randomness import rand_for, randn_for
from guided_diffusers.models.decoder_likelihoods import LIKELIHOODS, make_likelihood

LEVELS = torch.linspace(-1, 1, 256, dtype=torch.float64)


def likelihood_of(name, log_variance=None):
    likelihood = make_likelihood(name).double()
    if log_variance is not None:
        torch.nn.init.constant_(likelihood.log_variance, log_variance)
    return likelihood


@pytest.mark.parametrize("log_variance", [0.0, -5.0, -14.0])
@pytest.mark.parametrize("name", ["discretised_logistic", "discretised_gaussian"])
def test_the_masses_of_all_levels_add_to_one(name, log_variance):
    """Wide and narrow, mean inside and outside the range: the outermost bins take the tails."""
    likelihood = likelihood_of(name, log_variance)
    for mean in (-1.3, -1.0, 0.01, 0.7, 2.0):
        output = torch.full((256, 1, 1, 1), mean, dtype=torch.float64)
        log_prob = likelihood.log_prob(output, LEVELS.view(-1, 1, 1, 1))
        assert log_prob.shape == (256,) and (log_prob <= 0).all()
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_logistic_has_the_variance_it_says():
    likelihood = likelihood_of("discretised_logistic", math.log(0.01))
    output = torch.full((256, 1, 1, 1), 0.2, dtype=torch.float64)
    mass = likelihood.log_prob(output, LEVELS.view(-1, 1, 1, 1)).exp()
    scale = math.sqrt(3 * 0.01) / math.pi
    edges = torch.cat([LEVELS - BIN_WIDTH / 2, LEVELS[-1:] + BIN_WIDTH / 2])
    cumulative = torch.from_numpy(logistic.cdf(edges.numpy(), loc=0.2, scale=scale))
    cumulative[0], cumulative[-1] = 0, 1
    torch.testing.assert_close(mass.detach(), cumulative.diff(), atol=1e-12, rtol=1e-7)
    mean = (mass * LEVELS).sum()
    assert (mass * (LEVELS - mean) ** 2).sum().item() == pytest.approx(0.01, rel=2e-2)


def test_black_and_white_have_probability_one_together_and_the_mean_is_their_mean():
    likelihood, logits = likelihood_of("bernoulli"), torch.tensor([-3.0, 0.0, 5.0]).double().view(3, 1, 1, 1)
    white, black = (
        likelihood.log_prob(logits, torch.full((3, 1, 1, 1), x).double()).exp() for x in (1.0, -1.0)
    )
    torch.testing.assert_close(white + black, torch.ones(3).double())
    torch.testing.assert_close(likelihood.mean(logits).flatten(), white - black)
    assert not list(likelihood.parameters())


def test_the_gaussian_is_the_textbook_density_of_whole_images():
    likelihood = likelihood_of("gaussian", -2.0)
    output, images = (randn_for(seed, range(3), (2, 4, 5), dtype=torch.float64) for seed in (0, 1))
    expected = Normal(output, math.exp(-1.0)).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(output, images), expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_sum_runs_in_the_images_precision_and_gradients_agree_with_differences(name):
    likelihood = likelihood_of(name)
    output = randn_for(0, range(2), (1, 3, 3), dtype=torch.float64).requires_grad_()
    images = LEVELS[torch.arange(18) * 15 % 256].view(2, 1, 3, 3)  # both ends are among them
    assert images.min() == -1

    def loss(output, *parameters):
        return likelihood.log_prob(output, images)

    assert torch.autograd.gradcheck(loss, (output, *likelihood.parameters()))
    single = likelihood.float()
    assert single.log_prob(output.bfloat16(), images.bfloat16()).dtype == torch.float32
    assert single.log_prob(output, images).dtype == torch.float64


def test_bits_of_a_narrow_density_and_of_its_discretisation_agree():
    """In the unit of 8-bit images: the density of dequantised images is a bound on the probability."""
    images = LEVELS[torch.arange(640) % 200 + 28].view(10, 1, 8, 8)
    output = images + 0.1 * randn_for(0, range(10), (1, 8, 8), dtype=torch.float64)
    density, mass = (likelihood_of(name, math.log(0.01)) for name in ("gaussian", "discretised_gaussian"))
    noisy = dequantise(images, rand_for(0, range(10), (1, 8, 8), dtype=torch.float64))
    one, other = (
        likelihood.bits_per_dim(likelihood.log_prob(output, x), 64).mean().item()
        for likelihood, x in ((density, noisy), (mass, images))
    )
    assert one == pytest.approx(other, abs=0.03) and 4 < one < 6
    assert density.is_density and not mass.is_density


def test_bits_by_hand():
    assert bits_per_dim(torch.tensor(-100 * math.log(256)), 100, False).item() == pytest.approx(8)
    uniform = torch.tensor(-100 * math.log(256 * BIN_WIDTH))  # the uniform density over all bins
    assert bits_per_dim(uniform, 100, True).item() == pytest.approx(8)


def test_noise_fills_the_bins_and_no_more():
    images = LEVELS[[0, 128, 255]].view(3, 1, 1, 1).expand(3, 1, 50, 50)
    noise = dequantise(images, rand_for(0, range(3), (1, 50, 50), dtype=torch.float64)) - images
    assert noise.abs().max() <= BIN_WIDTH / 2 and noise.std().item() == pytest.approx(
        BIN_WIDTH / 12**0.5, rel=0.05
    )


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="likelihood is 'poisson'; allowed: 'gaussian', 'bernoulli'"):
        make_likelihood("poisson")
