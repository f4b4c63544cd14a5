"""Noise levels weighted by how well each can be learned, which is learned along: EDM2's u(sigma).

With L(sigma) the expected squared error at a level, the loss L / e^u + u is least at e^u = L: a level then
counts by one over what is left of its error, and all levels send gradients of one size. A weight lambda on
the error moves u by ln lambda and leaves the quotient as it is, so that EDM's weight, which is 1 on the
output of an EDM network, and any other give the same.

References:
    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696),
        section 2 and appendix B: the continuous form of
    Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses" (arXiv:1705.07115).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from guided_diffusers.core.noise import NoiseLevel


class LogVariance(nn.Module):
    """u(sigma): one linear layer on random Fourier features of ln(sigma / alpha) / 4; 0 at the beginning.

    Args:
        features: their number.
    """

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        frequencies, phases = (
            torch.randn(features, generator=generator),
            torch.rand(features, generator=generator),
        )
        self.register_buffer("frequencies", 2 * math.pi * frequencies)
        self.register_buffer("phases", 2 * math.pi * phases)
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, level: NoiseLevel) -> Tensor:
        """`(batch,)`, float32, for levels of `(batch,)`."""
        noise = level.noise_to_signal.log().clamp(-10, 10).to(self.weight) / 4  # sigma may be 1 and alpha 0
        features = (noise[:, None] * self.frequencies + self.phases).cos()
        return math.sqrt(2 / len(self.weight)) * (features * self.weight).sum(1)

    def weighted(self, error: Tensor, level: NoiseLevel) -> Tensor:
        """The loss of each sample, `(batch,)`, of its squared error."""
        u = self(level)
        # arXiv:2312.02696, section 2: lambda / e^u times the error, plus u
        return error / u.exp() + u
