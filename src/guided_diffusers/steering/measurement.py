"""Inverse problems: an image of which a linear measurement is known, y = A x + d noise.

Of the predicted image D only the mean is known: x is D, give or take a variance c. Then

    y | D ~ N(A D, M),   M = d^2 + c A A^T,      -log p(y | D) = r^T M^-1 r / 2,   r = y - A D          (1)

up to a constant. M^-1 r comes by conjugate gradients, in which A^T is autograd's, so that A may be any
linear function: one step for a mask or for averages of pixels, whose A A^T is a multiple of the identity,
more for a blur.

References:
    Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems" (ICLR 2023), equation 7.
    Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization"
        (arXiv:2405.13712), section 4.2: conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from guided_diffusers.core.checks import check_int, check_number, check_tensor, shown
from guided_diffusers.core.declared import Amount, Declared
from guided_diffusers.core.noise import broadcast

Operator = Annotated[Callable[[Tensor], Tensor], "a linear function of images"]
ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class Measurement(Declared):
    """The loss of images that ought to have a measurement: `LossGuidance(Measurement(...), scale=1.0)`.

    Args:
        operator: A, linear, from images `(batch, channels, height, width)` to `(batch, ...)`: `masked`,
            `downsampled`, `blurred`, or a function of one's own.
        observed: y, as `operator` gives it, for all images or with the batch 1.
        deviation: d, of the noise in y, in its units; 0 is none. A blur needs some: what it wipes out would
            be sought in rounding errors.

    Raises:
        ValueError: A `deviation` below 0; on use, an `operator` that is not linear, or gives another shape
            than `observed`.
    """

    operator: Operator
    observed: Tensor
    deviation: Amount = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_tensor("observed", self.observed)

    def residual(self, images: Tensor) -> Tensor:
        """y - A x, `(batch, ...)`."""
        measured = self.operator(images)
        observed = self.observed.to(measured)
        if measured.shape[1:] != observed.shape[1:] or len(observed) not in (1, len(measured)):
            raise ValueError(
                f"observed is {shown(self.observed)}, and operator gives {tuple(measured.shape)} of these "
                "images; allowed: its shape, or that with the batch 1"
            )
        return observed - measured

    def __call__(self, images: Tensor) -> Tensor:
        """Half the squared error, `(batch,)`."""
        return self.residual(images).square().flatten(1).sum(1) / 2

    def marginal(self, images: Tensor, variance: Tensor) -> Tensor:
        """Equation (1).

        Args:
            images: D, `(batch, channels, height, width)`.
            variance: c, `()` or `(batch,)`.

        Returns:
            Nats up to a constant, `(batch,)`.
        """
        residual = self.residual(images)
        with torch.enable_grad():
            blank = torch.zeros_like(images, requires_grad=True)
            measured = self.operator(blank)
        if measured.detach().any():
            raise ValueError("operator gives what is not 0 of images that are 0; allowed: a linear function")

        def covariance(vector: Tensor) -> Tensor:
            transposed = torch.autograd.grad(measured, blank, vector, retain_graph=True)[0]
            spread = broadcast(variance, vector) * self.operator(transposed)
            return self.deviation**2 * vector + spread

        # (1): its gradient is -A^T M^-1 r, and so is that of r^T (M^-1 r) with M^-1 r held fast
        with torch.no_grad():
            weighed = _solved(covariance, residual.detach())
        product = (residual * weighed).flatten(1).sum(1)
        return product - product.detach() / 2


def _solved(matrix: Operator, right: Tensor) -> Tensor:
    """matrix^-1 right, a sample each, for a symmetric matrix: the method of conjugate gradients."""

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return broadcast((one * other).flatten(1).sum(1), one)

    solution, residual, direction = torch.zeros_like(right), right, right
    size = first = dot(right, right)
    tiny = torch.finfo(right.dtype).tiny
    for _ in range(ITERATIONS):
        image = matrix(direction)
        length = size / dot(direction, image).clamp(min=tiny)
        solution, residual = solution + length * direction, residual - length * image
        before, size = size, dot(residual, residual)
        if (size <= 1e-10 * first).all():
            break
        direction = residual + size / before.clamp(min=tiny) * direction
    return solution


def masked(mask: Tensor) -> Operator:
    """What is seen of images where `mask`, of their shape or one that broadcasts to it, is 1; elsewhere 0."""
    check_tensor("mask", mask, floating=False)
    return lambda images: images * mask.to(images)


def downsampled(factor: int) -> Operator:
    """Images made smaller by an integer factor: the average of each square of that many pixels a side."""
    check_int("factor", factor, 1)
    return lambda images: F.avg_pool2d(images, factor)


def blurred(deviation: float) -> Operator:
    """Images under a Gaussian blur, whose deviation is in pixels; beyond the border the image is mirrored."""
    radius = max(1, round(3 * check_number("deviation", deviation, 0, above=True)))
    weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    weights = weights / weights.sum()

    def operator(images: Tensor) -> Tensor:
        channels, line = images.shape[1], weights.to(images)
        padded = F.pad(images, (radius,) * 4, mode="reflect")
        rows = F.conv2d(padded, line.expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(rows, line[:, None].expand(channels, 1, -1, 1), groups=channels)

    return operator
