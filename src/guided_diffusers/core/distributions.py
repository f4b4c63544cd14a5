"""Distributions of pixels and latents, and the units that their likelihoods come in.

Pixels of 8 bits have 256 levels, evenly spaced over [-1, 1]: each is the middle of a bin of width
w = 2 / 255. A model of them gives one of two things, in nats:

    probability  log P(x), at most 0, of an image on the 256 levels
    density      log p(x), of any sign, relative to pixels measured in [-1, 1]

A density of 8-bit images has no bound: it grows without limit as a model learns the levels. So the images
are **dequantised**, x + w (u - 1/2) with u uniform in [0, 1): over that noise Jensen's inequality gives

    log P(x) >= E[log p(x + w (u - 1/2))] + D log w

for D dimensions (pixels times channels), and the right side is what `bits_per_dim` converts a density with.
With it a density and a probability are in one unit, bits of an 8-bit image a dimension. In nats they are
not comparable, nor are two densities whose pixels have different ranges.

References:
    Theis, van den Oord and Bethge, "A note on the evaluation of generative models" (arXiv:1511.01844),
    section 3.1.
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equation 13.
    Salimans et al., "PixelCNN++" (arXiv:1701.05517), section 2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LEVELS = 256
BIN_WIDTH = 2 / (LEVELS - 1)
FLOOR = 1e-12
"""The least probability of a pixel, as in the papers' code. Where it is reached the sum is no bound."""


def dequantise(images: Tensor, uniform: Tensor) -> Tensor:
    """Images on 256 levels of [-1, 1] with noise that fills their bins.

    Args:
        images: `(batch, channels, height, width)`.
        uniform: In [0, 1), of images' shape, as of `randomness.rand_for`.
    """
    # Theis et al., section 3.1
    return images + BIN_WIDTH * (uniform - 0.5)


def bits_per_dim(nats: Tensor, dimensions: int, density: bool) -> Tensor:
    """Bits of an 8-bit image a dimension, from log-likelihoods of whole images; lower is better.

    Args:
        nats: Log-likelihoods, of any shape.
        dimensions: Pixels times channels of an image.
        density: `nats` are of densities of dequantised images, relative to pixels in [-1, 1], and not of
            probabilities.
    """
    if density:
        nats = nats + dimensions * math.log(BIN_WIDTH)
    return -nats / (dimensions * math.log(2))


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other mean, other variance)) in nats, element by element."""
    difference = log_variance - other_log_variance
    squared = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (-1 - difference + difference.exp() + squared)  # in this order: float32 keeps most


def gaussian_log_density(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The logarithm of N(value; mean, variance) in nats, element by element."""
    squared = (value - mean).square() * (-log_variance).exp()
    return -0.5 * (squared + log_variance + math.log(2 * math.pi))


def discretised_log_likelihood(
    x0: Tensor, mean: Tensor, log_variance: Tensor, floor: float = FLOOR
) -> Tensor:
    """The logarithm of the mass of N(mean, variance) on each pixel's bin of width 2 / 255, in nats.

    All that lies beyond the ends counts to the outermost bins. The cumulative function is the tanh
    approximation of the normal one that published figures use: itself a distribution function.

    Args:
        x0: In [-1, 1], on 256 evenly spaced levels.
        mean: Of x0's shape.
        log_variance: Of a shape that broadcasts with it.
        floor: The least mass; 0 for none, which makes the likelihood a proper one.

    Returns:
        Of x0's shape. The mass itself, which vanishes far from the mean, is never formed.
    """
    # Ho et al., equation 13
    half, scale = BIN_WIDTH / 2, (-0.5 * log_variance).exp()
    mass = _log_mass(x0, *(_logit_of_normal((x0 - mean + edge) * scale) for edge in (half, -half)))
    return mass.clamp_min(math.log(floor)) if floor > 0 else mass


def discretised_logistic_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """As `discretised_log_likelihood`, of the logistic distribution with that mean and variance, no floor.

    Its scale s has s^2 pi^2 / 3 = variance. Its tails are exponential: an outlier costs less.
    """
    # Salimans et al., equation 2
    half, inverse = BIN_WIDTH / 2, (-0.5 * log_variance).exp() * (math.pi / math.sqrt(3))
    return _log_mass(x0, *((x0 - mean + edge) * inverse for edge in (half, -half)))


def _log_mass(x0: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """log(sigmoid(above) - sigmoid(below)), the logits of a bin's edges; of the outermost bins, one edge."""
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    inside = logsigmoid(above) + logsigmoid(-below) + torch.log1p(-(below - above).exp())
    return torch.where(x0 < -0.999, logsigmoid(above), torch.where(x0 > 0.999, logsigmoid(-below), inside))


def _logit_of_normal(value: Tensor) -> Tensor:
    """The argument at which a sigmoid is 0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), nearly Phi(z)."""
    return 2 * math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
