"""What a decoder's output means: log p(x | z) of images, and the image that stands for the distribution.

The decoder gives one number a pixel and channel, m(z). Given it, pixels are independent:

    name                   p(x | z) of a pixel                         kind         `mean`, in [-1, 1]
    gaussian               N(m, v)                                     density      m
    bernoulli              (x + 1) / 2 is 1 with the logit m           probability  tanh(m / 2)
    discretised_logistic   a logistic's mass on the pixel's bin        probability  m
    discretised_gaussian   N(m, v)'s mass on the pixel's bin           probability  m

m and v are the mean and variance before discretisation. log v is ONE learned number for all pixels, a
parameter of the model: at its optimum v is the mean squared error, so that it, and no hand-set weight, says
what an error costs against the divergence. What is a density, what a probability and in which units:
`core.distributions`. In short, a density is of dequantised images, relative to pixels in [-1, 1];
`bits_per_dim` puts all in bits of an 8-bit image.

A Bernoulli likelihood is a probability of black-and-white images. For greys between it is the cross entropy
that many papers train with, which no distribution has: do not compare it with the others.

References:
    Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv:1312.6114), appendix C.
    Rybkin et al., "Simple and Effective VAE Training with Calibrated Decoders" (arXiv:2006.13202).
    Salimans et al., "PixelCNN++" (arXiv:1701.05517), section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from guided_diffusers.core.checks import check_choice
from guided_diffusers.core.distributions import (
    bits_per_dim,
    discretised_log_likelihood,
    discretised_logistic_log_likelihood,
    gaussian_log_density,
)
from guided_diffusers.core.prediction import at_least_float32

INITIAL_LOG_VARIANCE = -3.0
"""A deviation of 0.22 in a range of 2: at 1 the divergence outweighs the images and latents collapse."""


class DecoderLikelihood(nn.Module):
    """A distribution of images given the decoder's output; subclasses say which.

    Attributes:
        is_density: `log_prob` is a density relative to pixels in [-1, 1], and not a probability.
    """

    is_density = False

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """Log p(x | z) of images in nats, summed over each image.

        Args:
            output: of the decoder, (batch, channels, height, width).
            images: of the same shape, in [-1, 1]; on 256 levels, or dequantised for a density.

        Returns:
            (batch,), in images' dtype, at least float32.
        """
        images = at_least_float32(images)
        return self.of_pixels(output.to(images.dtype), images).flatten(1).sum(1)

    def of_pixels(self, output: Tensor, images: Tensor) -> Tensor:
        """The logarithms whose sum `log_prob` is, of images' shape."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The image of a decoder's output, which `VariationalAutoencoder.decode` returns; not clamped."""
        return output

    def bits_per_dim(self, log_prob: Tensor, dimensions: int) -> Tensor:
        """Bits a dimension of log-likelihoods of whole images with so many pixels times channels."""
        return bits_per_dim(log_prob, dimensions, self.is_density)


class BernoulliLikelihood(DecoderLikelihood):
    """Of black and white, -1 and 1; the decoder's output is the logit of white."""

    def of_pixels(self, output: Tensor, images: Tensor) -> Tensor:
        """As the base class says."""
        white = (images + 1) / 2
        return white * logsigmoid(output) + (1 - white) * logsigmoid(-output)

    def mean(self, output: Tensor) -> Tensor:
        """The mean pixel, 2 sigmoid(output) - 1."""
        return (output / 2).tanh()


class LocationLikelihood(DecoderLikelihood):
    """What the other three share: the output is a mean, and one learned log-variance spreads around it.

    Attributes:
        log_variance: a parameter of shape (1,), which belongs in the optimizer and needs no weight decay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.full((1,), INITIAL_LOG_VARIANCE))


class GaussianLikelihood(LocationLikelihood):
    """A density: with images that are not dequantised it has no bound."""

    is_density = True

    def of_pixels(self, output: Tensor, images: Tensor) -> Tensor:
        """As the base class says."""
        return gaussian_log_density(images, output, self.log_variance.to(images.dtype))


class DiscretisedLogisticLikelihood(LocationLikelihood):
    """Of images on 256 levels; the outermost take the tails."""

    def of_pixels(self, output: Tensor, images: Tensor) -> Tensor:
        """As the base class says."""
        return discretised_logistic_log_likelihood(images, output, self.log_variance.to(images.dtype))


class DiscretisedGaussianLikelihood(LocationLikelihood):
    """Of images on 256 levels; the outermost take the tails."""

    def of_pixels(self, output: Tensor, images: Tensor) -> Tensor:
        """As the base class says."""
        return discretised_log_likelihood(images, output, self.log_variance.to(images.dtype), floor=0.0)


LIKELIHOODS: dict[str, type[DecoderLikelihood]] = {
    "gaussian": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
    "discretised_logistic": DiscretisedLogisticLikelihood,
    "discretised_gaussian": DiscretisedGaussianLikelihood,
}


def make_likelihood(name: str | None) -> DecoderLikelihood | None:
    """A new likelihood by its name; None for None.

    Raises:
        ValueError: for an unknown name.
    """
    return None if name is None else LIKELIHOODS[check_choice("likelihood", name, tuple(LIKELIHOODS))]()
