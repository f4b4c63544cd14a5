"""Probabilistic PCA: its density is the multivariate normal's, its closed form the likelihood's maximum."""

from dataclasses import replace

import pytest
import torch

LATENT = 3


@pytest.fixture
def ppca(load_script):
    return load_script("studies/autoencoders/ppca")


@pytest.fixture
def images():
    """Of 4x3 pixels, which vary more in some directions than in others."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    drawn = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    return (drawn * torch.linspace(0.1, 2, 12) @ mixing + 0.3).view(200, 1, 4, 3)


def covariance(model):
    identity = torch.eye(len(model.mean), dtype=torch.float64)
    extra = (model.variances - model.noise_variance).diag()
    return model.directions @ extra @ model.directions.T + model.noise_variance * identity


def test_the_density_is_the_multivariate_normals(ppca, images):
    model = ppca.fit(images, LATENT)
    normal = torch.distributions.MultivariateNormal(model.mean, covariance(model))
    torch.testing.assert_close(model.log_likelihood(images), normal.log_prob(images.flatten(1)))


def test_the_noise_is_what_the_latent_leaves_and_nothing_is_lost(ppca, images):
    """C keeps the trace of the covariance, and its first q eigenvalues and directions."""
    model, empirical = ppca.fit(images, LATENT), torch.cov(images.flatten(1).T, correction=0)
    torch.testing.assert_close(covariance(model).trace(), empirical.trace())
    torch.testing.assert_close(empirical @ model.directions, model.directions * model.variances)
    assert (model.variances.diff() < 0).all() and model.variances[-1] > model.noise_variance > 0


def perturbed(model, name, generator):
    """The model with one of its parts moved a little at random."""
    value = getattr(model, name)
    if name == "noise_variance":
        return replace(model, noise_variance=value * (0.9 + 0.2 * torch.rand(1, generator=generator).item()))
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    if name == "directions":
        return replace(model, directions=torch.linalg.qr(value + 0.02 * noise).Q)
    if name == "mean":
        return replace(model, mean=value + 0.1 * noise)
    return replace(model, variances=value * (1 + 0.05 * noise))


@pytest.mark.parametrize("name", ["mean", "directions", "variances", "noise_variance"])
def test_no_perturbation_has_a_higher_likelihood(ppca, images, name):
    model, generator = ppca.fit(images, LATENT), torch.Generator().manual_seed(1)
    best = model.log_likelihood(images).mean()
    losses = [best - perturbed(model, name, generator).log_likelihood(images).mean() for _ in range(50)]
    assert min(losses) > 0 and max(losses) > 1e-3


def test_the_gradient_vanishes_at_the_fit(ppca, images):
    model = ppca.fit(images, LATENT)
    scale = (model.variances - model.noise_variance).sqrt()
    weights = (model.directions * scale).requires_grad_()
    mean = model.mean.clone().requires_grad_()
    noise = torch.tensor(model.noise_variance, dtype=torch.float64, requires_grad=True)
    covariance = weights @ weights.T + noise * torch.eye(12, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    gradients = torch.autograd.grad(normal.log_prob(images.flatten(1)).mean(), (mean, weights, noise))
    assert all(gradient.abs().max() < 1e-8 for gradient in gradients)


def test_more_latent_numbers_never_fit_worse(ppca, images):
    means = [ppca.fit(images, size).log_likelihood(images).mean().item() for size in range(1, 12)]
    assert means == sorted(means)


def test_what_has_no_maximum_is_refused(ppca, images):
    with pytest.raises(ValueError, match="latent_size is 12; allowed: 1 to 11"):
        ppca.fit(images, 12)
    with pytest.raises(ValueError, match="vary in 4 directions or fewer"):
        ppca.fit(images[:5], 4)
