"""Measurements: the likelihood of a blurred image against dense algebra, and the operators."""

from __future__ import annotations

import pytest
import torch
from laws.exact import draw

from guided_diffusers.guidance.gradient import gradient_of
from guided_diffusers.steering import Measurement, blurred, downsampled, masked

MASK = torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(4, 4)
OPERATORS = {
    "masked": masked(MASK),
    "downsampled": downsampled(2),
    "blurred": blurred(0.6),
    "a product of both": lambda images: downsampled(2)(blurred(0.6)(images)),
}


def dense(operator, shape):
    """The matrix of a linear function of images."""
    basis = torch.eye(shape.numel(), dtype=torch.float64).unflatten(1, shape)
    return operator(basis).flatten(1).T


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("deviation", [0.0, 0.2])
def test_the_marginal_is_the_gaussian_of_all_that_is_unknown(name, deviation):
    operator, images = OPERATORS[name], draw(2, 1, 4, 4)
    observed, variance = operator(draw(1, 1, 4, 4, seed=1)), torch.tensor([0.3, 2.0], dtype=torch.float64)
    measurement, matrix = Measurement(operator, observed, deviation), dense(operator, images.shape[1:])

    value = measurement.marginal(images, variance)
    gradient = gradient_of("loss", lambda x: measurement.marginal(x, variance), images)

    residual = (observed - operator(images)).flatten(1)
    spread = deviation**2 * torch.eye(len(matrix)) + variance[:, None, None] * (matrix @ matrix.T)
    weighed = (torch.linalg.pinv(spread, rtol=1e-10) @ residual[..., None])[..., 0]
    torch.testing.assert_close(value, (residual * weighed).sum(1) / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient.flatten(1), -weighed @ matrix, rtol=1e-4, atol=1e-4)


def test_what_is_seen_as_it_was_observed_has_no_loss():
    images = draw(2, 3, 8, 8, dtype=torch.float32)
    measurement = Measurement(downsampled(4), downsampled(4)(images), 0.1)
    assert measurement.marginal(images, torch.tensor(0.5)).tolist() == measurement(images).tolist() == [0, 0]
    torch.testing.assert_close(measurement(images + 1), torch.full((2,), 3 * 2 * 2 / 2))


def test_a_blur_keeps_the_mean_and_averages():
    image = torch.zeros(1, 2, 9, 9)
    image[:, 1, 4, 4] = 1.0
    seen = blurred(1.0)(image)
    assert seen[:, 0].eq(0).all() and seen.sum() == pytest.approx(1.0)
    assert seen[0, 1, 4, 4] / seen[0, 1, 4, 5] == pytest.approx(2.718281828**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.square, torch.zeros(1, 1, 2, 2), -1.0), "deviation is -1.0; allowed"),
        ((lambda x: x + 1, torch.zeros(1, 1, 4, 4)), "operator gives what is not 0 .* allowed: a linear"),
        ((downsampled(2), torch.zeros(1, 1, 4, 4)), r"observed is .* operator gives \(2, 1, 2, 2\)"),
        ((downsampled(2), torch.zeros(3, 1, 2, 2)), "observed is .* or that with the batch 1"),
        ((downsampled(2), None), "observed is None; allowed: a floating-point tensor"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Measurement(*arguments).marginal(torch.zeros(2, 1, 4, 4), torch.tensor(1.0))
