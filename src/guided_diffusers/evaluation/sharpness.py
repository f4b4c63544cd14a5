"""How crisp images are: the energy of their fine detail, beside that of real images.

A blurred generator loses energy at high spatial frequencies; a noisy one gains it. So the ratio to real
images is a two-sided test: 1 is right, and both less and more are wrong. There are two measures of detail,
which should agree:

    spectral:   E = (1/N^2) sum_{|f| > c} |F(f)|^2,  N = H W, F the 2-D discrete Fourier transform, f in
                cycles per pixel, c = 1/4: all that lies beyond half of Nyquist's frequency.
    Laplacian:  E = mean over inner pixels of (up + down + left + right - 4 centre)^2.

By Parseval's theorem the spectral energies of all frequencies add up to the mean square of the pixels, so
white noise of variance s^2 has s^2 times the fraction of frequencies beyond c; its Laplacian energy is
20 s^2. A constant has 0 in both. The Fourier transform takes the image as periodic, so a border that is not
background adds energy of its own to the first measure, alike in real and generated images.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_that
from guided_diffusers.core.declared import Within, read


def high_frequency_energy(images: Tensor, cutoff: float = 0.25) -> Tensor:
    """Spectral energy beyond a radial frequency, one figure an image, averaged over channels.

    Args:
        images: (batch, channels, height, width), any linear range; energies scale with its square.
        cutoff: Radial frequency in cycles per pixel, in [0, 0.5) (Nyquist has 0.5); frequencies beyond
            it count, it does not.

    Returns:
        (batch,) float64. Each image's figure depends on that image alone.

    Raises:
        ValueError: If the images are not four-dimensional or the cutoff is out of range.
    """
    images = _checked(images)
    cutoff = read("cutoff", cutoff, Annotated[float, Within(0, 0.5, "[)")])
    height, width = images.shape[-2:]
    power = torch.fft.fft2(images).abs().square() / (height * width) ** 2
    return (power * beyond(height, width, cutoff).to(images.device)).sum(dim=(-2, -1)).mean(dim=1)


def beyond(height: int, width: int, cutoff: float = 0.25) -> Tensor:
    """(height, width) bool: the bins of `torch.fft.fft2` strictly beyond the radial frequency `cutoff`."""
    vertical = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    horizontal = torch.fft.fftfreq(width, dtype=torch.float64)[None, :]
    return torch.hypot(vertical, horizontal) > cutoff


def laplacian_energy(images: Tensor) -> Tensor:
    """Mean square of the five-point Laplacian over inner pixels, one figure an image, averaged over channels.

    Args:
        images: (batch, channels, height, width), at least 3 by 3 pixels; any linear range.

    Returns:
        (batch,) float64. Each image's figure depends on that image alone.

    Raises:
        ValueError: If the images are not four-dimensional or too small.
    """
    x = _checked(images)
    check_that(min(x.shape[-2:]) > 2, "images", images, "at least 3 by 3 pixels")
    centre = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (around - 4 * centre).square().mean(dim=(-3, -2, -1))


def _checked(images: Tensor) -> Tensor:
    right = isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()
    allowed = "floating-point (batch, channels, height, width); convert 8-bit images by `images / 127.5 - 1`"
    check_that(right and 0 not in images.shape[1:], "images", images, allowed)
    return check_finite("images", images, 1e150).double()
