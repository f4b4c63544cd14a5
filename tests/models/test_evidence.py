"""The evidence bound and the estimates of log p(x), on a model that is known exactly and on real ones."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from guided_diffusers import VariationalAutoencoder
from guided_diffusers.models.decoder_likelihoods import LIKELIHOODS
from guided_diffusers.models.evidence import bound_of

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (2, 4),
    "norm_num_groups": 2,
    "latent_channels": 2,
    "sample_size": 8,
    "mid_block_add_attention": False,
}


def tiny(latent="vector", likelihood="gaussian", seed=0, **overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VariationalAutoencoder(
            **{**TINY, "latent": latent, "likelihood": likelihood, **overrides}
        ).eval()


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearGaussian:
    """The real class as x = W z + b + deviation x noise: log p(x) and p(z | x) in closed form.

    q has the exact mean, moved a little, and independent components where p(z | x) has none.
    """

    width, variance, bias = 8, 0.1, 0.2

    def __init__(self):
        width, eye = self.width, torch.eye(self.width, dtype=torch.float64)
        W = 0.3 * randn(64, width)
        precision = eye + W.T @ W / self.variance
        gain, q_log_variance = precision.inverse() @ W.T / self.variance, -precision.diagonal().log()
        shift = 0.1 * (0.5 * q_log_variance).exp()
        layers = {"use_quant_conv": False, "use_post_quant_conv": False}
        self.model = VariationalAutoencoder(
            **TINY | layers | {"latent_channels": width}, likelihood="gaussian"
        )
        self.model.encoder, self.model.decoder = nn.Conv2d(1, 2 * width, 8), nn.ConvTranspose2d(width, 1, 8)
        self.model.double().requires_grad_(False)
        self.model.encoder.weight.zero_()
        self.model.encoder.weight[:width] = gain.view(width, 1, 8, 8)
        self.model.encoder.bias.copy_(torch.cat([shift - self.bias * gain.sum(1), q_log_variance]))
        self.model.decoder.weight.copy_(W.T.reshape(width, 1, 8, 8))
        self.model.decoder.bias.fill_(self.bias)
        self.model.decoder_likelihood.log_variance.fill_(math.log(self.variance))
        covariance = W @ W.T + self.variance * torch.eye(64, dtype=torch.float64)
        self.marginal = MultivariateNormal(torch.full((64,), self.bias, dtype=torch.float64), covariance)
        exact = MultivariateNormal(torch.zeros(width, dtype=torch.float64), precision_matrix=precision)
        q = MultivariateNormal(shift, torch.diag(q_log_variance.exp()))
        self.gap = kl_divergence(q, exact).item()  # the same for every image

    def images(self, count):
        standard = randn(count, 64, seed=2)
        return (self.bias + standard @ self.marginal.scale_tril.T).view(count, 1, 8, 8)

    def log_prob(self, images):
        return self.marginal.log_prob(images.flatten(1))


@pytest.fixture(scope="module")
def linear():
    return LinearGaussian()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestExactlyKnown:
    def test_the_bounds_gap_is_the_divergence_from_the_true_posterior(self, linear):
        images = linear.images(64)
        many = images.repeat(1000, 1, 1, 1)
        draws = torch.stack([linear.model.elbo(many, generator(seed)).elbo.mean() for seed in range(6)])
        gap = (linear.log_prob(images).mean() - draws.mean()).item()
        assert 0.1 < linear.gap < 1
        assert gap == pytest.approx(linear.gap, abs=0.02)

    def test_importance_sampling_finds_the_likelihood(self, linear):
        images = linear.images(64)
        errors = linear.model.log_likelihood(images, 1000, chunk=4096) - linear.log_prob(images)
        assert abs(errors.mean().item()) < 0.02 and errors.std() < 0.05, errors
        one = linear.model.log_likelihood(images, 1) - linear.log_prob(images)
        assert one.mean() < -0.1  # which a thousand samples have mended

    def test_samples_of_the_prior_do_not(self, linear):
        """The figures in the module's documentation."""
        images = linear.images(4)
        errors = torch.stack(
            [
                linear.model.log_likelihood(images, 1000, "prior", seed=seed, chunk=4096)
                - linear.log_prob(images)
                for seed in range(8)
            ]
        )
        assert -30 < errors.mean() < -20 and 8 < errors.std(0).mean() < 15


def test_the_divergence_is_that_of_a_million_samples():
    model, images = tiny().double(), randn(1, 1, 8, 8)
    with torch.no_grad():
        nn.init.normal_(model.quant_conv.bias, generator=generator(1))
        posterior, kl = model.posterior(images), model.elbo(images).kl
    q, p = Normal(posterior.mean.flatten(), posterior.std.flatten()), Normal(0.0, 1.0)
    z = q.mean + q.stddev * randn(1_000_000, 2, seed=3)
    ratios = (q.log_prob(z) - p.log_prob(z)).sum(1)
    error = ratios.std() / 1e3
    assert kl.shape == (1,) and kl.item() > 100 * error
    assert abs(kl.item() - ratios.mean().item()) < 3 * error


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_more_samples_are_nearer_and_one_is_the_bound(latent):
    """ELBO <= IWAE(5) <= IWAE(50) in expectation: the mean of many draws, against their standard errors."""
    model = tiny(latent, latent_channels=2)
    with torch.no_grad():
        nn.init.normal_(model.post_quant_conv.weight, std=0.5, generator=generator(1))
        images = randn(1, 1, 8, 8).float().repeat(400, 1, 1, 1)
        bound = model.elbo(images, generator()).elbo
    few, many = (model.log_likelihood(images, count, seed=count, chunk=2000) for count in (5, 50))
    single = model.log_likelihood(images, 1, seed=1)
    for lower, upper in ((bound, few), (few, many)):
        difference, error = upper.mean() - lower.mean(), (upper.var() + lower.var()).sqrt() / 20
        assert difference > 3 * error, (difference, error)
    assert abs(single.mean() - bound.mean()) < 4 * (single.var() + bound.var()).sqrt() / 20


@pytest.mark.parametrize("latent", ["vector", pytest.param("spatial", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_gradient_agrees_with_finite_differences(latent):
    """Of the objective with beta and free bits, at every entry of every parameter, in float64."""
    model = tiny(latent, block_out_channels=(2, 2), latent_channels=1, sample_size=4).double()
    images = randn(1, 1, 4, 4).clamp(-1, 1)

    def loss():
        bound = model.elbo(images, generator(), beta=0.7, free_bits=0.01)
        return -bound.objective.mean()

    loss().backward()
    step, checked = 1e-5, 0
    assert model.decoder_likelihood.log_variance.grad.abs() > 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat = parameter.view(-1)
            for entry in range(len(flat)):
                kept, values = flat[entry].item(), []
                for side in (step, -step):
                    flat[entry] = kept + side
                    values.append(loss().item())
                flat[entry] = kept
                slope, exact = (values[0] - values[1]) / (2 * step), parameter.grad.view(-1)[entry].item()
                assert slope == pytest.approx(exact, rel=1e-5, abs=1e-6), (name, entry)
                checked += 1
    assert checked == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_add_up_in_the_input_s_precision(likelihood, dtype):
    model, images = tiny(likelihood=likelihood).to(dtype), (randn(3, 1, 8, 8) > 0).to(dtype) * 2 - 1
    bound = model.elbo(images, generator())
    for value in (bound.reconstruction, bound.kl, bound.elbo, bound.objective, bound.bits_per_dim):
        assert value.shape == (3,) and value.dtype == dtype and value.isfinite().all()
    assert bound.objective.equal(bound.elbo) and (bound.kl >= 0).all()
    torch.testing.assert_close(bound.bits_per_dim, bound.reconstruction_bits_per_dim + bound.kl_bits_per_dim)
    estimate = model.log_likelihood(images, 3)
    assert estimate.shape == (3,) and estimate.dtype == dtype
    assert model.half().elbo(images.half(), generator()).elbo.dtype == torch.float32


def test_beta_and_free_bits_by_hand():
    """Two channels of 0.5 and 2 nats; a bit is 0.693."""

    class Posterior:
        mean = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
        logvar = torch.zeros(1, 2, 1, 1)

    likelihood = tiny().decoder_likelihood
    plain, free, heavy = (
        bound_of(torch.tensor([-10.0]), Posterior(), likelihood, 64, **options)
        for options in ({}, {"free_bits": 1.0}, {"free_bits": 1.0, "beta": 2.0})
    )
    assert plain.kl.item() == free.kl.item() == 2.5 and plain.elbo.item() == heavy.elbo.item() == -12.5
    assert plain.objective.item() == -12.5
    assert free.objective.item() == pytest.approx(-10 - math.log(2) - 2)
    assert heavy.objective.item() == pytest.approx(-10 - 2 * (math.log(2) + 2))
    for name in ("beta", "free_bits"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            bound_of(torch.zeros(1), Posterior(), likelihood, 64, **{name: -1})


@pytest.mark.parametrize("method", ["importance", "prior"])
def test_estimates_depend_on_no_batch_and_no_chunk(method):
    model, images = tiny("spatial").double(), randn(5, 1, 8, 8)
    whole = model.log_likelihood(images, 7, method, seed=3)
    for chunk in (1, 3, 6, 11):
        torch.testing.assert_close(model.log_likelihood(images, 7, method, seed=3, chunk=chunk), whole)
    part = model.log_likelihood(images[2:4], 7, method, seed=3, first_index=2)
    torch.testing.assert_close(part, whole[2:4])
    assert not torch.allclose(model.log_likelihood(images, 7, method, seed=4), whole)


def test_the_memory_of_an_estimate_is_bounded_by_the_chunk(monkeypatch):
    model, sizes = tiny(), []
    decode = model.decoder_output
    monkeypatch.setattr(
        model, "decoder_output", lambda latents: sizes.append(len(latents)) or decode(latents)
    )
    model.log_likelihood(randn(5, 1, 8, 8).float(), 20, chunk=16)
    assert max(sizes) <= 16 and sum(sizes) == 100


def test_raw_posteriors_count_whatever_the_statistics(linear):
    images = linear.images(4)
    before = linear.model.elbo(images, generator()).elbo, linear.model.log_likelihood(images, 5)
    linear.model.set_latent_statistics([0.5] * 8, [2.0] * 8)
    try:
        after = linear.model.elbo(images, generator()).elbo, linear.model.log_likelihood(images, 5)
    finally:
        linear.model.register_to_config(latents_mean=None, latents_std=None)
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


def test_what_has_no_likelihood_is_refused_with_the_reason():
    images = torch.zeros(1, 1, 8, 8)
    for model, reason in (
        (tiny(likelihood=None), "likelihood is None"),
        (tiny(posterior="deterministic"), "posterior is 'deterministic'.*no evidence bound"),
    ):
        for estimate in (model.elbo, model.log_likelihood):
            with pytest.raises(ValueError, match=reason):
                estimate(images)
    with pytest.raises(ValueError, match="method is 'annealed'; allowed: 'importance', 'prior'"):
        tiny().log_likelihood(images, 2, "annealed")
    with pytest.raises(ValueError, match="num_samples is 0"):
        tiny().log_likelihood(images, 0)


def test_images_in_a_batch_use_their_own_generators():
    model, images = tiny(), randn(2, 1, 8, 8).float()
    both = model.elbo(images, [generator(1), generator(2)]).elbo
    torch.testing.assert_close(model.elbo(images[1:], [generator(2)]).elbo, both[1:])
    assert torch.equal(model.elbo(images, (generator(1), generator(2))).elbo, both)
    drawn = [
        model(images, sample_posterior=True, generator=kind((generator(1), generator(2)))).sample
        for kind in (list, tuple)
    ]
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="generator is"):
        model.elbo(images, [None, generator(2)])
