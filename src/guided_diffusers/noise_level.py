"""The noise level: what a scheduler contributes to sampling and training.

Every diffusion process used here noises a sample as

    x_t = alpha x_0 + sigma eps,    eps ~ N(0, I),

in the coordinates of the scheduler's own sample: variance-preserving (alpha^2 + sigma^2 = 1),
variance-exploding (alpha = 1) or flow matching (alpha = 1 - sigma). A `NoiseLevel` is one such pair, with
what the network is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _float64(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """One noise level, or a batch of them: `x_t = alpha x_0 + sigma eps`.

    Args:
        alpha: Signal scale, in [0, 1]; 0-dim or `(batch,)`. Kept in float64.
        sigma: Noise scale, >= 0; of alpha's shape. Kept in float64.
        timestep: What the network receives as its timestep, in the scheduler's own units; 0-dim or
            `(batch,)`.
        input_scale: The network sees `input_scale * x_t` (1 for variance-preserving processes and flow
            matching, `1 / sqrt(1 + sigma^2)` for variance-exploding ones). Kept in float64.
    """

    alpha: Tensor | float
    sigma: Tensor | float
    timestep: Tensor | float | None = None
    input_scale: Tensor | float = 1.0

    def __post_init__(self) -> None:
        """Convert numbers and tensors of any dtype to float64 tensors."""
        for name in ("alpha", "sigma", "input_scale"):
            object.__setattr__(self, name, _float64(getattr(self, name)))

    @property
    def noise_to_signal(self) -> Tensor:
        """`sigma / alpha`, the coordinate of guidance intervals; infinite where nothing of x_0 is left."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Tensor:
        """`log(alpha^2 / sigma^2)`, in nats; minus infinity at pure noise, plus infinity at the clean end."""
        return 2 * (self.alpha.log() - self.sigma.log())


def broadcast(coefficient: Tensor | float, sample: Tensor) -> Tensor:
    """Shape a coefficient so that it multiplies a sample, in the sample's dtype and on its device.

    Args:
        coefficient: 0-dim, or `(batch,)`: one value a sample.
        sample: `(batch, ...)`.

    Returns:
        A tensor of shape `()` or `(batch, 1, ...)`.
    """
    coefficient = torch.as_tensor(coefficient)
    if coefficient.ndim == 0:
        return coefficient.to(sample.dtype)  # a 0-dim CPU tensor multiplies a tensor of any device
    if coefficient.ndim > 1 or coefficient.shape[0] not in (1, sample.shape[0]):
        raise ValueError(
            f"a per-sample value has shape {tuple(coefficient.shape)}; allowed: () or ({sample.shape[0]},), "
            "one a sample"
        )
    return coefficient.to(sample.device, sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
